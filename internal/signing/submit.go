package signing

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/jobs"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/policy"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// Submit records a request and decides on it. A denial is a recorded request in
// state denied, not an error; an error means that nothing was recorded, unless
// the database fails at that moment: then nobody knows, and the same call with
// the same idempotency key tells. The request's leaf is committed with it;
// Submit waits until it is included, but no longer than ctx allows.
//
// With an idempotency key, the same submission by the same actor in the same
// project gives the request that the first one made, as it stands now, as long
// as its keys are still active; another submission under the key is
// REQUEST.IDEMPOTENCY.
func (s *Service) Submit(ctx context.Context, who auth.Identity, sub Submission, idempotencyKey string) (View, error) {
	if err := sub.check(); err != nil {
		return View{}, err
	}
	body, err := sub.digest()
	if err != nil {
		return View{}, err
	}
	if idempotencyKey != "" {
		if id, err := s.replay(ctx, who, idempotencyKey, body); err != nil {
			return View{}, err
		} else if id != "" {
			return s.Get(ctx, who.Project, id)
		}
	}
	if err := s.holdInput(ctx, who, &sub); err != nil {
		return View{}, err
	}
	facts, format, err := s.look(ctx, who, sub)
	if err != nil {
		return View{}, err
	}
	id := db.NewID()
	s.step("submit.commit")
	var replayed string
	decide := func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		replayed = ""
		if idempotencyKey != "" {
			won, holder, err := takeIdempotency(tx, who, idempotencyKey, body, id)
			if err != nil {
				return firmseal.Leaf{}, nil, err
			}
			if !won {
				replayed = holder
				return firmseal.Leaf{}, nil, errReplayed
			}
		}
		doc, err := s.inForce(tx, who.Project)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		r, err := s.resolve(tx, doc, who, sub, id, format)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		d, err := s.decide(tx, doc, r, facts)
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
		return s.record(tx, who, sub, r, doc, d)
	}
	var leaf string
	err = s.withPolicy(ctx, who.Project, func() (err error) {
		leaf, err = s.append(ctx, decide)
		return err
	})
	if errors.Is(err, errReplayed) {
		return s.Get(ctx, who.Project, replayed)
	}
	if err != nil {
		return View{}, err
	}
	ctx = s.included(ctx, id, leaf)
	s.step("submit.done")
	v, err := s.Get(ctx, who.Project, id)
	if err == nil && v.State == Denied {
		s.metrics.SignRequest(telemetry.Denied)
	}
	return v, err
}

// included waits for the leaf of what is recorded already. Where it cannot be
// seen in the log now, whoever needs it waits for it: the request's job, which
// says so. The context that it returns outlives the caller's: what was recorded
// is told.
func (s *Service) included(ctx context.Context, request, leaf string) context.Context {
	if err := s.inLog(ctx, leaf); err != nil {
		s.logger.InfoContext(ctx, "an entry of the log is committed and not yet included", "request", request, "leaf", leaf, "error", err)
	}
	return context.WithoutCancel(ctx)
}

// errReplayed rolls the transaction back: another call with the same
// idempotency key came first.
var errReplayed = errors.New("replayed")

// record writes a decided request. All of it is in the caller's transaction.
func (s *Service) record(tx *db.Tx, who auth.Identity, sub Submission, r Request, doc *policy.Document, d policy.Decision) (firmseal.Leaf, func(string) error, error) {
	canon, err := r.Canonical()
	if err != nil {
		return firmseal.Leaf{}, nil, err
	}
	sum := sha256.Sum256(canon)
	state, reason := Queued, ""
	leaf := firmseal.Leaf{
		Type: firmseal.LeafRequest, Actor: who.Actor, Request: r.ID, Record: hexSum(canon), Policy: doc.Digest(),
		Decision: "allow", Rule: d.Rule, Input: r.Input.SHA256, Unseen: r.BytesUnseen,
	}
	if !d.Allow {
		state, leaf.Decision, leaf.Code = Denied, "deny", d.Code
		reason, err = encodeProblem(problem.New(d.Code, "%s", d.What).Seen("%s", d.Why).WithHint("%s", d.Next))
		if err != nil {
			return firmseal.Leaf{}, nil, err
		}
	}
	if d.Allow {
		if err := s.sealable(r, hexSum(canon), doc.Digest()); err != nil {
			return firmseal.Leaf{}, nil, err
		}
	}
	now := db.Now()
	return leaf, func(leafID string) error {
		_, err := tx.Exec(`INSERT INTO signing_request(id, project, actor, document, digest, leaf, state, problem, product, environment, version,
			policy, build_id, build_time, session, receipt, output, output_size, statement, outcome, release, created, updated)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,NULL,'','',0,NULL,'','',$15,$15)`,
			r.ID, r.Project, r.Actor, canon, sum[:], leafID, string(state), reason, r.Product, r.Environment, r.Version,
			doc.Digest(), r.BuildID, sub.BuildFinished, now)
		if err != nil {
			return fmt.Errorf("writing request %s: %w", r.ID, err)
		}
		if err := s.putInput(tx, who, sub); err != nil {
			return err
		}
		if _, err := journal.Append(tx, journal.Event{
			Kind: "request." + string(state), Actor: who.Actor, Project: r.Project, Subject: r.ID, Request: r.BuildID,
			Data: map[string]any{"product": r.Product, "version": r.Version, "environment": r.Environment, "rule": d.Rule, "code": d.Code},
		}); err != nil {
			return err
		}
		if state != Queued {
			return nil
		}
		if _, err := tx.Exec(`INSERT INTO signing_ticket(request, nonce, digest, policy, issued, redeemed) VALUES ($1,$2,$3,$4,$5,0)`,
			r.ID, rand.Text(), sum[:], doc.Digest(), now); err != nil {
			return fmt.Errorf("issuing the ticket of %s: %w", r.ID, err)
		}
		return s.enqueue(tx, r.ID)
	}, nil
}

