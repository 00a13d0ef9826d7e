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
	doc    *policy.Document
}

// ApplyPolicy puts a document in force for a project.
func (s *Service) ApplyPolicy(ctx context.Context, who auth.Identity, document []byte) (PolicyVersion, error) {
	doc, err := policy.Parse(document)
	if err != nil {
		return PolicyVersion{}, err
	}
	v := PolicyVersion{Digest: doc.Digest(), Document: document, AppliedBy: who.Actor}
	sum := sha256.Sum256(document)
	err = s.logged2(ctx, func(tx *db.Tx) (firmseal.Leaf, func(leaf string) error, error) {
		v.Applied = db.Now()
		if err := tx.QueryRow(`SELECT COALESCE(MAX(seq), 0) + 1 FROM signing_policy`).Scan(&v.Seq); err != nil {
			return firmseal.Leaf{}, nil, fmt.Errorf("numbering the policy: %w", err)
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "policy.apply", Actor: who.Actor, Project: who.Project, Subject: v.Digest}); err != nil {
			return firmseal.Leaf{}, nil, err
		}
		leaf := firmseal.Leaf{Type: firmseal.LeafPolicyApply, Actor: who.Actor, Subject: who.Project, Record: v.Digest}
		return leaf, func(id string) error {
			// A concurrent apply on PostgreSQL takes the same number: the
			// primary key decides, and the loser is retried by the caller.
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

// inForce gives the compiled document in force, after holding its row against
// the log: the document's bytes must be those that the project's newest
// policy.apply leaf commits to.
func (s *Service) inForce(ctx context.Context, tx *db.Tx, project string) (*policy.Document, error) {
	v, err := currentPolicy(tx, project)
	s.policies.mu.Lock()
	cached, known := s.policies.m[project]
	s.policies.mu.Unlock()
	if err != nil {
		if known {
			return nil, altered("the policy of project %s", project).Seen("version %d was in force and its row is gone", cached.seq)
		}
		return nil, err
	}
	digest := hexSum(v.Document)
	if digest != v.Digest {
		return nil, altered("policy version %d", v.Seq).Seen("its text hashes to %s, its row says %s", digest, v.Digest)
	}
	if known {
		switch {
		case v.Seq < cached.seq:
			return nil, altered("the policy of project %s", project).Seen("version %d was in force, the newest row is version %d", cached.seq, v.Seq)
		case v.Seq == cached.seq && digest != cached.digest:
			return nil, altered("policy version %d", v.Seq).Seen("it was %s and is now %s", cached.digest, digest)
		case v.Seq == cached.seq:
			return cached.doc, nil
		}
	}
	leaf, err := s.newestLeaf(ctx, firmseal.LeafPolicyApply, project)
	if err != nil {
		return nil, err
	}
	if leaf.id != v.leaf || leaf.Record != digest {
		return nil, altered("policy version %d", v.Seq).Seen("the log's newest policy is %s, the row's %s", leaf.Record, digest)
	}
	doc, err := policy.Parse(v.Document)
	if err != nil {
		return nil, fmt.Errorf("compiling the policy in force: %w", err)
	}
	s.policies.mu.Lock()
	if s.policies.m == nil {
		s.policies.m = make(map[string]compiledPolicy)
	}
	s.policies.m[project] = compiledPolicy{seq: v.Seq, digest: digest, doc: doc}
	s.policies.mu.Unlock()
	return doc, nil
}
