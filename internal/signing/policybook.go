package signing

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/policy"
	"github.com/firmseal/firmseal/internal/problem"
)

// PolicyVersion is one applied policy document.
type PolicyVersion struct {
	Seq       int64
	Digest    string // hex
	Document  []byte
	Applied   int64 // µs
	AppliedBy string
	leaf      string
}

// policyCache holds the compiled document in force and what was proven about
// it, a project each. A policy that was once seen in force can only be followed
// by one with a higher sequence number: deleting the newest row in the database
// does not bring an older policy back.
type policyCache struct {
	mu sync.Mutex
	m  map[string]compiledPolicy
}

type compiledPolicy struct {
	seq    int64
	digest string
	leaf   string
	doc    *policy.Document
}

// ApplyPolicy puts a document in force for a project. Of calls at the same time
// each succeeds, one after the other.
func (s *Service) ApplyPolicy(ctx context.Context, who auth.Identity, document []byte) (PolicyVersion, error) {
	doc, err := policy.Parse(document)
	if err != nil {
		return PolicyVersion{}, err
	}
	v := PolicyVersion{Digest: doc.Digest(), Document: document, AppliedBy: who.Actor}
	sum := sha256.Sum256(document)
	err = s.logged2(ctx, func(tx *db.Tx) (firmseal.Leaf, func(leaf string) error, error) {
		v.Applied = db.Now()
		// The number is of all projects. The project's row waits for those who
		// decide by the policy now; their leaves are before ours.
		for _, head := range []string{"", who.Project} {
			if _, err := tx.Exec(`INSERT INTO signing_policy_head(project, applied) VALUES ($1, 1)
				ON CONFLICT (project) DO UPDATE SET applied = signing_policy_head.applied + 1`, head); err != nil {
				return firmseal.Leaf{}, nil, fmt.Errorf("waiting for the policies before: %w", err)
			}
		}
		if err := tx.QueryRow(`SELECT COALESCE(MAX(seq), 0) + 1 FROM signing_policy`).Scan(&v.Seq); err != nil {
			return firmseal.Leaf{}, nil, fmt.Errorf("numbering the policy: %w", err)
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "policy.apply", Actor: who.Actor, Project: who.Project, Subject: v.Digest}); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		leaf := firmseal.Leaf{Type: firmseal.LeafPolicyApply, Actor: who.Actor, Subject: who.Project, Record: v.Digest}
		return leaf, func(id string) error {
			_, err := tx.Exec(`INSERT INTO signing_policy(seq, project, digest, document, applied, applied_by, leaf) VALUES ($1,$2,$3,$4,$5,$6,$7)`,
				v.Seq, who.Project, sum[:], document, v.Applied, v.AppliedBy, id)
			if err != nil {
				return fmt.Errorf("writing the policy: %w", err)
			}
			return nil
		}, nil
	})
	return v, err
}

// sharePolicy keeps a project's policy in force until the end of tx: on
// PostgreSQL, an ApplyPolicy waits for it.
func sharePolicy(tx *db.Tx, project string) error {
	if tx.ForShare() == "" {
		return nil
	}
	err := tx.QueryRow(`SELECT applied FROM signing_policy_head WHERE project = $1`+tx.ForShare(), project).Scan(new(int64))
	if err != nil && !errors.Is(err, sql.ErrNoRows) { // without a row there never was a policy
		return fmt.Errorf("keeping the policy in force: %w", err)
	}
	return nil
}

const policyColumns = `seq, digest, document, applied, applied_by, leaf`

func scanPolicy(row interface{ Scan(...any) error }) (PolicyVersion, error) {
	var v PolicyVersion
	var digest []byte
	err := row.Scan(&v.Seq, &digest, &v.Document, &v.Applied, &v.AppliedBy, &v.leaf)
	v.Digest = fmt.Sprintf("%x", digest)
	return v, err
}

// Policy gives the document in force.
func (s *Service) Policy(ctx context.Context, project string) (PolicyVersion, error) {
	var v PolicyVersion
	err := s.db.View(ctx, func(tx *db.Tx) (err error) {
		v, err = currentPolicy(tx, project)
		return err
	})
	return v, err
}

// PolicyHistory gives all documents, newest first.
func (s *Service) PolicyHistory(ctx context.Context, project string) ([]PolicyVersion, error) {
	var out []PolicyVersion
	err := s.db.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(`SELECT `+policyColumns+` FROM signing_policy WHERE project = $1 ORDER BY seq DESC LIMIT 500`, project)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			v, err := scanPolicy(rows)
			if err != nil {
				return err
			}
			out = append(out, v)
		}
		return rows.Err()
	})
	return out, err
}

