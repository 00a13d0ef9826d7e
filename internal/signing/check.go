package signing

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/tlog"
)

// row is a request as the database has it.
type row struct {
	id, project, actor string
	document, digest   []byte
	leaf               string
	state              State
	problem            string
	product            string
	environment        string
	version            string
	policy             string
	buildID            string
	buildTime          int64
	session            []byte
	receipt            string
	output             string
	outputSize         int64
	statement          []byte
	outcome            string
	release            string
	created, updated   int64
}

const rowColumns = `id, project, actor, document, digest, leaf, state, problem, product, environment, version, policy, build_id, build_time,
	session, receipt, output, output_size, statement, outcome, release, created, updated`

func scanRow(r interface{ Scan(...any) error }) (row, error) {
	var v row
	err := r.Scan(&v.id, &v.project, &v.actor, &v.document, &v.digest, &v.leaf, &v.state, &v.problem, &v.product, &v.environment,
		&v.version, &v.policy, &v.buildID, &v.buildTime, &v.session, &v.receipt, &v.output, &v.outputSize, &v.statement, &v.outcome,
		&v.release, &v.created, &v.updated)
	return v, err
}

func readRow(tx *db.Tx, id string) (row, error) {
	v, err := scanRow(tx.QueryRow(`SELECT `+rowColumns+` FROM signing_request WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return row{}, problem.New(problem.NotFound, "there is no request %s", id).WithHint("firmseal request list")
	}
	if err != nil {
		return row{}, fmt.Errorf("reading request %s: %w", id, err)
	}
	return v, nil
}

func altered(format string, a ...any) *problem.Error {
	return problem.New(problem.StateAltered, "the stored state of "+format+" was altered", a...).
		WithHint("find out who wrote to the database, then: firmseal log verify")
}

// request decodes a row's document and holds the row against it and against
// the request's own leaf in the log. It is called at the start of each step, so
// that a row edited between two steps ends the request.
func (s *Service) request(ctx context.Context, v row) (Request, error) {
	sum := sha256.Sum256(v.document)
	if subtle.ConstantTimeCompare(sum[:], v.digest) != 1 {
		return Request{}, altered("request %s", v.id).Seen("its document hashes to %x, its row says %x", sum, v.digest)
	}
	r, err := decodeRequest(v.document)
	if err != nil {
		return Request{}, altered("request %s", v.id).Seen("its document cannot be decoded").Because(err)
	}
	if r.ID != v.id || r.Project != v.project || r.Actor != v.actor || r.Product != v.product ||
		r.Environment != v.environment || r.Version != v.version || r.BuildID != v.buildID || v.release != "" {
		return Request{}, altered("request %s", v.id).Seen("its columns are not what its document says")
	}
	leaf, err := s.provenLeaf(ctx, v.leaf)
	if err != nil {
		return Request{}, unknownLeaf(err, "request %s", v.id)
	}
	if leaf.Type != firmseal.LeafRequest || leaf.Request != v.id || leaf.Record != hexSum(v.document) || leaf.Decision != "allow" || leaf.Policy != v.policy {
		return Request{}, altered("request %s", v.id).Seen("the log has %s of request %s with record %s, decision %q", leaf.Type, leaf.Request, leaf.Record, leaf.Decision)
	}
	return r, nil
}

// provenLeaf gives a leaf whose inclusion under the published checkpoint was
// verified just now. A leaf row that was edited has no such proof.
func (s *Service) provenLeaf(ctx context.Context, id string) (firmseal.Leaf, error) {
	if err := s.inLog(ctx, id); err != nil {
		return firmseal.Leaf{}, err
	}
	e, err := s.log.Included(ctx, id)
	return e.Leaf, err
}

// proveEntry is provenLeaf for an entry that was read from the log just now.
func (s *Service) proveEntry(ctx context.Context, e tlog.Entry) error {
	if err := s.inLog(ctx, e.ID); err != nil {
		return err
	}
	return s.log.Check(ctx, e)
}

// proof gives the .tlog-proof of a leaf and the leaf's bytes.
func (s *Service) proof(ctx context.Context, id string) (proof, leaf []byte, err error) {
	if err := s.inLog(ctx, id); err != nil {
		return nil, nil, err
	}
	proof, err = s.log.ProofOf(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	p, err := firmseal.ParseProof(proof)
	if err != nil {
		return nil, nil, fmt.Errorf("parsing our own log proof: %w", err)
	}
	return proof, p.Extra, nil
}

// logged runs fn in a transaction together with the leaf that it returns, and
// waits until the leaf is in the log.
func (s *Service) logged(ctx context.Context, fn func(*db.Tx) (firmseal.Leaf, error)) error {
	return s.logged2(ctx, func(tx *db.Tx) (firmseal.Leaf, func(string) error, error) {
		leaf, err := fn(tx)
		return leaf, func(string) error { return nil }, err
	})
}

// logged2 is logged for records that name their leaf: then is called with the
// leaf's id, in the same transaction.
func (s *Service) logged2(ctx context.Context, fn func(*db.Tx) (leaf firmseal.Leaf, then func(leafID string) error, err error)) error {
	id, err := s.append(ctx, fn)
	if err != nil {
		return err
	}
	_, err = s.log.Wait(ctx, tlog.Pending{ID: id})
	return err
}

// append is logged2 without the wait.
func (s *Service) append(ctx context.Context, fn func(*db.Tx) (firmseal.Leaf, func(string) error, error)) (string, error) {
	var id string
	err := s.db.Update(ctx, func(tx *db.Tx) error {
		leaf, then, err := fn(tx)
		if err != nil {
			return err
		}
		p, err := s.log.Append(tx, leaf)
		if err != nil {
			return err
		}
		id = p.ID
		return then(id)
	})
	return id, err
}

// encodedProblem is how a refusal is kept in a request's row.
type encodedProblem struct {
	Code problem.Code `json:"code"`
	What string       `json:"what"`
	Why  string       `json:"why,omitempty"`
	Next string       `json:"next,omitempty"`
}

func encodeProblem(p *problem.Error) (string, error) {
	b, err := json.Marshal(encodedProblem{p.Code, p.What, p.Why, p.Next})
	return string(b), err
}

func decodeProblem(s string) *problem.Error {
	if s == "" {
		return nil
	}
	var e encodedProblem
	if err := json.Unmarshal([]byte(s), &e); err != nil {
		return altered("a request").Seen("its refusal cannot be decoded").Because(err)
	}
	return &problem.Error{Code: e.Code, What: e.What, Why: e.Why, Next: e.Next}
}

func sortedStrings(s []string) []string {
	sort.Strings(s)
	return s
}

func joinOrNone(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}
