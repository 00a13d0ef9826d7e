package firmseal_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/firmseal/firmseal"
)

// The text of a checkpoint is read one way, and a size that the arithmetic of
// trees does not end for is none.
func TestParseCheckpoint(t *testing.T) {
	t.Parallel()
	root := base64.StdEncoding.EncodeToString(make([]byte, 32))
	text := func(size string, more ...string) string {
		return strings.Join(append([]string{"log.example/1", size, root}, more...), "\n") + "\n"
	}
	for _, c := range []struct {
		text  string
		size  int64
		plain bool // it is what Text gives
	}{
		{text("0"), 0, true},
		{text("70045"), 70045, true},
		{text("9007199254740991"), 1<<53 - 1, true},
		{text("7", "extension"), 7, false},
		{strings.TrimSuffix(text("7"), "\n"), 7, false},
	} {
		p, err := firmseal.ParseCheckpoint(c.text, "log.example/1")
		if err != nil || p.Size != c.size || p.Origin != "log.example/1" || (p.Text() == c.text) != c.plain {
			t.Errorf("%q: %+v, %v", c.text, p, err)
		}
	}
	for _, bad := range []string{
		"", "\n\n\n", text("9007199254740992"), text("9223372036854775807"), text("9223372036854775808"), text("-1"), text("+1"), text("01"), text(""),
		text("7", ""), text("7")[1:], "log.example/1\n7\n", "log.example/1\n7\nAAAA\n", text("7", strings.Repeat("x", 1<<17)),
	} {
		var e *firmseal.Error
		if p, err := firmseal.ParseCheckpoint(bad, "log.example/1"); !errors.As(err, &e) || e.Code != firmseal.CodeCheckpointUntrusted {
			t.Errorf("%.80q: %+v, %v", bad, p, err)
		}
	}
}
