package signing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/policy"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
)

// CreateToken makes an API token and its leaf. The secret is in the answer and
// nowhere else.
func (s *Service) CreateToken(ctx context.Context, who auth.Identity, name string, scopes []string, ttl time.Duration) (string, auth.Token, error) {
	sc, err := auth.ParseScopes(scopes)
	if err != nil {
		return "", auth.Token{}, err
	}
	var secret string
	var t auth.Token
	err = s.logged(ctx, func(tx *db.Tx) (firmseal.Leaf, error) {
		var err error
		if secret, t, err = auth.Create(tx, auth.Spec{By: who, Name: name, Scopes: sc, TTL: ttl}); err != nil {
			return firmseal.Leaf{}, err
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "token.create", Actor: who.Actor, Project: who.Project, Subject: t.ID}); err != nil {
			return firmseal.Leaf{}, err
		}
		return firmseal.Leaf{Type: firmseal.LeafTokenCreate, Actor: who.Actor, Subject: t.ID, Record: hexSum(auth.Record(t))}, nil
	})
	return secret, t, err
}

// RevokeToken ends a token. Revoking a revoked one changes nothing.
func (s *Service) RevokeToken(ctx context.Context, who auth.Identity, id string) (auth.Token, error) {
	var t auth.Token
	err := s.logged(ctx, func(tx *db.Tx) (firmseal.Leaf, error) {
		var changed bool
		var err error
		if t, changed, err = auth.Revoke(tx, who, id); err != nil {
			return firmseal.Leaf{}, err
		}
		if !changed {
			return firmseal.Leaf{}, errUnchanged
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "token.revoke", Actor: who.Actor, Project: who.Project, Subject: t.ID}); err != nil {
			return firmseal.Leaf{}, err
		}
		return firmseal.Leaf{Type: firmseal.LeafTokenRevoke, Actor: who.Actor, Subject: t.ID, Record: hexSum(auth.Record(t))}, nil
	})
	if errors.Is(err, errUnchanged) {
		return t, nil
	}
	return t, err
}

// errUnchanged rolls back a transaction that has nothing to write.
var errUnchanged = errors.New("nothing changed")

// keyByID gives the project's key with a SubjectPublicKeyInfo digest.
func keyByID(tx *db.Tx, project, id string) (KeyRecord, error) {
	rows, err := tx.Query(`SELECT `+keyColumns+` FROM signing_key WHERE project = $1 AND purpose = $2`, project, string(keys.Seal))
	if err != nil {
		return KeyRecord{}, fmt.Errorf("reading the seal keys: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		k, err := scanKey(rows)
		if err != nil {
			return KeyRecord{}, err
		}
		if k.ID() == id {
			return k, nil
		}
	}
	if err := rows.Err(); err != nil {
		return KeyRecord{}, err
	}
	return KeyRecord{}, altered("the seal keys").Seen("the log names seal key %s, which has no row", id)
}

// trustRoot is what the workspace's own seals are checked with, and what
// devices get: the active seal keys, one of which is enough, and the log.
func (s *Service) trustRoot(tx *db.Tx, project string) (*firmseal.TrustRoot, error) {
	t := &firmseal.TrustRoot{Threshold: 1, EmergencyThreshold: 1, Log: &firmseal.TrustedLog{Origin: s.log.Origin(), Key: s.logKey, Required: true}}
	rows, err := tx.Query(`SELECT `+keyColumns+` FROM signing_key WHERE project = $1 AND purpose = $2 ORDER BY created, name`, project, string(keys.Seal))
	if err != nil {
		return nil, fmt.Errorf("reading the seal keys: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		k, err := scanKey(rows)
		if err != nil {
			return nil, err
		}
		// Each creation and each retirement is a change of the document.
		t.Version++
		if k.Retired != 0 {
			t.Version++
			continue
		}
		t.Keys = append(t.Keys, firmseal.SealKey{Name: k.Name, Environment: string(k.Binding.Environment), SPKI: k.SPKI})
	}
	return t, rows.Err()
}

// TrustRoot gives the trust root file.
func (s *Service) TrustRoot(ctx context.Context, project string) ([]byte, error) {
	var t *firmseal.TrustRoot
	err := s.db.View(ctx, func(tx *db.Tx) (err error) {
		t, err = s.trustRoot(tx, project)
		return err
	})
	if err != nil {
		return nil, err
	}
	// A key that somebody wrote into the table must not reach a device.
	for _, k := range t.Keys {
		rec, err := s.Key(ctx, project, k.Name)
		if err != nil {
			return nil, err
		}
		if err := s.holdKey(ctx, rec); err != nil {
			return nil, err
		}
		if string(rec.SPKI) != string(k.SPKI) || string(rec.Binding.Environment) != k.Environment {
			return nil, altered("key %s", k.Name).Seen("it changed while the trust root was made")
		}
	}
	if len(t.Keys) == 0 {
		return nil, problem.New(problem.SealKeyMissing, "there is no active seal key").
			WithHint("firmseal key create seal-production --purpose seal --environment production --type ed25519")
	}
	return t.Marshal()
}

// checkSeal verifies a seal and its proof as a device would, before anybody
// gets them. The key that sealed is taken from the log's leaf, so that a key
// retired meanwhile still finishes what it began.
func (s *Service) checkSeal(v row, r Request, key KeyRecord, env, proof []byte) error {
	root := &firmseal.TrustRoot{
		Version: 1, Threshold: 1, EmergencyThreshold: 1,
		Keys: []firmseal.SealKey{{Name: key.Name, Environment: string(key.Binding.Environment), SPKI: key.SPKI}},
		Log:  &firmseal.TrustedLog{Origin: s.log.Origin(), Key: s.logKey, Required: true},
	}
	got, err := firmseal.VerifySeal(firmseal.VerifyInput{
		TrustRoot: root, Seal: env, Proof: proof, Product: r.Product, HardwareID: r.HardwareIDs[0], UnsafeTest: r.Environment == string(keys.Test),
	})
	if err != nil {
		p := problem.Of(err)
		return problem.New(problem.VerifyFailed, "the seal of request %s would be refused by a device", v.id).Seen("%s: %s", p.Code, p.What).Because(err)
	}
	if st := got.Statement.Release; st.Version != r.Version || st.SecurityCounter != r.SecurityCounter || st.Request.ID != v.id {
		return problem.New(problem.VerifyFailed, "the seal of request %s is about something else", v.id).
			Seen("%s %s, request %s", st.Product, st.Version, st.Request.ID)
	}
	return nil
}

// Status is the health of a project's signing.
type Status struct {
	Origin   string
	LogKey   string // verifier key of the log
	LogSize  int64
	Requests map[string]int // by state
	Releases int
	Keys     int    // active ones
	Policy   string // digest of the one in force; empty if none
	Ready    bool   // a policy is in force and the log goes on; a profile may still lack its key
	Findings []Finding
}

// Finding is something that somebody should look at.
type Finding struct {
	Severity string // low, medium, high
	What     string
	Next     string
}

// Status counts what there is and lists what somebody should look at.
func (s *Service) Status(ctx context.Context, project string) (Status, error) {
	st := Status{Origin: s.log.Origin(), LogKey: s.logKey, Requests: map[string]int{}, Findings: []Finding{}}
	err := s.db.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(`SELECT state, COUNT(*) FROM signing_request WHERE project = $1 GROUP BY state`, project)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var state string
			var n int
			if err := rows.Scan(&state, &n); err != nil {
				return err
			}
			st.Requests[state] = n
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if st.Releases, err = release.Count(tx, project); err != nil {
			return err
		}
		p, err := currentPolicy(tx, project)
		switch {
		case err == nil:
			st.Policy, st.Ready = p.Digest, true
			if err := s.profileFindings(tx, project, p.Document, &st); err != nil {
				return err
			}
		case problem.Has(err, problem.PolicyMissing):
			st.Findings = append(st.Findings, Finding{Severity: "medium", What: "no policy is in force, so nothing can be signed", Next: "firmseal policy apply firmseal-policy.yaml"})
		default:
			return err
		}
		return s.keyFindings(tx, project, &st)
	})
	if err != nil {
		return Status{}, err
	}
	if n := st.Requests[string(Unknown)]; n > 0 {
		st.Findings = append(st.Findings, Finding{Severity: "high", What: fmt.Sprintf("%d requests have an unknown outcome and wait for a person", n), Next: "firmseal request list --state unknown"})
	}
	if err := s.log.Refusal(); err != nil {
		st.Ready = false
		p := problem.Of(err)
		st.Findings = append(st.Findings, Finding{Severity: "high", What: "nothing is signed: " + p.What, Next: p.Next})
	}
	st.LogSize = s.log.Size()
	return st, nil
}

