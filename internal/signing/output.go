package signing

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"

	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/policy"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
)

// embed writes the finished file to the blob store. The file is durable before
// any row names it; a crash before that leaves a file that nothing refers to. A
// small file is held instead: these bytes are judged, and the transaction that
// records the outcome stores them.
func (s *Service) embed(ctx context.Context, r Request, sess image.Session) (_ release.File, held []byte, _ *image.Receipt, _ error) {
	st, err := s.blobs(r.Project)
	if err != nil {
		return release.File{}, nil, nil, err
	}
	w := &output{ctx: ctx, st: st}
	defer w.abort()
	receipt, err := sess.Embed(ctx, w)
	if err != nil {
		return release.File{}, nil, nil, err
	}
	info, held, err := w.finish()
	if err != nil {
		return release.File{}, nil, nil, err
	}
	s.step("embed.written")
	name := r.Input.Name
	if receipt.Detached {
		name += detachedSuffix
	}
	return release.File{Name: name, SHA256: string(info.Digest), Size: info.Size}, held, receipt, nil
}

// output takes a finished file, in memory for as long as the store would take
// it in a transaction.
type output struct {
	ctx  context.Context
	st   blob.Store
	held []byte
	w    blob.Writer // once it is too large to be held
}

func (o *output) Write(p []byte) (int, error) {
	if o.w == nil && smallStore(o.st, int64(len(o.held)+len(p))) != nil {
		o.held = append(o.held, p...)
		return len(p), nil
	}
	if err := o.spill(); err != nil {
		return 0, err
	}
	return o.w.Write(p)
}

func (o *output) spill() (err error) {
	if o.w != nil {
		return nil
	}
	if o.w, err = o.st.Create(o.ctx); err != nil {
		return err
	}
	_, err = o.w.Write(o.held)
	o.held = nil
	return err
}

// finish stores the file, or gives the bytes that are to be stored.
func (o *output) finish() (blob.Info, []byte, error) {
	if o.w == nil && len(o.held) > 0 {
		return blob.Info{Digest: blob.Digest(hexSum(o.held)), Size: int64(len(o.held))}, o.held, nil
	}
	if err := o.spill(); err != nil {
		return blob.Info{}, nil, err
	}
	info, err := o.w.Commit(o.ctx)
	return info, nil, err
}

func (o *output) abort() {
	if o.w != nil {
		o.w.Abort()
	}
}

// putOutput stores a held file with the outcome that names it.
func (s *Service) putOutput(tx *db.Tx, r Request, out release.File, held []byte) error {
	if held == nil {
		return nil
	}
	st, err := s.blobs(r.Project)
	if err != nil {
		return err
	}
	info, err := smallStore(st, int64(len(held))).PutIn(tx, held)
	if err == nil && (string(info.Digest) != out.SHA256 || info.Size != out.Size) {
		panic("signing: the bytes that were judged are not those that are stored")
	}
	return err
}

// judge lets the format's independent verifier decide on the output, which is
// stored or will be as it is held, with the keys of the request as the only
// anchors. What it refuses, or what states another version or security counter
// than the request, is not released, whatever made it.
func (s *Service) judge(ctx context.Context, f image.Format, r Request, src image.Source, out release.File, held []byte, receipt *image.Receipt, anchors []image.TrustedKey) error {
	file := image.Source(bytes.NewReader(held))
	if held == nil {
		st, err := s.blobs(r.Project)
		if err != nil {
			return err
		}
		stored, err := st.Open(ctx, blob.Digest(out.SHA256))
		if err != nil {
			return err
		}
		defer stored.Close()
		file = stored
	}
	trust := image.Trust{Keys: anchors}
	subject := file
	if receipt.Detached {
		if out.Size > maxDetached {
			return problem.New(problem.Internal, "a detached signature of %d bytes is too large", out.Size)
		}
		trust.Detached = make([]byte, out.Size)
		if _, err := file.ReadAt(trust.Detached, 0); err != nil {
			return fmt.Errorf("reading the signature file: %w", err)
		}
		subject = src
	}
	var v *image.Verdict
	var err error
	if r.BytesUnseen {
		digest, err := hex.DecodeString(r.Input.SHA256)
		if err != nil {
			return err
		}
		v, err = f.(image.DigestFormat).VerifyDigest(ctx, digest, r.Input.Size, trust, r.Target)
		if err != nil {
			return err
		}
	} else if v, err = f.Verify(ctx, subject, trust, r.Target); err != nil {
		return err
	}
	if refusal := v.Refusal(); refusal != nil {
		pr := problem.Of(refusal)
		return problem.New(problem.VerifyFailed, "the finished %s image would be refused by its target", f.Name()).
			Seen("%s: %s", pr.Code, pr.What).WithHint("firmseal request show %s", r.ID).Because(refusal)
	}
	if receipt.Detached || r.BytesUnseen {
		return nil // the image is the one that the policy looked at, or nobody saw it
	}
	return sameClaims(ctx, f, r, file)
}

// sameClaims compares what the finished image says of itself with the request:
// the policy has seen the image before the format wrote into it, and a target
// goes by what is in it now.
func sameClaims(ctx context.Context, f image.Format, r Request, file image.Source) error {
	rep, err := f.Inspect(ctx, file)
	if err != nil {
		return fmt.Errorf("inspecting the finished %s image: %w", f.Name(), err)
	}
	no := func(field, image, request string) error {
		return problem.New(problem.VerifyFailed, "the finished %s image states another %s than the request", f.Name(), field).
			Seen("image: %s, request: %s", clip(image), request).WithHint("firmseal request show %s", r.ID)
	}
	switch c := rep.Facts.SecurityCounter; {
	case rep.Facts.Version != "" && !policy.SameVersion(rep.Facts.Version, r.Version):
		return no("version", rep.Facts.Version, r.Version)
	case c != nil && *c != r.SecurityCounter:
		return no("security counter", fmt.Sprint(*c), fmt.Sprint(r.SecurityCounter))
	}
	return nil
}

const (
	maxDetached = 64 << 10
	// detachedSuffix is added to the image's name for its signature file.
	detachedSuffix = ".sig"
)
