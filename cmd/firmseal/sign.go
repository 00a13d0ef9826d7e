package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/problem"
)

type signCmd struct {
	Image           string            `arg:"" help:"Image to sign."`
	Profile         string            `short:"p" help:"Profile of the policy; default: that of firmseal.yaml." placeholder:"NAME"`
	Version         string            `help:"Version of the release (semantic version, for people)." placeholder:"1.2.3"`
	SecurityCounter *uint64           `name:"security-counter" aliases:"counter" help:"Security counter (for enforcement); never below the last release's." placeholder:"N"`
	HardwareID      []string          `name:"hardware-id" help:"Board that may run the image; repeat for each." placeholder:"BOARD"`
	Variant         string            `help:"Tells images of one version for one board apart." placeholder:"NAME"`
	MinimumVersion  string            `name:"minimum-version" help:"A device must run at least this before." placeholder:"1.0.0"`
	Requires        map[string]string `help:"Another product and its minimum version; repeat." placeholder:"PRODUCT=VERSION" mapsep:","`
	Emergency       bool              `help:"Emergency release: waives the order of versions, never of counters."`
	Meta            map[string]string `help:"Further fact for the policy; repeat." placeholder:"KEY=VALUE" mapsep:","`
	BuildID         string            `name:"build-id" help:"Correlates source, CI, signature and rollout." placeholder:"ID"`
	BuildFinished   time.Time         `name:"build-finished" help:"When the build ended (RFC 3339); for the latency metric." placeholder:"TIME" format:"2006-01-02T15:04:05Z07:00"`
	DigestOnly      bool              `name:"digest-only" help:"Send the digest, not the image; needs a profile that allows it, and is marked 'bytes unseen' everywhere."`
	Idempotency     string            `name:"idempotency-key" help:"The same key and request give the same answer; default: random." placeholder:"KEY"`
	Wait            time.Duration     `help:"Wait at most this long for the signature." default:"60s"`
	NoWait          bool              `name:"no-wait" help:"Submit and return; fetch later with firmseal release fetch."`
	Out             string            `name:"out" help:"Where to write the signed image (default: IMAGE with .signed before its extension; detached formats write IMAGE.sig). The seal and proof go beside it." placeholder:"FILE"`
}

// Signed is what sign prints: the request, and where its files are.
type signed struct {
	Request client.Request  `json:"request"`
	Release *client.Release `json:"release,omitempty"`
	Files   *files          `json:"files,omitempty"`
}

// files are the paths of a fetched release.
type files struct {
	Image     string `json:"image"`
	Signature string `json:"signature,omitempty"`
	Seal      string `json:"seal"`
	Proof     string `json:"proof"`
}

