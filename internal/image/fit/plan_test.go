package fit_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit"
	"github.com/firmseal/firmseal/internal/image/fit/fdt"
	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/problem"
)

// TestPlanRefuses: what must not be signed is refused with its own code.
func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	plain := fitdemo.FIT("1.0.0", "conf-1", "conf-2")
	k := shared(t, "dev", alg.P256)
	signed := sign(t, plain, fit.PlanOptions{}, "", k)
	change := func(f func(root *fdt.Node)) []byte { return edit(t, plain, f) }
	const pos = 0x700
	tight := append(external(t, 8, true, false), "firmware"...)
	tight = edit(t, tight, func(root *fdt.Node) { at(root, "images/kernel-1").SetU32("data-position", pos) })
	tight = append(tight, make([]byte, pos+8-len(tight))...)
	for _, c := range []struct {
		name string
		src  []byte
		o    fit.PlanOptions
		key  alg.KeyType
		code problem.Code
	}{
		{"signed already", signed, fit.PlanOptions{}, alg.P256, problem.ImageAlreadySigned},
		{"append without a prepared place", signed, fit.PlanOptions{Append: true}, alg.P256, problem.ImageNoRoom},
		{"ed25519", plain, fit.PlanOptions{}, alg.Ed25519, problem.AlgUnsupported},
		{"pss with an ecdsa key", plain, fit.PlanOptions{Padding: "pss"}, alg.P256, problem.AlgUnsupported},
		{"unknown configuration", plain, fit.PlanOptions{Configurations: []string{"conf-9"}}, alg.P256, problem.ImageOptions},
		{"a hint that is a path", plain, fit.PlanOptions{KeyNameHint: "a/b"}, alg.P256, problem.ImageOptions},
		{"replace and append", plain, fit.PlanOptions{Replace: true, Append: true}, alg.P256, problem.ImageOptions},
		{"unknown hashes", plain, fit.PlanOptions{Hashes: "none"}, alg.P256, problem.ImageOptions},
		{"changed data", flip(t, plain, fitdemo.Line), fit.PlanOptions{}, alg.P256, problem.SigInvalid},
		{"unit address", change(func(r *fdt.Node) { at(r, "images").Add("x@1").SetString("description", "x") }), fit.PlanOptions{}, alg.P256, problem.ImageMalformed},
		{"no configuration", change(func(r *fdt.Node) { r.Remove(r.Child("configurations")) }), fit.PlanOptions{}, alg.P256, problem.ImageMalformed},
		{"a default that is not there", change(func(r *fdt.Node) { at(r, "configurations").SetString("default", "conf-9") }), fit.PlanOptions{}, alg.P256, problem.ImageMalformed},
		{"an image that is not there", change(func(r *fdt.Node) { at(r, "configurations/conf-1").SetString("ramdisk", "initrd-1") }), fit.PlanOptions{}, alg.P256, problem.ImageMalformed},
		{"only a weak hash, kept", change(func(r *fdt.Node) {
			at(r, "images/kernel-1/hash-1").SetString("algo", "crc32")
		}), fit.PlanOptions{Hashes: "keep"}, alg.P256, problem.SigCoverage},
		{"a hash that U-Boot skips", change(func(r *fdt.Node) { at(r, "images/kernel-1/hash-1").SetU32("uboot-ignore", 1) }), fit.PlanOptions{}, alg.P256, problem.SigCoverage},
		{"dm-verity, and nothing said", change(func(r *fdt.Node) { at(r, "images/kernel-1").Add("dm-verity").SetString("algo", "sha256") }), fit.PlanOptions{}, alg.P256, problem.ImageOptions},
		{"no room before the data", tight, fit.PlanOptions{}, alg.RSA4096, problem.ImageNoRoom},
		{"cut off", plain[:len(plain)-9], fit.PlanOptions{}, alg.P256, problem.ImageTruncated},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := trySign(t, c.src, c.o, "", shared(t, "dev", c.key))
			if !problem.Has(err, c.code) {
				t.Errorf("got %v, want %s", err, c.code)
			}
		})
	}
}

// TestRepairs: weak or missing hashes get a strong one, and wrong values are
// corrected only when that was asked for.
func TestRepairs(t *testing.T) {
	t.Parallel()
	k := shared(t, "dev", alg.P256)
	weak := edit(t, fitdemo.FIT("1.0.0"), func(r *fdt.Node) {
		h := at(r, "images/kernel-1/hash-1")
		h.Props = nil
		h.SetString("algo", "crc32") // without a value: it is filled in
	})
	if v := verify(t, weak, image.Trust{}, image.Profile{}); v.Accepted {
		t.Error("an image with an empty hash node was accepted")
	}
	out := sign(t, weak, fit.PlanOptions{Hash: "sha512"}, "", k)
	if v := verify(t, out, trust(k), image.Profile{}); v.Refusal() != nil {
		t.Errorf("filled: %v", v.Refusal())
	}
	tree, err := fdt.Read(bytes.NewReader(out), int64(len(out)))
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := at(tree.Root, "images/kernel-1/hash-2").Str("algo"); a != "sha512" {
		t.Errorf("the added hash is %q", a)
	}
	changed := flip(t, fitdemo.FIT("1.0.0"), fitdemo.Line)
	if v := verify(t, sign(t, changed, fit.PlanOptions{Hashes: "recompute"}, "", k), trust(k), image.Profile{}); v.Refusal() != nil {
		t.Errorf("recomputed: %v", v.Refusal())
	}
}