// profileFindings names the profiles of the policy in force that cannot sign,
// because a key of theirs is missing or retired.
func (s *Service) profileFindings(tx *db.Tx, project string, document []byte, st *Status) error {
	doc, err := policy.Parse(document)
	if err != nil {
		return altered("the policy in force").Seen("its document cannot be read any more").Because(err)
	}
	names := doc.Profiles()
	sort.Strings(names)
	for _, name := range names {
		p, _ := doc.Profile(name) // it was in the list
		for _, role := range slices.Sorted(maps.Keys(p.Keys)) {
			k, err := s.ownKey(tx, project, p.Keys[role])
			switch {
			case problem.Has(err, problem.KeyNotFound):
				st.Findings = append(st.Findings, Finding{
					Severity: "medium", What: "profile " + name + " cannot sign: there is no key " + p.Keys[role],
					Next: "firmseal key create " + p.Keys[role] + " --environment " + p.Environment + " --product " + p.Product + " --format " + p.Format,
				})
			case err != nil:
				return err
			case k.Retired != 0:
				st.Findings = append(st.Findings, Finding{
					Severity: "medium", What: "profile " + name + " cannot sign: key " + k.Name + " is retired", Next: "name another key in the profile, and apply it: firmseal policy apply FILE",
				})
			}
		}
	}
	return nil
}

func (s *Service) keyFindings(tx *db.Tx, project string, st *Status) error {
	rows, err := tx.Query(`SELECT `+keyColumns+` FROM signing_key WHERE project = $1 AND retired = 0 ORDER BY name`, project)
	if err != nil {
		return err
	}
	defer rows.Close()
	seal := map[keys.Environment]bool{}
	for rows.Next() {
		k, err := scanKey(rows)
		if err != nil {
			return err
		}
		st.Keys++
		if k.Binding.Purpose == keys.Seal {
			seal[k.Binding.Environment] = true
		}
		if k.Binding.Purpose == keys.Firmware && k.Binding.Environment == keys.Production && isSoft(k.URI) {
			st.Findings = append(st.Findings, Finding{Severity: "high", What: "production key " + k.Name + " is in a file; whoever reads this machine's memory has it"})
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, env := range []keys.Environment{keys.Test, keys.Production} {
		if !seal[env] {
			st.Findings = append(st.Findings, Finding{
				Severity: "medium", What: "there is no active seal key for environment " + string(env),
				Next: "firmseal key create seal-" + string(env) + " --purpose seal --environment " + string(env) + " --type ed25519",
			})
		}
	}
	return nil
}

func isSoft(uri string) bool { return len(uri) > 5 && uri[:5] == "soft:" }
