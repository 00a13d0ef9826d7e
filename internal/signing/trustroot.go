package signing

import (
	"context"
	"fmt"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
)

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
