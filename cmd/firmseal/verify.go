package main

import (
	"bytes"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

type verifyCmd struct {
	Image string `arg:"" help:"Image to verify."`

	TrustRoot  string  `name:"trust-root" help:"Trust root file: verify the release's seal and log proof, offline. Default: trustroot.json here." placeholder:"FILE"`
	Seal       string  `help:"Seal; default: IMAGE.seal." placeholder:"FILE"`
	Proof      string  `help:"Log proof; default: IMAGE.tlog-proof." placeholder:"FILE"`
	Product    string  `help:"Product that the device is." placeholder:"NAME"`
	HardwareID string  `name:"hardware-id" help:"Board that the device is." placeholder:"BOARD"`
	Counter    *uint64 `name:"device-counter" help:"The device's security counter." placeholder:"N"`
	Version    string  `name:"device-version" help:"The version that the device runs." placeholder:"1.2.3"`
	UnsafeTest bool    `name:"unsafe-test" help:"Accept a release of environment test, and nothing else. Never on a device in a customer's hands."`

	Format    string          `short:"f" help:"Verify the image itself, as its bootloader would, with --key. Default: detected." placeholder:"FORMAT"`
	Key       []string        `short:"k" help:"Public key (PEM or DER) that the bootloader holds, with --format or alone; NAME=FILE gives its name there. Repeat." placeholder:"[NAME=]FILE"`
	Signature string          `help:"Detached signature; default: IMAGE.sig, where the seal or format has one." placeholder:"FILE"`
	Verifier  string          `help:"Verifier that decides, as u-boot or mcuboot." placeholder:"NAME"`
	VerifierV string          `name:"verifier-version" help:"Its version." placeholder:"VERSION"`
	Options   json.RawMessage `help:"The verifier's options, as JSON: firmseal help format NAME." placeholder:"JSON"`

	Checksum string `help:"A file with the image's SHA-256. It proves integrity only: the answer is never 'verified'." placeholder:"FILE"`
}

func (c *verifyCmd) Run(a *app) error {
	switch {
	case c.Checksum != "":
		return c.checksum(a)
	case len(c.Key) > 0:
		return c.bootloader(a)
	case c.Format != "" || c.Verifier != "" || len(c.Options) > 0:
		return problem.New(problem.Usage, "verifying as the bootloader needs its public key").WithHint("add --key pub.pem")
	}
	return c.sealed(a)
}

// checksum answers for a digest without a signer (requirement A16).
func (c *verifyCmd) checksum(a *app) error {
	text, err := a.readInput(c.Checksum, 64<<10)
	if err != nil {
		return err
	}
	want := ""
	for _, w := range strings.Fields(string(text)) {
		if b, err := hex.DecodeString(w); err == nil && len(b) == 32 {
			want = strings.ToLower(w)
			break
		}
	}
	if want == "" {
		return problem.New(problem.Usage, "%s holds no SHA-256", c.Checksum)
	}
	f, err := openFile(c.Image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	got, err := a.hash(f, st.Size())
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(got), []byte(want)) != 1 {
		return problem.New(firmseal.CodeImageMismatch, "%s is not the file of the checksum", c.Image).Seen("it has %s, the checksum is %s", got, want)
	}
	return problem.New(problem.SigMissing, "integrity only, no signer: the checksum matches, and anybody could have made it").
		Seen("SHA-256 %s", got).WithHint("firmseal verify %s --trust-root trustroot.json", c.Image)
}

// beside finds the default of a file that goes with the image: the image's name
// with an ending, also without a signed image's own.
func beside(given, image, ending string) string {
	if given != "" {
		return given
	}
	return image + ending
}

func (a *app) optional(path string, given bool, most int64) ([]byte, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && !given {
		return nil, nil
	}
	return a.readSome(path, most)
}

// verified is what verify prints about a sealed release: who, what and which
// bytes, as one bound statement.
type verified struct {
	OK          bool     `json:"ok"`
	Product     string   `json:"product"`
	Version     string   `json:"version"`
	Counter     uint64   `json:"security_counter"`
	Environment string   `json:"environment"`
	Emergency   bool     `json:"emergency,omitempty"`
	BytesUnseen bool     `json:"bytes_unseen,omitempty"`
	HardwareIDs []string `json:"hardware_ids"`
	Format      string   `json:"format"`
	ImageSHA256 string   `json:"image_sha256"`
	Requester   string   `json:"requester"`
	Request     string   `json:"request"`
	SignedWith  []string `json:"signed_with"`
	SealedBy    []sealer `json:"sealed_by"`
	Threshold   int      `json:"threshold"`
	SealID      string   `json:"seal_id"`
	Created     string   `json:"created"`
	Policy      string   `json:"policy"`
	BuildID     string   `json:"build_id,omitempty"`
	LogOrigin   string   `json:"log_origin,omitempty"`
	LogIndex    *int64   `json:"log_index,omitempty"`
	LogSize     int64    `json:"log_size,omitempty"`

	// SignatureChecked is there for formats with a signature file.
	SignatureChecked *bool `json:"signature_checked,omitempty"`
}

type sealer struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

func (c *verifyCmd) sealed(a *app) error {
	path := c.TrustRoot
	if path == "" {
		path = "trustroot.json"
		if _, err := os.Stat(path); err != nil {
			return problem.New(problem.Usage, "no trust root was named, and there is no trustroot.json here").
				Seen("a seal proves something only against keys that you trust already").WithHint("get it from the machine that signs: firmseal trust export --out trustroot.json")
		}
	}
	rootText, err := a.readSome(path, firmseal.MaxTrustRoot)
	if err != nil {
		return err
	}
	root, err := firmseal.ParseTrustRoot(rootText)
	if err != nil {
		return err
	}
	in := firmseal.VerifyInput{TrustRoot: root, Product: c.Product, HardwareID: c.HardwareID, UnsafeTest: c.UnsafeTest}
	if in.Seal, err = a.optional(beside(c.Seal, c.Image, ".seal"), c.Seal != "", firmseal.MaxEnvelope); err != nil {
		return err
	}
	if in.Proof, err = a.optional(beside(c.Proof, c.Image, ".tlog-proof"), c.Proof != "", firmseal.MaxProof); err != nil {
		return err
	}
	// Another release's signature may lie beside an image that carries its own.
	if c.Signature != "" || detached(in.Seal) {
		if in.Signature, err = a.optional(beside(c.Signature, c.Image, ".sig"), c.Signature != "", 1<<20); err != nil {
			return err
		}
	}
	if c.Counter != nil || c.Version != "" {
		d := &firmseal.DeviceState{Version: c.Version}
		if c.Counter != nil {
			d.SecurityCounter = *c.Counter
		}
		in.Device = d
	}
	f, err := openFile(c.Image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return problem.New(firmseal.CodeImageMismatch, "%s is empty", c.Image)
	}
	p := a.progress("verifying", st.Size())
	in.Image, in.ImageSize = &counting{r: f, step: p.at}, st.Size()
	v, err := firmseal.Verify(a.ctx, in)
	p.done()
	if err != nil {
		return err
	}
	r := v.Statement.Release
	out := verified{
		OK: true, Product: r.Product, Version: r.Version, Counter: r.SecurityCounter, Environment: r.Environment, Emergency: r.Emergency,
		BytesUnseen: r.BytesUnseen, HardwareIDs: r.HardwareIDs, Format: r.Format, ImageSHA256: v.Statement.Subjects[0].SHA256,
		Requester: r.Requester, Request: r.Request.ID, SignedWith: r.SignedWith, Threshold: v.Threshold, SealID: v.ID,
		Created: r.Created.Format("2006-01-02T15:04:05Z"), Policy: r.Policy, BuildID: r.BuildID,
	}
	for _, k := range v.Signers {
		out.SealedBy = append(out.SealedBy, sealer{k.Name, k.ID()})
	}
	if v.Checkpoint != nil {
		out.LogOrigin, out.LogIndex, out.LogSize = v.Checkpoint.Origin, &v.LeafIndex, v.Checkpoint.Size
	}
	if len(v.Statement.Subjects) > 1 {
		out.SignatureChecked = &v.SignatureChecked
	}
	return a.show("Verified", out, func(w io.Writer) {
		mark := ""
		if v.Test() {
			mark = "   TEST, not for production devices"
		}
		if r.BytesUnseen {
			mark += "   BYTES UNSEEN: the signer saw a digest only"
		}
		if r.Emergency {
			mark += "   EMERGENCY"
		}
		fmt.Fprintf(w, "ok    %s %s, security counter %d, for %s%s\n", r.Product, r.Version, r.SecurityCounter, strings.Join(r.HardwareIDs, ", "), mark)
		fmt.Fprintf(w, "image   %s (%d bytes, %s)\n", out.ImageSHA256, v.ImageSize, r.Format)
		if out.SignatureChecked != nil && !v.SignatureChecked {
			fmt.Fprintf(w, "warn    the signature file was not looked at: it is not beside the image; name it with --signature\n")
		}
		fmt.Fprintf(w, "asked   %s, request %s\n", r.Requester, r.Request.ID)
		for _, k := range r.SignedWith {
			fmt.Fprintf(w, "signed  key %s\n", k)
		}
		for _, k := range out.SealedBy {
			fmt.Fprintf(w, "sealed  %s %s (%d needed)\n", k.Name, k.ID, v.Threshold)
		}
		if v.Checkpoint != nil {
			fmt.Fprintf(w, "logged  entry %d of %d in %s\n", v.LeafIndex, v.Checkpoint.Size, v.Checkpoint.Origin)
		}
	})
}

// detached reports whether a seal is about an image and its signature file. A
// seal that cannot be read is about nothing; Verify says what is wrong with it.
func detached(seal []byte) bool {
	env, err := firmseal.ParseEnvelope(seal)
	if err != nil {
		return false
	}
	st, err := env.Statement()
	return err == nil && len(st.Subjects) > 1
}

// bootloader verifies the image itself with the format's own verifier.
func (c *verifyCmd) bootloader(a *app) error {
	f, err := openFile(c.Image)
	if err != nil {
		return err
	}
	defer f.Close()
	src, err := fileSource(f)
	if err != nil {
		return err
	}
	var t image.Trust
	for _, k := range c.Key {
		tk, err := a.trustedKey(k)
		if err != nil {
			return err
		}
		t.Keys = append(t.Keys, tk)
	}
	all := formats()
	var form image.Format
	if c.Format != "" {
		form, err = all.ByName(c.Format)
	} else if form, _ = all.Detect(src); form == nil {
		err = problem.New(problem.ImageUnknownFormat, "no format recognises %s", c.Image).WithHint("firmseal verify %s --format raw --key pub.pem --signature %s.sig", c.Image, c.Image)
	}
	if err != nil {
		return err
	}
	if t.Detached, err = a.optional(beside(c.Signature, c.Image, ".sig"), c.Signature != "", 1<<20); err != nil {
		return err
	}
	t.Counter = c.Counter
	p := a.progress("verifying", src.Size())
	v, err := form.Verify(a.ctx, &watched{Source: src, step: p.at}, t, image.Profile{Verifier: c.Verifier, Version: c.VerifierV, Options: image.Options(c.Options)})
	p.done()
	if err != nil {
		return err
	}
	_ = a.show("Verdict", v, func(w io.Writer) { printVerdict(w, v) })
	if v.Refusal() != nil {
		return &exitError{problem.ExitRefused} // whatever the finding: a verdict was made, and it is no
	}
	return nil
}

func printVerdict(w io.Writer, v *image.Verdict) {
	word := map[bool]string{true: "ok  ", false: "FAIL"}
	target := v.Profile.Verifier
	if target == "" {
		target = "the strictest current verifier"
	}
	fmt.Fprintf(w, "%s  %s signature is right for these bytes and a trusted key\n", word[v.Valid], v.Format)
	fmt.Fprintf(w, "%s  accepted by %s\n", word[v.Accepted], strings.TrimSpace(target+" "+v.Profile.Version))
	for _, f := range v.Findings {
		mark := map[image.Severity]string{image.OK: "ok  ", image.Warn: "warn", image.Fatal: "FAIL"}[f.Severity]
		fmt.Fprintf(w, "%s  %-12s %s", mark, f.Stage, f.What)
		if f.Code != "" {
			fmt.Fprintf(w, "   %s", f.Code)
		}
		if f.Range != nil {
			fmt.Fprintf(w, "   bytes %d to %d", f.Range.Off, f.Range.Off+f.Range.Len)
		}
		fmt.Fprintln(w)
		if f.Severity == image.OK {
			continue
		}
		for _, l := range []struct{ name, text string }{
			{"expected", f.Expected}, {"saw", f.Actual}, {"device", strings.Join(f.Device, " | ")}, {"cause", f.Cause}, {"next", f.Next},
		} {
			if l.text != "" {
				fmt.Fprintf(w, "      %-8s %s\n", l.name, l.text)
			}
		}
	}
}

// trustedKey reads [NAME=]FILE.
func (a *app) trustedKey(s string) (image.TrustedKey, error) {
	name, path, ok := strings.Cut(s, "=")
	if !ok {
		name, path = "", s
	}
	b, err := a.readInput(path, 64<<10)
	if err != nil {
		return image.TrustedKey{}, err
	}
	der := b
	if block, _ := pem.Decode(b); block != nil {
		switch block.Type {
		case "PUBLIC KEY":
			der = block.Bytes
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return image.TrustedKey{}, problem.New(problem.KeyMalformed, "%s is not a certificate that can be read", path).Because(err)
			}
			der = cert.RawSubjectPublicKeyInfo
		default:
			return image.TrustedKey{}, problem.New(problem.KeyMalformed, "%s holds a %s", path, block.Type).
				Seen("a PUBLIC KEY or CERTIFICATE is needed").WithHint("openssl pkey -in %s -pubout", path)
		}
	}
	if _, _, err := alg.ParseSPKI(der); err != nil {
		p := *problem.Of(err)
		if p.Next == "" {
			p.Next = "name a public key, PEM or DER: firmseal key show NAME --pem"
		}
		return image.TrustedKey{}, &p
	}
	return image.TrustedKey{Name: name, SPKI: bytes.Clone(der)}, nil
}

type source struct {
	*os.File
	size int64
}

func (s source) Size() int64 { return s.size }

func fileSource(f *os.File) (image.Source, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return source{f, st.Size()}, nil
}
