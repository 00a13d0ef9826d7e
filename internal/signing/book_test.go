package signing

import (
	"testing"
	"testing/synctest"

	"github.com/firmseal/firmseal"
)

// What the book knows can be asked while somebody reads the log for it: those
// who ask hold a connection that the reader may wait for. synctest fails when
// one of them waits.
func TestBookAnswersWhileTheLogIsRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b book
		b.reading.Lock()
		defer b.reading.Unlock()
		b.take(3, "leaf", firmseal.Leaf{Type: firmseal.LeafPolicyApply, Subject: "p", Record: "r"})
		b.take(4, "other", firmseal.Leaf{Type: firmseal.LeafKeyRetire, Key: "k"})
		if p, ok := b.policyBefore("p", -1); !ok || p.digest != "r" {
			t.Errorf("the policy is %+v, %v", p, ok)
		}
		if !b.retiredBefore("k", 5) || b.retiredBefore("k", 4) {
			t.Error("the retirement is not at its index")
		}
		if err := b.holds(KeyRecord{}); err == nil {
			t.Error("a key that the log does not know is held")
		}
	})
}
