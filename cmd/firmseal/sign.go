package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	Idempotency     string            `name:"idempotency-key" help:"The same key and request give the same answer; default: made from the request, so that the same command takes up what an earlier one began." placeholder:"KEY"`
	Wait            time.Duration     `help:"Wait at most this long for the signature." default:"60s"`
	NoWait          bool              `name:"no-wait" help:"Submit and return; later: firmseal request show, and firmseal release fetch."`
	Out             string            `name:"out" help:"Where to write the signed image (default: IMAGE with .signed before its extension). Seal and proof go beside it. Detached formats write the signature here (default: IMAGE.sig), and seal and proof beside IMAGE." placeholder:"FILE"`
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
		return problem.New(problem.Usage, "%s is empty", c.Image).Seen("there is nothing to sign").WithHint("name the image that your build made")
	}
	if err := writable(c.Out, c.Image); err != nil {
		return err
	}
	n := client.NewRequest{
		Profile: c.Profile, Version: c.Version, SecurityCounter: c.SecurityCounter, HardwareIDs: c.HardwareID, Variant: c.Variant,
		MinimumVersion: c.MinimumVersion, Emergency: c.Emergency, BytesUnseen: c.DigestOnly, Metadata: c.Meta, BuildID: c.BuildID,
		Input: client.Input{Name: filepath.Base(c.Image), Size: size},
	}
	for _, p := range slices.Sorted(maps.Keys(c.Requires)) {
		n.Dependencies = append(n.Dependencies, client.Dependency{Product: p, MinimumVersion: c.Requires[p]})
	}
	if !c.BuildFinished.IsZero() {
		n.BuildFinished = c.BuildFinished.UnixMicro()
	}
	return a.withClient(func(cl *client.Client) error {
		try := tries{a: a, cl: cl, patience: c.Wait}
		if c.NoWait {
			try.patience = 0
		}
		digest := ""
		if !c.DigestOnly && size <= inline {
			if n.Input.Content, err = io.ReadAll(io.LimitReader(f, inline)); err != nil {
				return problem.New(problem.Usage, "%s cannot be read", c.Image).Seen("%v", err).WithHint("check the file and its disk").Because(err)
			}
			sum := sha256.Sum256(n.Input.Content)
			digest = hex.EncodeToString(sum[:])
		} else {
			if digest, err = a.hash(f, size); err != nil {
				return err
			}
			n.Input.SHA256 = digest
			if !c.DigestOnly {
				p := a.progress("uploading", size)
				err := try.do(func() error {
					return cl.Upload(a.ctx, f, digest, size, func(done int64) {
						try.answered() // what came so far counts
						p.at(done)
					})
				})
				if err != nil {
					return c.unfinished(a, "", err)
				}
				p.done()
			}
		}
		r, err := c.submit(a, cl, &try, n, digest)
		if err != nil {
			return c.unfinished(a, r.ID, err)
		}
		return a.signed(cl, r, c)
	})
}

// submit asks for the signature and waits for it. The request's id is there
// also with an error, where it is known.
//
// Without a key of the caller's, the idempotency key is made from the request:
// the same command, run again after a lost connection or a short --wait, gets
// the request that is there already. One that rests without a release is asked
// for again under a new key, since the policy or the key may have been put
// right.
func (c *signCmd) submit(a *app, cl *client.Client, try *tries, n client.NewRequest, digest string) (client.Request, error) {
	key := c.Idempotency
	if key == "" {
		key = derivedKey(n, digest)
	}
	deadline := time.Now().Add(try.patience)
	var r client.Request
	send := func(key string) (earlier bool, err error) {
		err = try.do(func() error {
			r, earlier, err = cl.SignAgain(a.ctx, n, key, min(max(0, time.Until(deadline)), firstPoll))
			return err
		})
		return earlier, err
	}
	earlier, err := send(key)
	if c.Idempotency == "" {
		var refused *client.Error
		switch {
		case err == nil && earlier && (r.State == "denied" || r.State == "failed"),
			// The keys of the earlier request are gone; the policy may name others.
			errors.As(err, &refused) && refused.Code == string(problem.KeyRetired):
			earlier, err = send(key + "-" + rand.Text())
		}
	}
	if err != nil {
		return r, err
	}
	if earlier {
		a.note("note  this was asked before: request %s, %s", r.ID, r.State)
	}
	for !rests(r.State) && time.Now().Before(deadline) {
		err := try.do(func() error {
			now, err := cl.Request(a.ctx, r.ID, min(max(0, time.Until(deadline)), maxPoll))
			if err == nil {
				r = now
			}
			return err
		})
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// derivedKey names a request by all that it says.
func derivedKey(n client.NewRequest, digest string) string {
	n.Input.Content, n.Input.SHA256 = nil, digest
	n.HardwareIDs = slices.Sorted(slices.Values(n.HardwareIDs))
	b, err := json.Marshal(n) // maps in the order of their keys
	if err != nil {
		panic(err) // our own type
	}
	sum := sha256.Sum256(b)
	return "content-" + hex.EncodeToString(sum[:])
}

// unfinished says what to do about a request that may be under way.
func (c *signCmd) unfinished(a *app, id string, err error) error {
	next := "run the same command again: it takes up what this one began"
	if id != "" {
		next = "firmseal request show " + id
	}
	if a.ctx.Err() != nil {
		return &interrupted{next}
	}
	var ce *client.Error
	if errors.As(err, &ce) && ce.Code == string(problem.Unavailable) {
		p := ce.Problem
		p.Next = next
		return &client.Error{Problem: p}
	}
	return err
}

// interrupted ends a command that a signal cut short, when there is more to
// say than that.
type interrupted struct{ next string }

func (e *interrupted) Error() string { return "interrupted" }

// tries repeats calls that a server did not answer, until it has been silent
// for as long as the caller waits. A workspace in this process always answers.
type tries struct {
	a        *app
	cl       *client.Client
	patience time.Duration
	silent   time.Time // since when; zero while it answers
}

func (t *tries) answered() { t.silent = time.Time{} }

func (t *tries) do(call func() error) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := call()
		var ce *client.Error
		if t.cl.HTTP != nil || !errors.As(err, &ce) || ce.Code != string(problem.Unavailable) || !ce.Retryable {
			t.answered()
			return err
		}
		if t.silent.IsZero() {
			t.silent = time.Now()
			if t.patience > 0 {
				t.a.note("note  %s (%s); trying again for %v", ce.Detail, ce.Why, t.patience)
			}
		}
		if time.Since(t.silent)+pause > t.patience {
			return err
		}
		select {
		case <-time.After(pause):
		case <-t.a.ctx.Done():
			return t.a.ctx.Err()
		}
	}
}

