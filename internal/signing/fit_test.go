package signing_test

import (
	"fmt"
	"testing"

	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/servertest"
	"github.com/firmseal/firmseal/internal/signing"
)

// A FIT for many boards has a configuration for each. One attempt announces all
// their signatures, in one leaf.
func TestManyConfigurations(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		b := newBench(t, o)
		b.Key("board-key", "rsa2048", "test", "board", "fit") // of long scheme names
		b.Policy(servertest.Profile("fit", "board", "test", "fit", "board-key"))
		for i, n := range []int{60, 256} {
			var names []string
			for j := range n {
				names = append(names, fmt.Sprintf("conf-vendor,soc-board-name-rev%d", j))
			}
			version := fmt.Sprintf("1.0.%d", i)
			content := fitdemo.FIT(version, names...)
			r, err := b.Client.Sign(t.Context(), servertest.Request("fit", version, 1, content), "", patience)
			if err != nil {
				t.Fatal(err)
			}
			wantState(t, r, signing.Released, "")
			b.verify(r.ID, content)
			if got := b.uses(keys.Firmware, r.ID); got != n {
				t.Errorf("the key was used %d times for %d configurations", got, n)
			}
		}
	})
}