func (c *signCmd) Run(a *app) error {
	if c.Profile == "" {
		s, err := a.settings()
		if err != nil {
			return err
		}
		c.Profile = s.Profile
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
	size := st.Size()
	if size == 0 {
		return problem.New(problem.Usage, "%s is empty", c.Image)
	}
	n := client.NewRequest{
		Profile: c.Profile, Version: c.Version, SecurityCounter: c.SecurityCounter, HardwareIDs: c.HardwareID, Variant: c.Variant,
		MinimumVersion: c.MinimumVersion, Emergency: c.Emergency, BytesUnseen: c.DigestOnly, Metadata: c.Meta, BuildID: c.BuildID,
		Input: client.Input{Name: filepath.Base(c.Image), Size: size},
	}
	for p, v := range c.Requires {
		n.Dependencies = append(n.Dependencies, client.Dependency{Product: p, MinimumVersion: v})
	}
	if !c.BuildFinished.IsZero() {
		n.BuildFinished = c.BuildFinished.UnixMicro()
	}
	return a.withClient(func(cl *client.Client) error {
		if !c.DigestOnly && size <= inline {
			if n.Input.Content, err = io.ReadAll(io.LimitReader(f, inline)); err != nil {
				return err
			}
		} else {
			digest, err := a.hash(f, size)
			if err != nil {
				return err
			}
			n.Input.SHA256 = digest
			if !c.DigestOnly {
				p := a.progress("uploading", size)
				if err := cl.Upload(a.ctx, f, digest, size, p.at); err != nil {
					return err
				}
				p.done()
			}
		}
		wait := c.Wait
		if c.NoWait {
			wait = 0
		}
		r, err := cl.Sign(a.ctx, n, c.Idempotency, min(wait, maxPoll))
		deadline := time.Now().Add(wait)
		for err == nil && !rests(r.State) && wait > 0 && time.Now().Before(deadline) {
			r, err = cl.Request(a.ctx, r.ID, min(time.Until(deadline), maxPoll))
		}
		if err != nil {
			return err
		}
		return a.signed(cl, r, c)
	})
}

const (
	// inline is the size up to which an image travels inside the request.
	inline = 1 << 20
	// maxPoll bounds one long poll; the server allows two minutes.
	maxPoll = time.Minute
)

func rests(state string) bool {
	switch state {
	case "released", "denied", "failed", "unknown":
		return true
	}
	return false
}

// hash reads the file once, with progress.
func (a *app) hash(f io.ReaderAt, size int64) (string, error) {
	p := a.progress("hashing", size)
	defer p.done()
	h := sha256.New()
	if _, err := io.Copy(h, &counting{r: io.NewSectionReader(f, 0, size), step: p.at}); err != nil {
		return "", problem.New(problem.Usage, "the image cannot be read").Because(err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// signed fetches what a released request made, or says why there is nothing.
func (a *app) signed(cl *client.Client, r client.Request, c *signCmd) error {
	out := signed{Request: r}
	switch r.State {
	case "released":
	case "queued", "signing", "sealing":
		_ = a.show("SigningRequest", out, func(w io.Writer) {
			fmt.Fprintf(w, "wait  request %s is %s\n", r.ID, r.State)
			if r.Problem != nil {
				fmt.Fprintf(w, "why   %s\n", r.Problem.Detail)
			}
			fmt.Fprintf(w, "next  firmseal release fetch %s\n", r.ID)
		})
		if c.NoWait {
			return nil
		}
		return &exitError{problem.ExitTemporary}
	default:
		if a.g.Output == "json" && !a.g.Quiet {
			a.json("SigningRequest", out)
			return &exitError{exitOf(reason(r).Code)}
		}
		return &client.Error{Problem: reason(r)}
	}
	rel, err := cl.Release(a.ctx, r.ID)
	if err != nil {
		return err
	}
	out.Release = &rel
	if out.Files, err = a.fetch(cl, rel, c.Out, c.Image); err != nil {
		return err
	}
	return a.show("SigningRequest", out, func(w io.Writer) {
		mark := ""
		if rel.Environment == "test" {
			mark = "   TEST, not for production devices"
		}
		if rel.BytesUnseen {
			mark += "   BYTES UNSEEN"
		}
		fmt.Fprintf(w, "ok    %s %s signed for %s%s\n", rel.Product, rel.Version, strings.Join(rel.HardwareIDs, ", "), mark)
		if out.Files.Signature != "" {
			fmt.Fprintf(w, "signature  %s   (of %s, which stays as it is)\n", out.Files.Signature, out.Files.Image)
		} else {
			fmt.Fprintf(w, "image      %s\n", out.Files.Image)
		}
		fmt.Fprintf(w, "seal       %s\n", out.Files.Seal)
		fmt.Fprintf(w, "proof      %s   (log entry %d)\n", out.Files.Proof, rel.LeafIndex)
		for _, k := range r.Keys {
			fmt.Fprintf(w, "key        %s   %s\n", k.Name, k.ID)
		}
		fmt.Fprintf(w, "request    %s   policy %s\n", r.ID, short(r.Policy))
	})
}

// reason is why a request rests without a release.
func reason(r client.Request) client.Problem {
	if r.Problem != nil {
		return *r.Problem
	}
	return client.Problem{Code: string(problem.RequestState), Detail: "request " + r.ID + " is " + r.State, Next: "firmseal request show " + r.ID}
}

// filesOf says where a release's files go. image is the path of the input where
// it is known; for a detached format it is left as it is.
func filesOf(rel client.Release, out, image string) files {
	if image == "" {
		// The name is a server's: it stays in this directory.
		image = filepath.Base(filepath.FromSlash(rel.Image.Name))
	}
	if rel.Signature != nil {
		if out == "" {
			out = image + ".sig"
		}
		return files{Image: image, Signature: out, Seal: image + ".seal", Proof: image + ".tlog-proof"}
	}
	if out == "" {
		ext := filepath.Ext(image)
		out = strings.TrimSuffix(image, ext) + ".signed" + ext
	}
	return files{Image: out, Seal: out + ".seal", Proof: out + ".tlog-proof"}
}

// fetch writes a release's files.
func (a *app) fetch(cl *client.Client, rel client.Release, out, image string) (*files, error) {
	fl := filesOf(rel, out, image)
	path, part, file := fl.Image, client.PartImage, rel.Image
	if rel.Signature != nil {
		path, part, file = fl.Signature, client.PartSignature, *rel.Signature
	}
	download := func(part client.Part) func(io.Writer) error {
		return func(w io.Writer) error { return cl.Download(a.ctx, rel.ID, part, w) }
	}
	err := writeOutputs(
		output{path, func(w io.Writer) error { return a.download(cl, rel, part, file, w) }},
		output{fl.Seal, download(client.PartSeal)}, output{fl.Proof, download(client.PartProof)},
	)
	return &fl, err
}

// download fetches a release's file and holds it against the digest that the
// release names.
func (a *app) download(cl *client.Client, rel client.Release, part client.Part, f client.File, w io.Writer) error {
	p := a.progress("downloading", f.Size)
	defer p.done()
	h := sha256.New()
	if err := cl.Download(a.ctx, rel.ID, part, io.MultiWriter(w, &countingWriter{w: h, step: p.at})); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.SHA256 {
		return problem.New(firmseal.CodeImageMismatch, "what was downloaded is not the %s of release %s", part, rel.ID).
			Seen("it has SHA-256 %s, the release says %s", got, f.SHA256).WithHint("firmseal release fetch %s", rel.ID)
	}
	return nil
}
