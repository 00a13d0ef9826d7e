package signing

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/policy"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
)

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
// because a key of theirs is missing, retired or bound to something else.
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
			case k.Binding != (keys.Binding{Purpose: keys.Firmware, Environment: keys.Environment(p.Environment), Product: p.Product, Format: p.Format}):
				st.Findings = append(st.Findings, Finding{
					Severity: "medium", What: "profile " + name + " cannot sign: key " + k.Name + " is bound to another environment, product or format", Next: "firmseal key show " + k.Name,
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
