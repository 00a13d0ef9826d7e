package fit_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit"
	"github.com/firmseal/firmseal/internal/image/fit/fdt"
	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/image/fit/uboottest"
	"github.com/firmseal/firmseal/internal/problem"
)

// debian is the profile of the U-Boot that decides here.
var debian = image.Profile{Verifier: "u-boot", Version: "2023.01"}

// edit parses a FIT with the writer's reader, changes it and writes it again.
func edit(t testing.TB, b []byte, change func(root *fdt.Node)) []byte {
	t.Helper()
	tree, err := fdt.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	change(tree.Root)
	out, err := tree.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func at(root *fdt.Node, path string) *fdt.Node {
	for _, s := range strings.Split(path, "/") {
		root = root.Child(s)
	}
	return root
}

// flip changes one byte of the first place where what is.
func flip(t testing.TB, b []byte, what string) []byte {
	t.Helper()
	i := bytes.Index(b, []byte(what))
	if i < 0 {
		t.Fatalf("%q is not in the image", what)
	}
	out := bytes.Clone(b)
	out[i] ^= 1
	return out
}

// TestPeerUBoot lets U-Boot 2023.01 decide about what we signed and what was
// done to it afterwards. Our Verify with that version's profile must agree in
// every case; what U-Boot said is in the test's log.
func TestPeerUBoot(t *testing.T) {
	board := uboottest.Find(t)
	plain := fitdemo.FIT("1.2.3", "conf-1", "conf-2")
	dev, other := shared(t, "dev", alg.RSA2048), shared(t, "other", alg.RSA2048)
	thief := shared(t, "dev", alg.RSA3072) // another key of the same name
	signed := sign(t, plain, fit.PlanOptions{}, "", dev)
	later := sign(t, fitdemo.FIT("9.9.9", "conf-1", "conf-2"), fit.PlanOptions{}, "", dev)
	boots := fitdemo.Line + "1.2.3"
	const start, boot = "bootm start " + uboottest.LoadAddress + "#conf-1", "bootm " + uboottest.LoadAddress + "#conf-1"

	both := sign(t, plain, fit.PlanOptions{}, "", dev, other)
	cases := []struct {
		name    string
		fit     []byte
		trust   []key
		mode    string
		lax     bool   // the keys are not required
		scheme  alg.ID // of the key nodes; the default if empty
		command string
		says    []string // U-Boot's words, all of them
		never   []string
		accepts bool
		valid   bool
		code    problem.Code
	}{
		{
			name: "signed boots", fit: signed, trust: []key{dev}, command: boot,
			says: []string{"sha256,rsa2048:dev+ OK", boots}, accepts: true, valid: true,
		},
		{
			name: "the other configuration boots", fit: signed, trust: []key{dev},
			command: "bootm " + uboottest.LoadAddress + "#conf-2",
			says:    []string{"Using 'conf-2' configuration", "sha256,rsa2048:dev+ OK", boots}, accepts: true, valid: true,
		},
		{
			name: "rsa3072", fit: sign(t, plain, fit.PlanOptions{}, "", thief), trust: []key{thief}, command: start,
			says: []string{"sha256,rsa3072:dev+ OK"}, accepts: true, valid: true,
		},
		{
			name: "rsa4096 with sha512", fit: sign(t, plain, fit.PlanOptions{Hash: "sha512"}, alg.RSA4096PKCS1SHA512, shared(t, "dev", alg.RSA4096)),
			trust: []key{shared(t, "dev", alg.RSA4096)}, scheme: alg.RSA4096PKCS1SHA512, command: start,
			says: []string{"sha512,rsa4096:dev+ OK"}, accepts: true, valid: true,
		},
		{
			name: "sha384", fit: sign(t, plain, fit.PlanOptions{}, alg.RSA2048PKCS1SHA384, dev), trust: []key{dev}, scheme: alg.RSA2048PKCS1SHA384, command: start,
			says: []string{"sha384,rsa2048:dev+ OK"}, accepts: true, valid: true,
		},
		{
			name: "the right key with another algo in its node", fit: sign(t, plain, fit.PlanOptions{}, alg.RSA2048PKCS1SHA384, dev), trust: []key{dev}, command: start,
			says: []string{"sha384,rsa2048:dev-  error!"}, valid: true, code: problem.TrustAnchorMissing,
		},
		{
			name: "wrong key", fit: sign(t, plain, fit.PlanOptions{KeyNameHint: "dev"}, "", other), trust: []key{dev}, command: boot,
			says: []string{
				"sha256,rsa2048:dev-  error!", "Verification failed for '<NULL>' hash node in 'conf-1' config node",
				"Failed to verify required signature 'key-dev'", "Bad Data Hash", "ERROR: can't get kernel image!",
			},
			never: []string{fitdemo.Line}, code: problem.TrustAnchorMissing,
		},
		{
			name: "payload byte flipped", fit: flip(t, signed, fitdemo.Line), trust: []key{dev}, command: boot,
			says: []string{
				"sha256,rsa2048:dev+ OK", "sha256 error!",
				"Bad hash value for 'hash-1' hash node in 'kernel-1' image node", "Bad Data Hash",
			},
			never: []string{boots}, code: problem.SigInvalid,
		},
		{
			name: "metadata byte flipped", fit: flip(t, signed, "prints one line"), trust: []key{dev}, command: boot,
			says: []string{
				"sha256,rsa2048:dev-  error!", "Verification failed for '<NULL>' hash node in 'conf-1' config node",
				"Failed to verify required signature 'key-dev'",
			},
			never: []string{fitdemo.Line}, code: problem.SigInvalid,
		},
		{
			name: "unsigned", fit: plain, trust: []key{dev}, command: boot,
			says:  []string{"No 'signature' subnode found for '<NULL>' hash node in 'conf-1' config node", "Failed to verify required signature 'key-dev'"},
			never: []string{fitdemo.Line}, code: problem.SigMissing,
		},
		{
			name: "configuration signature grafted from another image", trust: []key{dev}, command: boot,
			fit: edit(t, later, func(root *fdt.Node) {
				tree, err := fdt.Read(bytes.NewReader(signed), int64(len(signed)))
				if err != nil {
					t.Fatal(err)
				}
				to, from := at(root, "configurations/conf-1/signature-1"), at(tree.Root, "configurations/conf-1/signature-1")
				for _, p := range from.Props {
					v, _ := p.Held()
					to.Set(p.Name, v)
				}
			}),
			says:  []string{"sha256,rsa2048:dev-  error!", "Failed to verify required signature 'key-dev'"},
			never: []string{fitdemo.Line}, code: problem.SigInvalid,
		},
		{
			name: "configuration without its image's hash", trust: []key{dev}, command: boot,
			fit: edit(t, signed, func(root *fdt.Node) {
				k := at(root, "images/kernel-1")
				k.Remove(k.Child("hash-1"))
			}),
			says:  []string{"No hash nodes in image 'kernel-1'", "Failed to build hash node list for '<NULL>' hash node in 'conf-1' config node"},
			never: []string{fitdemo.Line}, code: problem.SigCoverage,
		},
		{
			name: "unit address", trust: []key{dev}, command: boot,
			fit: edit(t, signed, func(root *fdt.Node) {
				at(root, "images").Add("kernel-1@evil").SetString("description", "evil")
			}),
			says:  []string{"Signature checking prevents use of unit addresses (@) in nodes"},
			never: []string{fitdemo.Line}, code: problem.ImageMalformed,
		},
		{
			name: "pss", fit: sign(t, plain, fit.PlanOptions{Padding: "pss"}, "", dev), trust: []key{dev}, command: boot,
			says:  []string{"sha256,rsa2048:dev-  error!", "Unknown signature algorithm for '<NULL>' hash node in 'conf-1' config node"},
			never: []string{fitdemo.Line}, valid: true, code: problem.TargetCapability,
		},
		{
			name: "ecdsa", fit: sign(t, plain, fit.PlanOptions{}, "", shared(t, "dev", alg.P256)), trust: []key{shared(t, "dev", alg.P256)}, command: boot,
			says:  []string{"sha256,ecdsa256:dev-  error!", "Unknown signature algorithm"},
			never: []string{fitdemo.Line}, valid: true, code: problem.TargetCapability,
		},
		{
			name: "two required keys, one signature", fit: signed, trust: []key{dev, other}, mode: "all", command: boot,
			says: []string{"Failed to verify required signature 'key-other'"}, never: []string{fitdemo.Line}, valid: true, code: problem.SigMissing,
		},
		{
			name: "two required keys, both signatures", fit: both, trust: []key{dev, other}, mode: "all", command: boot,
			says: []string{"sha256,rsa2048:dev+", "sha256,rsa2048:other+", boots}, accepts: true, valid: true,
		},
		{
			name: "any of two keys", fit: signed, trust: []key{other, dev}, mode: "any", command: boot,
			says: []string{"sha256,rsa2048:dev+ OK", boots}, accepts: true, valid: true,
		},
		{
			name: "any of two keys, none", fit: sign(t, plain, fit.PlanOptions{}, "", thief), trust: []key{other, dev}, mode: "any", command: boot,
			says: []string{"Failed to verify 'any' of the required signature(s)"}, never: []string{fitdemo.Line}, code: problem.TrustAnchorMissing,
		},
		{
			name: "unsigned, and nothing required", fit: plain, trust: []key{dev}, lax: true, command: boot,
			says: []string{"Verifying Hash Integrity ... OK", boots}, never: []string{"rsa2048"}, accepts: true, code: problem.TrustNotEnforced,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var pub []image.PublicMaterial
			tr := trust(c.trust...)
			for i, k := range c.trust {
				pub = append(pub, k.material(c.scheme))
				tr.Keys[i].Optional = c.lax
			}
			control, err := fit.AddKeys(board.Tree, pub, fit.TrustOptions{RequiredMode: c.mode, AllowUnsigned: c.lax})
			if err != nil {
				t.Fatal(err)
			}
			said := board.Run(t, control, c.fit, c.command)
			t.Logf("U-Boot says:\n%s", said)
			for _, s := range c.says {
				if !strings.Contains(said, s) {
					t.Errorf("U-Boot did not say %q", s)
				}
			}
			for _, s := range c.never {
				if strings.Contains(said, s) {
					t.Errorf("U-Boot said %q", s)
				}
			}
			p := debian
			p.Options = options(t, fit.VerifyOptions{Configuration: conf(c.command), RequiredMode: c.mode, Algos: algos(t, control)})
			v := verify(t, c.fit, tr, p)
			if v.Accepted != c.accepts || v.Valid != c.valid {
				t.Errorf("ours: valid %v, accepted %v; U-Boot accepts: %v\n%s", v.Valid, v.Accepted, c.accepts, show(v))
			}
			if got := problem.Of(v.Refusal()); c.code != "" && (got == nil || got.Code != c.code) {
				t.Errorf("refused for %v, want %s\n%s", got, c.code, show(v))
			}
			// What we say the device will say, it said.
			for _, f := range v.Findings {
				if f.Severity != image.Fatal {
					continue
				}
				for _, d := range f.Device {
					if !strings.Contains(said, d) {
						t.Errorf("finding %q says that the device prints %q, and it does not", f.What, d)
					}
				}
			}
		})
	}
}

// algos reads the algo of each key from a control tree.
func algos(t testing.TB, control []byte) map[string]string {
	tree, err := fdt.Read(bytes.NewReader(control), int64(len(control)))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, n := range at(tree.Root, "signature").Nodes {
		hint, _ := n.Str("key-name-hint")
		m[hint], _ = n.Str("algo")
	}
	return m
}

func conf(command string) string {
	_, c, _ := strings.Cut(command, "#")
	return c
}

func show(v *image.Verdict) string {
	var b strings.Builder
	for _, f := range v.Findings {
		b.WriteString(string(f.Stage) + " " + string(f.Severity) + " " + string(f.Code) + ": " + f.What + "\n")
	}
	return b.String()
}