func currentPolicy(tx *db.Tx, project string) (PolicyVersion, error) {
	v, err := scanPolicy(tx.QueryRow(`SELECT `+policyColumns+` FROM signing_policy WHERE project = $1 ORDER BY seq DESC LIMIT 1`, project))
	if errors.Is(err, sql.ErrNoRows) {
		return PolicyVersion{}, problem.New(problem.PolicyMissing, "no policy is in force").
			Seen("nothing is signed before a policy says what may be").WithHint("firmseal policy apply firmseal-policy.yaml")
	}
	if err != nil {
		return PolicyVersion{}, fmt.Errorf("reading the policy: %w", err)
	}
	return v, nil
}

// errPolicyMoved asks for provePolicy again: a newer policy was applied between
// the proof and the transaction.
var errPolicyMoved = errors.New("another policy is in force")

// maxMoves bounds how often a transaction is tried again because what it rests
// on was changed rightly while it began.
const maxMoves = 5

// provePolicy holds the row of the policy in force against the log, compiles it
// and remembers both for inForce. It is called outside of a transaction, since
// it reads the log.
func (s *Service) provePolicy(ctx context.Context, project string) (*policy.Document, error) {
	for range maxMoves {
		doc, err := s.tryPolicy(ctx, project)
		if !errors.Is(err, errPolicyMoved) {
			return doc, err
		}
	}
	return nil, altered("the policy of project %s", project).Seen("the log has a newer one than the newest row")
}

func (s *Service) tryPolicy(ctx context.Context, project string) (*policy.Document, error) {
	v, err := s.Policy(ctx, project)
	if err != nil && !problem.Has(err, problem.PolicyMissing) {
		return nil, err
	}
	if err == nil {
		if err := s.inLog(ctx, v.leaf); err != nil {
			return nil, unknownLeaf(err, "policy version %d", v.Seq)
		}
	}
	if err := s.follow(ctx); err != nil {
		return nil, err
	}
	newest, ok := s.book.policyBefore(project, -1)
	digest := hexSum(v.Document)
	switch {
	case err != nil && !ok:
		return nil, err // there never was one
	case err != nil:
		return nil, altered("the policy of project %s", project).Seen("the log has policy %s and there is no row", newest.digest)
	case digest != v.Digest:
		return nil, altered("policy version %d", v.Seq).Seen("its text hashes to %s, its row says %s", digest, v.Digest)
	case newest.id != v.leaf || newest.digest != digest:
		return nil, errPolicyMoved
	}
	s.policies.mu.Lock()
	cached := s.policies.m[project]
	s.policies.mu.Unlock()
	if cached.leaf == v.leaf && cached.digest == digest && cached.seq == v.Seq {
		return cached.doc, nil
	}
	doc, err := policy.Parse(v.Document)
	if err != nil {
		return nil, fmt.Errorf("compiling the policy in force: %w", err)
	}
	s.policies.mu.Lock()
	defer s.policies.mu.Unlock()
	if s.policies.m == nil {
		s.policies.m = make(map[string]compiledPolicy)
	}
	if v.Seq >= s.policies.m[project].seq {
		s.policies.m[project] = compiledPolicy{seq: v.Seq, digest: digest, leaf: v.leaf, doc: doc}
	}
	return doc, nil
}

// inForce gives the document in force in tx, which must be the one that was
// last proven, or errPolicyMoved.
func (s *Service) inForce(tx *db.Tx, project string) (*policy.Document, error) {
	s.policies.mu.Lock()
	cached, known := s.policies.m[project]
	s.policies.mu.Unlock()
	v, err := currentPolicy(tx, project)
	switch {
	case err != nil && known && problem.Has(err, problem.PolicyMissing):
		return nil, altered("the policy of project %s", project).Seen("version %d was in force and its row is gone", cached.seq)
	case err != nil:
		return nil, err
	case !known || v.Seq > cached.seq:
		return nil, errPolicyMoved
	case v.Seq < cached.seq:
		return nil, altered("the policy of project %s", project).Seen("version %d was in force, the newest row is version %d", cached.seq, v.Seq)
	}
	if digest := hexSum(v.Document); digest != cached.digest || v.Digest != cached.digest || v.leaf != cached.leaf {
		return nil, altered("policy version %d", v.Seq).Seen("it was %s and is now %s", cached.digest, digest)
	}
	return cached.doc, nil
}

// withPolicy runs a transaction that calls inForce, and proves the policy first.
func (s *Service) withPolicy(ctx context.Context, project string, run func() error) error {
	for range maxMoves {
		if _, err := s.provePolicy(ctx, project); err != nil {
			return err
		}
		if err := run(); !errors.Is(err, errPolicyMoved) {
			return err
		}
	}
	return problem.New(problem.Conflict, "the policy changes faster than a request can be decided").WithHint("send it again")
}
