package signing

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
)

// KeyRecord is a key as the workspace knows it.
type KeyRecord struct {
	keys.Info
	Project   string
	CreatedBy string
	Retired   int64 // µs; 0 while active
	RetiredBy string
}

// State is "active" or "retired".
func (k KeyRecord) State() string {
	if k.Retired != 0 {
		return "retired"
	}
	return "active"
}

// record is what the key.create leaf commits to.
func (k KeyRecord) record() ([]byte, error) {
	return canonical(map[string]any{
		"v": 1, "name": k.Name, "project": k.Project, "uri": k.URI, "type": k.Type, "key": k.ID(),
		"binding": k.Binding, "created": k.Created, "created_by": k.CreatedBy,
	})
}

// CreateKey makes a key in the backend that scheme names and registers it. The
// key exists in the backend before its row does: a crash between the two leaves
// an unregistered key that signs nothing, and the same call with the same spec
// adopts it.
func (s *Service) CreateKey(ctx context.Context, who auth.Identity, scheme string, spec keys.Spec) (KeyRecord, error) {
	if !keyNameRE.MatchString(spec.Name) {
		return KeyRecord{}, problem.New(problem.RequestFields, "%q is not a key name", clip(spec.Name)).
			Seen("lower-case letters, digits, '.', '_' and '-', at most 63")
	}
	if err := checkBinding(spec.Binding); err != nil {
		return KeyRecord{}, err
	}
	if spec.Type == "" && spec.Binding.Purpose == keys.Seal {
		spec.Type = alg.Ed25519
	}
	if spec.Binding.Purpose == keys.Log {
		return KeyRecord{}, problem.New(problem.KeyBinding, "a log key is made by firmseal init only").
			Seen("the log's origin and key are one from its first leaf on")
	}
	if spec.Binding.Purpose == keys.Seal && spec.Type != alg.Ed25519 && spec.Type != alg.P256 && spec.Type != alg.P384 {
		return KeyRecord{}, problem.New(problem.AlgUnsupported, "a seal key cannot be %s", spec.Type).
			Seen("devices check seals with ed25519, p256 or p384").WithHint("use --type ed25519")
	}
	if spec.Binding.Purpose == keys.Firmware {
		f, err := s.formats.ByName(spec.Binding.Format)
		if err != nil {
			return KeyRecord{}, err
		}
		if spec.Type, err = keyType(f, spec.Type); err != nil {
			return KeyRecord{}, err
		}
	}
	b, ok := s.backends[scheme]
	if !ok {
		return KeyRecord{}, problem.New(problem.KeyNotFound, "there is no key backend %q", scheme).Seen("backends: %s", strings.Join(s.schemes(), ", "))
	}
	if err := s.db.View(ctx, func(tx *db.Tx) error {
		_, err := readKey(tx, spec.Name)
		if err == nil {
			return problem.New(problem.KeyExists, "key %s exists", spec.Name).Seen("names are never reused").WithHint("firmseal key show %s", spec.Name)
		}
		if problem.Has(err, problem.KeyNotFound) {
			return nil
		}
		return err
	}); err != nil {
		return KeyRecord{}, err
	}
	k, err := b.Create(ctx, spec)
	if problem.Has(err, problem.KeyExists) {
		k, err = adopt(ctx, b, spec)
	}
	if err != nil {
		return KeyRecord{}, err
	}
	return s.RegisterKey(ctx, who, k.Info())
}

// keyType is the type that was asked for, or the format's first where none was.
// A type that the format's verifiers cannot check is refused before a key of it
// exists: it would sign images that no device accepts.
func keyType(f image.Format, asked alg.KeyType) (alg.KeyType, error) {
	d, ok := f.(image.Describer)
	if !ok {
		return asked, nil
	}
	types := d.Help().KeyTypes
	if asked == "" {
		return types[0], nil
	}
	if slices.Contains(types, asked) {
		return asked, nil
	}
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = string(t)
	}
	return "", problem.New(problem.AlgUnsupported, "no verifier of format %s can check a signature by a %s key", f.Name(), asked).
		Seen("format %s takes %s", f.Name(), strings.Join(names, ", ")).WithHint("make it with --type %s", names[0])
}