// sealable makes the statement that would be sealed, with an output in place of
// the one that is not made yet, so that nothing about the request itself is
// refused after a key was used. A detached output has the longer names.
func (s *Service) sealable(r Request, digest, policy string) error {
	_, err := s.statement(r, digest, policy, release.File{Name: r.Input.Name + detachedSuffix, SHA256: digest, Size: 1}, &image.Receipt{Detached: true})
	if err == nil {
		return nil
	}
	p := problem.Of(err)
	return fields("the request cannot be sealed as it is").Seen("%s", p.Why).WithHint("send it with the member put right").Because(err)
}

func (s *Service) enqueue(tx *db.Tx, id string) error {
	payload, err := json.Marshal(runPayload{Request: id})
	if err != nil {
		return err
	}
	return s.jobs.Enqueue(tx, jobs.Job{Kind: jobRun, Key: id, Payload: payload})
}

type runPayload struct {
	Request string `json:"request"`
}

// digest names a submission's content for idempotency.
func (sub Submission) digest() ([]byte, error) {
	c := sub
	c.Content = nil // named by Input
	b, err := canonical(c)
	if err != nil {
		return nil, fmt.Errorf("encoding the submission: %w", err)
	}
	h := sha256.Sum256(b)
	return h[:], nil
}

func (s *Service) replay(ctx context.Context, who auth.Identity, key string, body []byte) (string, error) {
	var id string
	err := s.db.View(ctx, func(tx *db.Tx) error {
		var err error
		id, err = readIdempotency(tx, who, key, body)
		return err
	})
	return id, err
}

func readIdempotency(tx *db.Tx, who auth.Identity, key string, body []byte) (string, error) {
	var had []byte
	var id string
	err := tx.QueryRow(`SELECT body, request FROM signing_idempotency WHERE project = $1 AND actor = $2 AND key = $3`,
		who.Project, who.Actor, key).Scan(&had, &id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the idempotency key: %w", err)
	}
	if !bytes.Equal(had, body) {
		return "", problem.New(problem.IdempotencyUsed, "the idempotency key was used for another request").
			Seen("request %s", id).WithHint("use a new Idempotency-Key for a new request")
	}
	row, err := readRow(tx, id)
	if err != nil {
		return "", err
	}
	r, err := decodeRequest(row.document)
	if err != nil {
		return "", err
	}
	for _, ref := range r.Keys {
		k, err := readKey(tx, ref.Name)
		if err != nil {
			return "", err
		}
		if k.Retired != 0 {
			return "", retiredProblem(k)
		}
	}
	return id, nil
}