const (
	// inline is the size up to which an image travels inside the request.
	inline = 1 << 20
	// firstPoll bounds the wait inside the first call: until it is answered,
	// nobody here knows the request's id.
	firstPoll = 2 * time.Second
	// maxPoll bounds one long poll; the server allows two minutes.
	maxPoll = time.Minute
	// A server that is restarted is back within a second or so.
	firstPause, lastPause = 200 * time.Millisecond, 2 * time.Second
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
			// A release is not there yet, and only a signed request has one.
			fmt.Fprintf(w, "next  firmseal request show %s\n", r.ID)
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
		return fetchLater(a, rel, c.Image, err)
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

// fetchLater says how to get the files of a release that is there and could not
// be written here.
func fetchLater(a *app, rel client.Release, image string, err error) error {
	next := "firmseal release fetch " + rel.ID + " --out FILE"
	if rel.Signature != nil {
		next += " --image " + quoteArgs([]string{image})
	}
	if a.ctx.Err() != nil {
		return &interrupted{next}
	}
	var ce *client.Error
	if errors.As(err, &ce) {
		p := ce.Problem
		p.Next = next
		return &client.Error{Problem: p}
	}
	p := *problem.Of(err)
	return p.WithHint("%s", next)
}

// writable refuses, before anything is signed, outputs that could not be
// written afterwards, or would be written over the input. Whether a format is
// detached is the policy's to say, so an image's own folder is looked at only
// where every format writes to it.
func writable(out, image string) error {
	dir := filepath.Dir(image)
	if out != "" {
		dir = filepath.Dir(out)
		in, err := os.Stat(image)
		if err != nil {
			return problem.New(problem.Usage, "%s cannot be read", image).Seen("%v", err).WithHint("check the file and its disk").Because(err)
		}
		for _, p := range []string{out, out + ".seal", out + ".tlog-proof"} {
			st, err := os.Stat(p)
			switch {
			case err == nil && os.SameFile(in, st):
				return problem.New(problem.Usage, "the output %s is the image itself", p).
					Seen("the unsigned image stays as it is").WithHint("name another file with --out")
			case err == nil && st.IsDir():
				return problem.New(problem.Usage, "the output %s is a directory", p).WithHint("--out %s", filepath.Join(p, filepath.Base(image)))
			}
		}
	}
	f, err := os.CreateTemp(dir, ".firmseal-*")
	if err != nil {
		why := err
		var pe *fs.PathError
		if errors.As(err, &pe) {
			why = pe.Err
		}
		return problem.New(problem.Usage, "nothing can be written to %s", dir).Seen("%v; nothing was signed", why).
			WithHint("make the directory, or name another file with --out").Because(err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// replaced says which of the files to be written are there and hold another
// release, or nobody knows what.
func (a *app) replaced(fl files, rel client.Release) (notes []string) {
	was := ""
	if b, err := a.readInput(fl.Seal, firmseal.MaxEnvelope); err == nil {
		if env, err := firmseal.ParseEnvelope(b); err == nil {
			if st, err := env.Statement(); err == nil {
				if st.Release.Request.ID == rel.Request {
					return nil // the same release, fetched again
				}
				was = " of " + st.Release.Product + " " + st.Release.Version
			}
		}
	}
	paths := []string{fl.Image, fl.Seal, fl.Proof}
	if rel.Signature != nil {
		paths[0] = fl.Signature
	}
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			notes = append(notes, fmt.Sprintf("note  %s%s was replaced by %s %s", p, was, rel.Product, rel.Version))
		}
	}
	return notes
}

// fetch writes a release's files.
func (a *app) fetch(cl *client.Client, rel client.Release, out, image string) (*files, error) {
	fl := filesOf(rel, out, image)
	path, part, file := fl.Image, client.PartImage, rel.Image
	if rel.Signature != nil {
		path, part, file = fl.Signature, client.PartSignature, *rel.Signature
	}
	notes := a.replaced(fl, rel)
	download := func(part client.Part) func(io.Writer) error {
		return func(w io.Writer) error { return cl.Download(a.ctx, rel.ID, part, w) }
	}
	err := writeOutputs(
		output{path, func(w io.Writer) error { return a.download(cl, rel, part, file, w) }},
		output{fl.Seal, download(client.PartSeal)}, output{fl.Proof, download(client.PartProof)},
	)
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		a.note("%s", n)
	}
	return &fl, nil
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