// TestAppend: a prepared node is filled, and the signature that was there stays
// right. That is how two parties sign one image.
func TestAppend(t *testing.T) {
	t.Parallel()
	a, b := shared(t, "a", alg.P256), shared(t, "b", alg.RSA2048)
	both := sign(t, fitdemo.FIT("1.0.0"), fit.PlanOptions{}, "", a, b)
	prepared := edit(t, both, func(r *fdt.Node) { at(r, "configurations/conf-1/signature-2").Props = nil })
	p := image.Profile{Options: options(t, fit.VerifyOptions{RequiredMode: "all"})}
	if v := verify(t, prepared, trust(a, b), p); v.Accepted {
		t.Fatal("one signature was enough for two required keys")
	}
	if v := verify(t, prepared, trust(a), p); v.Refusal() != nil {
		t.Fatalf("before: %v", v.Refusal())
	}
	out := sign(t, prepared, fit.PlanOptions{Append: true}, "", b)
	if v := verify(t, out, trust(a, b), p); v.Refusal() != nil {
		t.Errorf("after: %v", v.Refusal())
	}
}

// TestDMVerity: the two ways of U-Boot to treat a dm-verity node do not verify
// each other's signatures, and the finding says so.
func TestDMVerity(t *testing.T) {
	t.Parallel()
	k := shared(t, "dev", alg.P256)
	src := edit(t, fitdemo.FIT("1.0.0"), func(r *fdt.Node) {
		at(r, "images/kernel-1").Add("dm-verity").SetString("algo", "sha256")
	})
	yes, no := true, false
	for _, c := range []struct {
		signed  *bool
		version string
		code    problem.Code
	}{
		{&yes, "2026.10", ""},
		{&no, "2026.04", ""},
		{&yes, "2026.04", problem.TargetCapability},
		{&no, "2026.10", problem.TargetCapability},
	} {
		out := sign(t, src, fit.PlanOptions{DMVerity: c.signed}, "", k)
		err := verify(t, out, trust(k), image.Profile{Verifier: "u-boot", Version: c.version}).Refusal()
		if c.code == "" && err != nil || c.code != "" && !problem.Has(err, c.code) {
			t.Errorf("signed with dm_verity %v, verified by %s: %v", *c.signed, c.version, err)
		}
	}
}

// TestDeterministic: the same request gives the same bytes to sign and, with
// the same signatures, the same file.
func TestDeterministic(t *testing.T) {
	t.Parallel()
	k := shared(t, "dev", alg.RSA2048)
	src := fitdemo.FIT("1.0.0", "a", "b")
	if !bytes.Equal(src, fitdemo.FIT("1.0.0", "a", "b")) {
		t.Error("the demo image differs from run to run")
	}
	if !bytes.Equal(sign(t, src, fit.PlanOptions{}, "", k), sign(t, src, fit.PlanOptions{}, "", k)) {
		t.Error("PKCS #1 signatures over the same image gave other files")
	}
}

// TestSelected: only the chosen configuration is signed, and Verify says of the
// other that it is not.
func TestSelected(t *testing.T) {
	t.Parallel()
	k := shared(t, "dev", alg.P256)
	out := sign(t, fitdemo.FIT("1.0.0", "conf-1", "conf-2"), fit.PlanOptions{Configurations: []string{"conf-1"}}, "", k)
	v := verify(t, out, trust(k), image.Profile{})
	if v.Refusal() != nil || !strings.Contains(show(v), "conf-2 is not signed") {
		t.Errorf("%v\n%s", v.Refusal(), show(v))
	}
	p := image.Profile{Options: options(t, fit.VerifyOptions{Configuration: "conf-2"})}
	if err := verify(t, out, trust(k), p).Refusal(); !problem.Has(err, problem.SigMissing) {
		t.Errorf("conf-2: %v", err)
	}
	// Another configuration's signature does not fit.
	moved := edit(t, sign(t, fitdemo.FIT("1.0.0", "conf-1", "conf-2"), fit.PlanOptions{}, "", k), func(r *fdt.Node) {
		a, b := at(r, "configurations/conf-1/signature-1"), at(r, "configurations/conf-2/signature-1")
		a.Props, b.Props = b.Props, a.Props
	})
	if v := verify(t, moved, trust(k), image.Profile{}); v.Valid || v.Accepted {
		t.Error("signatures of two configurations were exchanged, unseen")
	}
}

