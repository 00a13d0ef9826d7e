package main

import (
	"regexp"
	"strings"
	"testing"
)

const log = `{"Action":"start","Package":"m/a"}
{"Action":"output","Package":"m/a","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"pass","Package":"m/a","Test":"TestGood"}
{"Action":"output","Package":"m/a","Test":"TestPeerBoot/arm","Output":"    a_test.go:5: peer absent: qemu\n"}
{"Action":"skip","Package":"m/a","Test":"TestPeerBoot/arm"}
{"Action":"pass","Package":"m/a","Test":"TestPeerBoot"}
{"Action":"output","Package":"m/a","Output":"PASS\n"}
{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.1s\n"}
{"Action":"pass","Package":"m/a"}
`

func TestRun(t *testing.T) {
	t.Parallel()
	failed := `{"Action":"output","Package":"m/b","Test":"TestBad","Output":"    b_test.go:5: wrong\n"}
{"Action":"fail","Package":"m/b","Test":"TestBad"}
{"Action":"output","Package":"m/b","Output":"FAIL\tm/b\t0.1s\n"}
{"Action":"fail","Package":"m/b"}
`
	for _, tt := range []struct {
		name, log, need string
		peers, verbose  bool
		ok              bool
		want, not       string
	}{
		{name: "good", log: log, ok: true, want: "ok  \tm/a\t0.1s\n", not: "=== RUN"},
		{name: "absent peers are listed", log: log, ok: true, want: "  peer absent: qemu: TestPeerBoot/arm in m/a\n"},
		{name: "absent peers are refused", log: log, peers: true, want: "1 checks by a foreign judge"},
		{name: "a judge that is skipped for another reason", log: `{"Action":"skip","Package":"m/a","Test":"TestPeerBoot"}` + "\n", peers: true, want: "  skipped: TestPeerBoot in m/a\n"},
		{name: "a skipped test that is no judge", log: `{"Action":"skip","Package":"m/a","Test":"TestLong"}` + "\n", peers: true, ok: true},
		{name: "need", log: log, need: "^TestGood$", ok: true, want: "1 tests that match"},
		{name: "need, none", log: log, need: "^TestCrash", want: "0 tests that match"},
		{name: "a skipped test is not one that passed", log: log, need: "^TestPeerBoot/arm$", want: "0 tests that match"},
		{name: "verbose", log: log, verbose: true, ok: true, want: "=== RUN   TestGood\n"},
		{name: "failure", log: log + failed, want: "--- TestBad in m/b\n    b_test.go:5: wrong\n"},
		{name: "build failure", log: `{"Action":"build-output","ImportPath":"m/c","Output":"c.go:1: no\n"}` + "\n" + `{"Action":"fail","Package":"m/c"}` + "\n", want: "c.go:1: no\n"},
		{name: "cut off", log: `{"Action":"output","Package":"m/d","Test":"TestLong","Output":"half\n"}`, want: "--- TestLong in m/d\nhalf\n"},
		{name: "plain text", log: "go: errors parsing go.mod\n" + log, ok: true, want: "go: errors parsing go.mod\n"},
	} {
		var need *regexp.Regexp
		if tt.need != "" {
			need = regexp.MustCompile(tt.need)
		}
		var b strings.Builder
		ok, err := run(strings.NewReader(tt.log), &b, tt.peers, need, tt.verbose)
		if err != nil {
			t.Fatal(err)
		}
		if ok != tt.ok {
			t.Errorf("%s: %v, want %v", tt.name, ok, tt.ok)
		}
		if !strings.Contains(b.String(), tt.want) {
			t.Errorf("%s: no %q in\n%s", tt.name, tt.want, b.String())
		}
		if tt.not != "" && strings.Contains(b.String(), tt.not) {
			t.Errorf("%s: %q in\n%s", tt.name, tt.not, b.String())
		}
	}
}
