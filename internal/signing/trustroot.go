package signing

import (
	"context"
	"fmt"
	"maps"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
)

// TrustRoot gives the trust root file: what the workspace's own seals are
// checked with, and what devices get. It has the active seal keys, one of which
// is enough, and the log.
//
// Keys and version follow the log: each creation and each retirement of a seal
// key is a change of the document. Devices keep the highest version that they
// have seen, so an edited table must not lower it: every key of the log must
// have its row, and every row must be the record that the log has.
func (s *Service) TrustRoot(ctx context.Context, project string) ([]byte, error) {
	var rows []KeyRecord
	var retired map[string]int64
	// Rows and log are read one after the other. They belong together if no key
	// was created or retired meanwhile; that is rare, and then both are read again.
	for {
		if err := s.follow(ctx); err != nil {
			return nil, err
		}
		created, ended := s.book.keys()
		err := s.db.View(ctx, func(tx *db.Tx) (err error) {
			rows, err = allKeys(tx)
			return err
		})
		if err != nil {
			return nil, err
		}
		if err := s.follow(ctx); err != nil {
			return nil, err
		}
		if now, ends := s.book.keys(); len(now) != len(created) || len(ends) != len(ended) {
			continue
		}
		for _, k := range rows {
			if err := s.book.holds(k); err != nil {
				return nil, err
			}
			delete(created, k.ID())
		}
		for id, leaf := range created {
			return nil, altered("key %s", leaf.name).Seen("the log has the creation of key %s, which has no row", id)
		}
		retired = ended
		break
	}
	t := &firmseal.TrustRoot{Threshold: 1, EmergencyThreshold: 1, Log: &firmseal.TrustedLog{Origin: s.log.Origin(), Key: s.logKey, Required: true}}
	for _, k := range rows {
		if k.Project != project || k.Binding.Purpose != keys.Seal {
			continue
		}
		t.Version++
		_, ended := retired[k.ID()]
		if !ended {
			t.Keys = append(t.Keys, firmseal.SealKey{Name: k.Name, Environment: string(k.Binding.Environment), SPKI: k.SPKI})
			continue
		}
		t.Version++
		if k.Retired == 0 {
			return nil, altered("key %s", k.Name).Seen("the log has its retirement, its row says that it is active")
		}
	}
	if len(t.Keys) == 0 {
		return nil, problem.New(problem.SealKeyMissing, "there is no active seal key").
			WithHint("firmseal key create seal-production --purpose seal --environment production --type ed25519")
	}
	return t.Marshal()
}

// keys gives copies of what the log says of all keys, by their ids.
func (b *book) keys() (created map[string]keyLeaf, retired map[string]int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.created), maps.Clone(b.retired)
}

// allKeys gives the keys of all projects, in the order in which they were made.
func allKeys(tx *db.Tx) ([]KeyRecord, error) {
	rows, err := tx.Query(`SELECT ` + keyColumns + ` FROM signing_key ORDER BY created, name`)
	if err != nil {
		return nil, fmt.Errorf("reading the keys: %w", err)
	}
	defer rows.Close()
	var out []KeyRecord
	for rows.Next() {
		k, err := scanKey(rows)
		if err != nil {
			return nil, fmt.Errorf("reading the keys: %w", err)
		}
		out = append(out, k)
	}
	return out, rows.Err()
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