// adopt takes a key that a crash left in the backend, if it is just what was
// asked for.
func adopt(ctx context.Context, b keys.Backend, spec keys.Spec) (keys.Key, error) {
	k, err := b.Open(ctx, b.Scheme()+":"+spec.Name)
	if err != nil {
		return nil, err
	}
	if i := k.Info(); i.Type != spec.Type || i.Binding != spec.Binding {
		return nil, problem.New(problem.KeyExists, "key %s exists in the backend and is another key", spec.Name).
			Seen("it is a %s %s key for %s", i.Type, i.Binding.Purpose, i.Binding.Environment).WithHint("choose another name")
	}
	return k, nil
}

// RegisterKey writes the row and leaf of a key that a backend holds.
func (s *Service) RegisterKey(ctx context.Context, who auth.Identity, info keys.Info) (KeyRecord, error) {
	rec := KeyRecord{Info: info, Project: who.Project, CreatedBy: who.Actor}
	if _, _, err := alg.ParseSPKI(info.SPKI); err != nil {
		return KeyRecord{}, err
	}
	doc, err := rec.record()
	if err != nil {
		return KeyRecord{}, err
	}
	return rec, s.logged(ctx, func(tx *db.Tx) (firmseal.Leaf, error) {
		res, err := tx.Exec(`INSERT INTO signing_key(name, project, uri, type, spki, purpose, environment, product, format, created, created_by, retired, retired_by)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,0,'') ON CONFLICT DO NOTHING`,
			rec.Name, rec.Project, rec.URI, string(rec.Type), rec.SPKI, string(rec.Binding.Purpose), string(rec.Binding.Environment),
			rec.Binding.Product, rec.Binding.Format, rec.Created, rec.CreatedBy)
		if err != nil {
			return firmseal.Leaf{}, fmt.Errorf("registering key %s: %w", rec.Name, err)
		}
		if n, err := res.RowsAffected(); err != nil {
			return firmseal.Leaf{}, err
		} else if n == 0 {
			return firmseal.Leaf{}, problem.New(problem.KeyExists, "key %s exists", rec.Name).Seen("names are never reused").WithHint("firmseal key show %s", rec.Name)
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "key.create", Actor: who.Actor, Project: who.Project, Subject: rec.Name}); err != nil {
			return firmseal.Leaf{}, err
		}
		return firmseal.Leaf{Type: firmseal.LeafKeyCreate, Actor: who.Actor, Subject: rec.Name, Key: rec.ID(), Record: hexSum(doc)}, nil
	})
}

// RetireKey ends a key: no use of it is begun after the transaction. A request in
// flight that needs another use of it is refused with KEY.RETIRED, and so is a
// person's resume. Only an attempt that is open at that moment, with its leaf in
// the log, is finished, and what it signs may be released. So a list of the
// attempts in the log before the retirement's leaf is all that the key ever did.
func (s *Service) RetireKey(ctx context.Context, who auth.Identity, name string) (KeyRecord, error) {
	var rec KeyRecord
	err := s.logged(ctx, func(tx *db.Tx) (firmseal.Leaf, error) {
		var err error
		if rec, err = s.ownKey(tx, who.Project, name); err != nil {
			return firmseal.Leaf{}, err
		}
		if rec.Retired != 0 {
			return firmseal.Leaf{}, problem.New(problem.KeyRetired, "key %s is retired already", name).Seen("since %s, by %s", day(rec.Retired), rec.RetiredBy)
		}
		if rec.Binding.Purpose == keys.Log {
			return firmseal.Leaf{}, problem.New(problem.KeyBinding, "the log key cannot be retired").Seen("the log would end")
		}
		rec.Retired, rec.RetiredBy = db.Now(), who.Actor
		res, err := tx.Exec(`UPDATE signing_key SET retired = $2, retired_by = $3 WHERE name = $1 AND retired = 0`, name, rec.Retired, rec.RetiredBy)
		if err != nil {
			return firmseal.Leaf{}, fmt.Errorf("retiring key %s: %w", name, err)
		}
		if n, err := res.RowsAffected(); err != nil {
			return firmseal.Leaf{}, err
		} else if n != 1 {
			return firmseal.Leaf{}, problem.New(problem.KeyRetired, "key %s was retired meanwhile", name).WithHint("firmseal key show %s", name)
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "key.retire", Actor: who.Actor, Project: who.Project, Subject: name}); err != nil {
			return firmseal.Leaf{}, err
		}
		doc, err := rec.record()
		if err != nil {
			return firmseal.Leaf{}, err
		}
		return firmseal.Leaf{Type: firmseal.LeafKeyRetire, Actor: who.Actor, Subject: name, Key: rec.ID(), Record: hexSum(doc)}, nil
	})
	return rec, err
}