// takeIdempotency binds the key to id, or gives the request that holds it.
func takeIdempotency(tx *db.Tx, who auth.Identity, key string, body []byte, id string) (won bool, holder string, err error) {
	res, err := tx.Exec(`INSERT INTO signing_idempotency(project, actor, key, body, request, created) VALUES ($1,$2,$3,$4,$5,$6) ON CONFLICT DO NOTHING`,
		who.Project, who.Actor, key, body, id, db.Now())
	if err != nil {
		return false, "", fmt.Errorf("writing the idempotency key: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 1 {
		return n == 1, "", err
	}
	holder, err = readIdempotency(tx, who, key, body)
	return false, holder, err
}

// look reads what the image says of itself.
func (s *Service) look(ctx context.Context, who auth.Identity, sub Submission) (image.Facts, image.Format, error) {
	doc, err := s.provePolicy(ctx, who.Project)
	if err != nil {
		return image.Facts{}, nil, err
	}
	profile, ok := doc.Profile(sub.Profile)
	if !ok {
		return image.Facts{}, nil, profileUnknown(doc, sub.Profile)
	}
	f, err := s.formats.ByName(profile.Format)
	if err != nil {
		return image.Facts{}, nil, err
	}
	if sub.BytesUnseen {
		if _, ok := f.(image.DigestFormat); !ok {
			return image.Facts{}, nil, problem.New(problem.AlgUnsupported, "format %s cannot be signed by its digest alone", f.Name()).
				Seen("its signature covers bytes that only the image has").WithHint("upload the image: firmseal sign IMAGE")
		}
		return image.Facts{}, f, nil
	}
	var src image.Source = bytes.NewReader(sub.Content)
	if sub.Content == nil {
		var closeSrc func()
		if src, closeSrc, err = s.source(ctx, Request{Project: who.Project, Input: sub.Input}); err != nil {
			return image.Facts{}, nil, err
		}
		defer closeSrc()
	}
	rep, err := f.Inspect(ctx, src)
	if err != nil || unlike(rep) {
		if other, score := s.formats.Detect(src); other != nil && other.Name() != f.Name() && score >= image.Likely {
			return image.Facts{}, nil, problem.New(problem.FormatMismatch, "%s is not a %s image", sub.Input.Name, f.Name()).
				Seen("it looks like %s; profile %s signs %s", other.Name(), sub.Profile, f.Name()).Because(err)
		}
	}
	if err != nil {
		return image.Facts{}, nil, err
	}
	return rep.Facts, f, nil
}

// unlike reports whether a format could read the bytes but did not find its own
// form in them. They may be a payload that it will wrap, or another format's.
func unlike(r *image.Report) bool {
	return slices.ContainsFunc(r.Findings, func(f image.Finding) bool {
		return f.Stage == image.StageContainer && f.Code == problem.ImageMalformed
	})
}

func profileUnknown(doc *policy.Document, name string) error {
	names := doc.Profiles()
	sort.Strings(names)
	return problem.New(problem.PolicyProfile, "the policy has no profile %q", clip(name)).
		Seen("profiles: %s", joinOrNone(names)).WithHint("firmseal policy show")
}

// resolve makes the canonical request out of the submission and the profile.
func (s *Service) resolve(tx *db.Tx, doc *policy.Document, who auth.Identity, sub Submission, id string, f image.Format) (Request, error) {
	p, ok := doc.Profile(sub.Profile)
	if !ok {
		return Request{}, profileUnknown(doc, sub.Profile)
	}
	if p.Format != f.Name() {
		return Request{}, problem.New(problem.Conflict, "the policy changed while the request was read").WithHint("send it again")
	}
	r := Request{
		V: 1, ID: id, Project: who.Project, Actor: who.Actor, Scopes: scopeNames(who), Created: db.Now(),
		Profile: sub.Profile, Product: p.Product, Environment: p.Environment, Format: p.Format,
		Version: sub.Version, SecurityCounter: *sub.SecurityCounter, MinimumVersion: sub.MinimumVersion,
		HardwareIDs: sub.HardwareIDs, Variant: sub.Variant, Dependencies: sub.Dependencies, Emergency: sub.Emergency,
		BytesUnseen: sub.BytesUnseen, Metadata: sub.Metadata, BuildID: sub.BuildID, Input: sub.Input,
		Target: p.Target,
	}
	if err := s.bind(tx, &r, p, f); err != nil {
		return Request{}, err
	}
	return r, nil
}

// bind fills in what the profile decides: the keys by their ids, and the
// format's options with the request's version and counter stamped into them.
func (s *Service) bind(tx *db.Tx, r *Request, p policy.Profile, f image.Format) error {
	roles := make([]string, 0, len(p.Keys))
	for role := range p.Keys {
		roles = append(roles, role)
	}
	sort.Strings(roles)
	r.Keys = nil
	for _, role := range roles {
		k, err := s.ownKey(tx, r.Project, p.Keys[role])
		if err != nil {
			return err
		}
		r.Keys = append(r.Keys, KeyRef{Role: role, Name: k.Name, ID: k.ID()})
	}
	r.Options = p.Options
	if st, ok := f.(image.Stamper); ok {
		o, err := st.Stamp(p.Options, r.Version, r.SecurityCounter)
		if err != nil {
			return err
		}
		r.Options = o
	}
	return nil
}

// decide evaluates the policy over the facts as they are in tx.
func (s *Service) decide(tx *db.Tx, doc *policy.Document, r Request, facts image.Facts) (policy.Decision, error) {
	last, err := release.LastClaim(tx, r.Project, r.Product, r.Environment, r.HardwareIDs, r.ID)
	if err != nil {
		return policy.Decision{}, err
	}
	in := policy.Facts{
		Request: policy.Request{
			Profile: r.Profile, Product: r.Product, Environment: r.Environment, Format: r.Format, Version: r.Version,
			SecurityCounter: r.SecurityCounter, HardwareIDs: r.HardwareIDs, Variant: r.Variant, MinimumVersion: r.MinimumVersion,
			Emergency: r.Emergency, BytesUnseen: r.BytesUnseen, Metadata: r.Metadata, BuildID: r.BuildID, Size: r.Input.Size,
		},
		Actor: policy.Actor{ID: r.Actor, Project: r.Project, Scopes: r.Scopes},
		Image: policy.Image{Version: facts.Version, SecurityCounter: facts.SecurityCounter, Product: facts.Product, HardwareIDs: facts.HardwareIDs, Signed: facts.Signed, SignedWith: facts.SignedWith},
		Last:  policy.Last{Exists: last.Exists, Version: last.Version, SecurityCounter: last.SecurityCounter},
		Now:   time.UnixMicro(db.Now()).UTC(),
	}
	for _, ref := range r.Keys {
		k, err := readKey(tx, ref.Name)
		if err != nil {
			return policy.Decision{}, err
		}
		if k.ID() != ref.ID {
			return policy.Decision{}, altered("key %s", ref.Name).Seen("the request names %s, the row %s", ref.ID, k.ID())
		}
		in.Keys = append(in.Keys, policy.Key{
			Role: ref.Role, Name: k.Name, Purpose: string(k.Binding.Purpose), Environment: string(k.Binding.Environment),
			Product: k.Binding.Product, Format: k.Binding.Format, Retired: k.Retired != 0,
		})
	}
	if _, err := sealKey(tx, r.Project, keys.Environment(r.Environment)); err != nil {
		return policy.Decision{}, err
	}
	return doc.Evaluate(in), nil
}

func retiredProblem(k KeyRecord) error {
	return problem.New(problem.KeyRetired, "key %s is retired", k.Name).
		Seen("since %s, by %s", day(k.Retired), k.RetiredBy).WithHint("name another key in the profile: firmseal key list")
}

func day(us int64) string { return time.UnixMicro(us).UTC().Format("2006-01-02") }

// holdInput makes sure that the image's bytes are in the project's store.
//
// A small image that came with the request is stored with its record, in one
// transaction; until then it is in memory only.
func (s *Service) holdInput(ctx context.Context, who auth.Identity, sub *Submission) error {
	if sub.BytesUnseen {
		return nil
	}
	st, err := s.blobs(who.Project)
	if err != nil {
		return err
	}
	d := blob.Digest(sub.Input.SHA256)
	if smallStore(st, int64(len(sub.Content))) != nil {
		return nil
	}
	if sub.Content != nil {
		u, err := st.Begin(ctx, d, sub.Input.Size)
		if err != nil || u.Complete {
			return err
		}
		_, err = st.Append(ctx, d, sub.Input.Size, u.Offset, sub.Content[u.Offset:])
		return err
	}
	info, err := st.Stat(ctx, d)
	if problem.Has(err, problem.NotFound) {
		return problem.New(problem.UploadMissing, "the image %s is not uploaded", sub.Input.Name).
			Seen("no complete upload has SHA-256 %s", sub.Input.SHA256).WithHint("upload it before, as firmseal sign does: POST /api/v1/uploads")
	}
	if err != nil {
		return err
	}
	if info.Size != sub.Input.Size {
		return fields("the image has %d bytes, the request says %d", info.Size, sub.Input.Size)
	}
	return nil
}

// inTransaction is a blob store that writes small files in a transaction of ours,
// so that a file and the record that names it are there together.
type inTransaction interface {
	Fits(size int64) bool
	PutIn(tx *db.Tx, content []byte) (blob.Info, error)
}

// smallStore gives st where it takes a file of this size in a transaction.
func smallStore(st blob.Store, size int64) inTransaction {
	if t, ok := st.(inTransaction); ok && t.Fits(size) {
		return t
	}
	return nil
}

// putInput stores the image of a submission that brought it along and that
// holdInput left to the transaction. check has compared it with its digest.
func (s *Service) putInput(tx *db.Tx, who auth.Identity, sub Submission) error {
	st, err := s.blobs(who.Project)
	if err != nil {
		return err
	}
	if t := smallStore(st, int64(len(sub.Content))); t != nil {
		_, err = t.PutIn(tx, sub.Content)
	}
	return err
}

func scopeNames(who auth.Identity) []string {
	out := make([]string, len(who.Scopes))
	for i, s := range who.Scopes {
		out[i] = string(s)
	}
	return out
}