// TestNotEnforced: a key that is not required protects nothing.
func TestNotEnforced(t *testing.T) {
	t.Parallel()
	k := shared(t, "dev", alg.P256)
	for _, b := range [][]byte{fitdemo.FIT("1.0.0"), sign(t, fitdemo.FIT("1.0.0"), fit.PlanOptions{}, "", k)} {
		tr := trust(k)
		tr.Keys[0].Optional = true
		for _, tr := range []image.Trust{tr, {}} {
			v := verify(t, b, tr, image.Profile{})
			if !v.Accepted || v.Valid || !problem.Has(v.Refusal(), problem.TrustNotEnforced) {
				t.Errorf("valid %v, accepted %v, %v", v.Valid, v.Accepted, v.Refusal())
			}
		}
	}
}

// zeros is a source of a FIT with one huge embedded property.
type zeros struct {
	head, tail []byte
	size       int64 // of the zeros between them
}

func (z zeros) Size() int64 { return int64(len(z.head)) + z.size + int64(len(z.tail)) }

func (z zeros) ReadAt(p []byte, off int64) (int, error) {
	if off >= z.Size() {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && off < z.Size() {
		m := 0
		switch h := int64(len(z.head)); {
		case off < h:
			m = copy(p[n:], z.head[off:])
		case off < h+z.size:
			m = int(min(int64(len(p)-n), h+z.size-off))
			clear(p[n : n+m])
		default:
			m = copy(p[n:], z.tail[off-h-z.size:])
		}
		n, off = n+m, off+int64(m)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// TestEmbeddedIsStreamed: 200 MiB inside the tree are hashed and copied without
// being held.
func TestEmbeddedIsStreamed(t *testing.T) {
	if testing.Short() {
		t.Skip("200 MiB are not for -short")
	}
	const size = 200 << 20
	// A FIT whose kernel has 100 KiB of a mark; the mark is then blown up and the
	// lengths corrected.
	const mark = 100 << 10
	small := edit(t, fitdemo.FIT("1.0.0"), func(r *fdt.Node) {
		k := at(r, "images/kernel-1")
		k.Set("data", make([]byte, mark))
		k.Remove(k.Child("hash-1"))
	})
	tree, err := fdt.Read(bytes.NewReader(small), int64(len(small)))
	if err != nil {
		t.Fatal(err)
	}
	off := at(tree.Root, "images/kernel-1").Prop("data").Off
	head, tail := bytes.Clone(small[:off]), bytes.Clone(small[off+mark:])
	grow := func(at int64) {
		v := uint32(head[at])<<24 | uint32(head[at+1])<<16 | uint32(head[at+2])<<8 | uint32(head[at+3])
		v += size - mark
		copy(head[at:], []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	}
	grow(4)
	grow(12)
	grow(36)
	grow(off - 8)
	src := zeros{head, tail, size}
	k := shared(t, "dev", alg.P256)
	var total int64
	s, err := fit.New().Plan(t.Context(), src, nil, []image.PublicMaterial{k.material("")})
	if err != nil {
		t.Fatal(err)
	}
	reqs, _, err := s.Next(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Next(t.Context(), []image.Signature{answer(t, reqs[0], k)}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Embed(t.Context(), countWriter{&total})
	if err != nil {
		t.Fatal(err)
	}
	if total != r.Size || total < size {
		t.Errorf("written were %d bytes, the receipt says %d", total, r.Size)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Embed(ctx, io.Discard); err == nil {
		t.Error("a cancelled Embed went on")
	}
}

type countWriter struct{ n *int64 }

func (c countWriter) Write(b []byte) (int, error) {
	if len(b) > 1<<20 {
		panic("more than a MiB in one piece")
	}
	*c.n += int64(len(b))
	return len(b), nil
}

// TestInspectTraps: what has gone wrong in the field is named.
func TestInspectTraps(t *testing.T) {
	t.Parallel()
	k := shared(t, "dev", alg.RSA2048)
	src := edit(t, sign(t, fitdemo.FIT("1.0.0", "conf-1", "conf-2"), fit.PlanOptions{Configurations: []string{"conf-1"}}, "", k), func(r *fdt.Node) {
		im := at(r, "images")
		im.Add("extra@1").SetString("description", "alone")
		at(r, "images/fdt-1").Add("signature-1").SetString("algo", "sha256,rsa2048")
		at(r, "images/fdt-1/hash-1").SetString("algo", "sha1")
	})
	rep, err := fit.New().Inspect(t.Context(), image.Bytes(src))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range rep.Findings {
		all = append(all, f.What)
	}
	for _, want := range []string{
		"extra@1 has a unit address", "extra@1 has no hash node", "extra@1 is in no configuration", "fdt-1 is signed by itself",
		"fdt-1 is sha1", "conf-2 is not signed",
	} {
		if !slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("no finding says %q:\n%s", want, strings.Join(all, "\n"))
		}
	}
	if len(rep.Signatures) != 1 || rep.Signatures[0].Alg != alg.RSA2048PKCS1SHA256 || !rep.Facts.Signed {
		t.Errorf("signatures %+v", rep.Signatures)
	}
}