// Keys lists a project's keys by name.
func (s *Service) Keys(ctx context.Context, project string) ([]KeyRecord, error) {
	var out []KeyRecord
	err := s.db.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(`SELECT `+keyColumns+` FROM signing_key WHERE project = $1 ORDER BY name`, project)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			k, err := scanKey(rows)
			if err != nil {
				return err
			}
			out = append(out, k)
		}
		return rows.Err()
	})
	return out, err
}

// Key gives one of a project's keys.
func (s *Service) Key(ctx context.Context, project, name string) (KeyRecord, error) {
	var rec KeyRecord
	err := s.db.View(ctx, func(tx *db.Tx) (err error) {
		rec, err = s.ownKey(tx, project, name)
		return err
	})
	return rec, err
}

// ExportTrust makes what a device must hold to accept images signed by key name.
func (s *Service) ExportTrust(ctx context.Context, project, name string, o image.Options) ([]image.Artifact, error) {
	rec, err := s.Key(ctx, project, name)
	if err != nil {
		return nil, err
	}
	if rec.Binding.Purpose != keys.Firmware {
		return nil, problem.New(problem.KeyBinding, "key %s is a %s key", name, rec.Binding.Purpose).
			Seen("only firmware keys have a form that a bootloader reads").WithHint("firmseal trust export")
	}
	f, err := s.formats.ByName(rec.Binding.Format)
	if err != nil {
		return nil, err
	}
	return f.ExportTrust([]image.PublicMaterial{{Role: "image", Name: rec.Name, SPKI: rec.SPKI}}, o)
}

const keyColumns = `name, project, uri, type, spki, purpose, environment, product, format, created, created_by, retired, retired_by`

func scanKey(row interface{ Scan(...any) error }) (KeyRecord, error) {
	var k KeyRecord
	err := row.Scan(&k.Name, &k.Project, &k.URI, &k.Type, &k.SPKI, &k.Binding.Purpose, &k.Binding.Environment,
		&k.Binding.Product, &k.Binding.Format, &k.Created, &k.CreatedBy, &k.Retired, &k.RetiredBy)
	return k, err
}

func readKey(tx *db.Tx, name string) (KeyRecord, error) {
	k, err := scanKey(tx.QueryRow(`SELECT `+keyColumns+` FROM signing_key WHERE name = $1`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return KeyRecord{}, problem.New(problem.KeyNotFound, "there is no key %s", name).WithHint("firmseal key list")
	}
	if err != nil {
		return KeyRecord{}, fmt.Errorf("reading key %s: %w", name, err)
	}
	return k, nil
}

func (s *Service) ownKey(tx *db.Tx, project, name string) (KeyRecord, error) {
	k, err := readKey(tx, name)
	if err == nil && k.Project != project {
		return KeyRecord{}, problem.New(problem.KeyNotFound, "there is no key %s", name).WithHint("firmseal key list")
	}
	return k, err
}

// shareKey gives a key that is active, and stays so until the end of tx: on
// PostgreSQL a retirement waits for it. Whoever rests on a key's being active
// asks here before it appends its leaf, so that the log has both in that order.
func shareKey(tx *db.Tx, name string) (KeyRecord, error) {
	k, err := scanKey(tx.QueryRow(`SELECT `+keyColumns+` FROM signing_key WHERE name = $1`+tx.ForShare(), name))
	if errors.Is(err, sql.ErrNoRows) {
		return KeyRecord{}, problem.New(problem.KeyNotFound, "there is no key %s", name).WithHint("firmseal key list")
	}
	if err != nil {
		return KeyRecord{}, fmt.Errorf("reading key %s: %w", name, err)
	}
	if k.Retired != 0 {
		return KeyRecord{}, retiredProblem(k)
	}
	return k, nil
}

// sealKey is the newest active seal key of an environment.
func sealKey(tx *db.Tx, project string, env keys.Environment) (KeyRecord, error) {
	k, err := scanKey(tx.QueryRow(`SELECT `+keyColumns+` FROM signing_key
		WHERE project = $1 AND purpose = $2 AND environment = $3 AND retired = 0 ORDER BY created DESC, name LIMIT 1`,
		project, string(keys.Seal), string(env)))
	if errors.Is(err, sql.ErrNoRows) {
		return KeyRecord{}, problem.New(problem.SealKeyMissing, "there is no active seal key for environment %s", env).
			WithHint("firmseal key create seal-%s --purpose seal --environment %s --type ed25519", env, env)
	}
	return k, err
}

// open gives the backend's key behind a row and holds the row against it. The
// backend's own record is the fact (for soft keys it is inside the encrypted
// file); a row that says otherwise was edited.
func (s *Service) open(ctx context.Context, rec KeyRecord) (keys.Key, error) {
	scheme, _, _ := strings.Cut(rec.URI, ":")
	b, ok := s.backends[scheme]
	if !ok {
		return nil, problem.New(problem.KeyUnavailable, "the backend of key %s is not here", rec.Name).
			Seen("its URI is %s; backends: %s", rec.URI, strings.Join(s.schemes(), ", "))
	}
	k, err := b.Open(ctx, rec.URI)
	if err != nil {
		return nil, err
	}
	i := k.Info()
	switch {
	case !bytes.Equal(i.SPKI, rec.SPKI):
		return nil, altered("key %s", rec.Name).Seen("the database names public key %s, the backend holds %s", rec.ID(), i.ID())
	case i.Binding != rec.Binding:
		return nil, altered("key %s", rec.Name).Seen("the database says %+v, the key itself %+v", rec.Binding, i.Binding)
	case i.Name != rec.Name || i.Type != rec.Type:
		return nil, altered("key %s", rec.Name).Seen("the database says %s, the key itself %s %s", rec.Type, i.Name, i.Type)
	}
	return k, nil
}

func (s *Service) schemes() []string {
	var out []string
	for n := range s.backends {
		out = append(out, n)
	}
	return sortedStrings(out)
}

func checkBinding(b keys.Binding) error {
	if b.Environment != keys.Test && b.Environment != keys.Production {
		return problem.New(problem.RequestFields, "environment %q is not one", clip(string(b.Environment))).Seen("test or production")
	}
	switch b.Purpose {
	case keys.Firmware:
		if !nameRE.MatchString(b.Product) || b.Format == "" {
			return problem.New(problem.RequestFields, "a firmware key is bound to a product and a format").
				Seen("product %q, format %q", clip(b.Product), clip(b.Format)).WithHint("add --product NAME --format FORMAT")
		}
	case keys.Seal, keys.Log:
		if b.Product != "" || b.Format != "" {
			return problem.New(problem.RequestFields, "a %s key has no product or format", b.Purpose)
		}
	default:
		return problem.New(problem.RequestFields, "purpose %q is not one", clip(string(b.Purpose))).Seen("firmware or seal")
	}
	return nil
}

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
