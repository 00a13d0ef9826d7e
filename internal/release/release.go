// Package release is the catalogue of what was signed, sealed and let go.
//
// A release is written once, in the transaction that makes its request
// `released`, and never changed. It is the only thing that goes from signing to
// the parts that publish and roll out.
//
// # Claims
//
// Two different images must never both call themselves product P, version V for
// hardware H. A request therefore claims (project, product, environment,
// hardware id, variant, version) for every hardware id it names, in the
// transaction that redeems its ticket; a second claim of the same name is
// refused. A claim is freed when its request fails, and stays for ever once it
// is released. The security counter is checked against claims, not releases, so
// that two requests in flight cannot pass each other.
package release

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

// Codes of this package's refusals are in the one list of package problem.

// Release is one sealed release.
type Release struct {
	ID              string   `json:"id"`
	Project         string   `json:"project"`
	Request         string   `json:"request"` // id of the signing request
	Product         string   `json:"product"`
	Environment     string   `json:"environment"`
	HardwareIDs     []string `json:"hardware_ids"`
	Variant         string   `json:"variant,omitempty"`
	Version         string   `json:"version"`
	SecurityCounter uint64   `json:"security_counter"`
	Format          string   `json:"format"`
	Emergency       bool     `json:"emergency,omitempty"`
	BytesUnseen     bool     `json:"bytes_unseen,omitempty"`
	BuildID         string   `json:"build_id,omitempty"`
	Image           File     `json:"image"`               // what a device installs
	Signature       *File    `json:"signature,omitempty"` // detached formats: the signature file
	Seal            []byte   `json:"-"`                   // the DSSE envelope, as JSON
	LeafIndex       int64    `json:"leaf_index"`          // the sign.outcome leaf
	Created         int64    `json:"created"`             // µs
}

// File is a stored file, named by its digest.
type File struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // hex
	Size   int64  `json:"size"`
}

// Claim is a name that a request wants for its image.
type Claim struct {
	Request         string
	Project         string
	Product         string
	Environment     string
	HardwareIDs     []string
	Variant         string
	Version         string
	SecurityCounter uint64
}

// Take claims c for its request, or refuses because another request holds the
// name. Taking the same claim again for the same request is a no-op.
func Take(tx *db.Tx, c Claim) error {
	for _, hw := range c.HardwareIDs {
		var holder string
		err := tx.QueryRow(`SELECT request FROM release_board
			WHERE project = $1 AND product = $2 AND environment = $3 AND hardware_id = $4 AND variant = $5 AND version = $6`,
			c.Project, c.Product, c.Environment, hw, c.Variant, c.Version).Scan(&holder)
		if err == nil && holder != c.Request {
			return taken(c, hw, holder)
		}
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("reading the release of %s %s: %w", c.Product, c.Version, err)
		}
		// One statement decides: a concurrent claim on PostgreSQL waits here
		// for the other transaction and then sees its row.
		_, err = tx.Exec(`INSERT INTO release_claim(project, product, environment, hardware_id, variant, version, security_counter, request)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
			c.Project, c.Product, c.Environment, hw, c.Variant, c.Version, int64(c.SecurityCounter), c.Request)
		if err != nil {
			return fmt.Errorf("claiming %s %s for %s: %w", c.Product, c.Version, hw, err)
		}
		err = tx.QueryRow(`SELECT request FROM release_claim
			WHERE project = $1 AND product = $2 AND environment = $3 AND hardware_id = $4 AND variant = $5 AND version = $6`,
			c.Project, c.Product, c.Environment, hw, c.Variant, c.Version).Scan(&holder)
		if err != nil {
			return fmt.Errorf("reading the claim on %s %s: %w", c.Product, c.Version, err)
		}
		if holder != c.Request {
			return taken(c, hw, holder)
		}
	}
	return nil
}

func taken(c Claim, hardware, holder string) error {
	return problem.New(problem.VersionTaken, "%s %s for %s is taken in environment %s", c.Product, c.Version, hardware, c.Environment).
		Seen("request %s holds it; a version names one image for ever", holder).
		WithHint("raise the version, or look at it: firmseal request show %s", holder)
}

// Free gives a failed request's claims back. Claims of a released request are
// not freed.
func Free(tx *db.Tx, request string) error {
	_, err := tx.Exec(`DELETE FROM release_claim WHERE request = $1
		AND NOT EXISTS (SELECT 1 FROM release WHERE release.request = release_claim.request)`, request)
	if err != nil {
		return fmt.Errorf("freeing the claims of %s: %w", request, err)
	}
	return nil
}

// Last is the newest claim for a product on any of some hardware ids.
type Last struct {
	Exists          bool
	Version         string
	SecurityCounter uint64
}

// Lock makes the other claims on a product line wait for this transaction, so
// that two requests cannot both believe to be the last. On SQLite, where there
// is one writer, it only counts.
func Lock(tx *db.Tx, project, product, environment string) error {
	_, err := tx.Exec(`INSERT INTO release_line(project, product, environment, claims) VALUES ($1, $2, $3, 1)
		ON CONFLICT (project, product, environment) DO UPDATE SET claims = release_line.claims + 1`, project, product, environment)
	if err != nil {
		return fmt.Errorf("locking the releases of %s: %w", product, err)
	}
	return nil
}

// LastClaim gives the highest security counter that is claimed for product in
// environment on any of hardware, and the highest version with that counter,
// request's own claims apart. Versions have the order of Semantic Versioning; of
// two that differ in build metadata alone, the text decides. A caller that decides
// by it takes Lock first.
func LastClaim(tx *db.Tx, project, product, environment string, hardware []string, request string) (Last, error) {
	var last Last
	var newest firmseal.Version
	for _, hw := range hardware {
		claims, err := highest(tx, project, product, environment, hw, request)
		if err != nil {
			return Last{}, fmt.Errorf("reading the last claims of %s: %w", product, err)
		}
		if err := heldByReleases(tx, project, product, environment, hw, request, claims); err != nil {
			return Last{}, err
		}
		for _, c := range claims {
			v, err := firmseal.ParseVersion(c.Version)
			if err != nil {
				return Last{}, problem.New(problem.StateAltered, "a claim of %s for %s does not read as it was written", product, hw).
					Seen("its version is %.128q", c.Version).WithHint("compare the database with the log: firmseal log verify").Because(err)
			}
			if last.Exists && cmp.Or(cmp.Compare(c.SecurityCounter, last.SecurityCounter), v.Compare(newest), cmp.Compare(c.Version, last.Version)) <= 0 {
				continue
			}
			last, newest = c, v
		}
	}
	return last, nil
}

// highest gives the claims on one hardware id that have its highest counter.
// SQL has no order of versions: 1.10.0 is below 1.9.0 to it.
func highest(tx *db.Tx, project, product, environment, hardware, request string) ([]Last, error) {
	rows, err := tx.Query(`SELECT DISTINCT version, security_counter FROM release_claim
		WHERE project = $1 AND product = $2 AND environment = $3 AND hardware_id = $4 AND request <> $5 AND security_counter = (
			SELECT MAX(security_counter) FROM release_claim
			WHERE project = $1 AND product = $2 AND environment = $3 AND hardware_id = $4 AND request <> $5)`,
		project, product, environment, hardware, request)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Last
	for rows.Next() {
		var v string
		var n int64
		if err := rows.Scan(&v, &n); err != nil {
			return nil, err
		}
		out = append(out, Last{Exists: true, Version: v, SecurityCounter: uint64(n)})
	}
	return out, rows.Err()
}

// heldByReleases holds the highest claims on a board against what was released
// for it: a claim that was deleted or lowered by hand would let the counter
// fall.
func heldByReleases(tx *db.Tx, project, product, environment, hardware, request string, claims []Last) error {
	var released sql.NullInt64
	if err := tx.QueryRow(`SELECT MAX(security_counter) FROM release_board
		WHERE project = $1 AND product = $2 AND environment = $3 AND hardware_id = $4 AND request <> $5`,
		project, product, environment, hardware, request).Scan(&released); err != nil {
		return fmt.Errorf("reading the releases of %s: %w", product, err)
	}
	if !released.Valid || len(claims) > 0 && claims[0].SecurityCounter >= uint64(released.Int64) {
		return nil
	}
	highest := "none"
	if len(claims) > 0 {
		highest = fmt.Sprint(claims[0].SecurityCounter)
	}
	return problem.New(problem.StateAltered, "the claims of %s for %s were altered", product, hardware).
		Seen("a release has security counter %d, the highest claim %s", released.Int64, highest).
		WithHint("find out who wrote to the database, then: firmseal log verify")
}

// Create writes r. Its request can have one release only: a second Create for
// the same request is a conflict, whatever the caller believes.
func Create(tx *db.Tx, r Release) error {
	hw, err := json.Marshal(r.HardwareIDs)
	if err != nil {
		return err
	}
	image, err := json.Marshal(r.Image)
	if err != nil {
		return err
	}
	var sig []byte
	if r.Signature != nil {
		if sig, err = json.Marshal(r.Signature); err != nil {
			return err
		}
	}
	_, err = tx.Exec(`INSERT INTO release(id, project, request, product, environment, hardware_ids, variant, version, security_counter,
		format, emergency, bytes_unseen, build_id, image, signature, seal, leaf_index, created)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18)`,
		r.ID, r.Project, r.Request, r.Product, r.Environment, string(hw), r.Variant, r.Version, int64(r.SecurityCounter),
		r.Format, boolInt(r.Emergency), boolInt(r.BytesUnseen), r.BuildID, string(image), nullable(sig), r.Seal, r.LeafIndex, r.Created)
	if err != nil {
		return fmt.Errorf("writing release %s: %w", r.ID, err)
	}
	for _, board := range r.HardwareIDs {
		if _, err := tx.Exec(`INSERT INTO release_board(project, product, environment, hardware_id, variant, version, security_counter, request)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8)`,
			r.Project, r.Product, r.Environment, board, r.Variant, r.Version, int64(r.SecurityCounter), r.Request); err != nil {
			return fmt.Errorf("writing release %s for %s: %w", r.ID, board, err)
		}
	}
	return nil
}

const columns = `id, project, request, product, environment, hardware_ids, variant, version, security_counter,
	format, emergency, bytes_unseen, build_id, image, signature, seal, leaf_index, created`

// Get gives a release by its id or its request's id.
func Get(tx *db.Tx, project, id string) (Release, error) {
	r, err := scan(tx.QueryRow(`SELECT `+columns+` FROM release WHERE project = $1 AND (id = $2 OR request = $2)`, project, id))
	if errors.Is(err, sql.ErrNoRows) {
		return Release{}, problem.New(problem.NotFound, "there is no release %s", id).WithHint("firmseal release list")
	}
	return r, err
}

// Filter narrows List; a zero field does not.
type Filter struct {
	Product     string
	Environment string
	Before      string // id of the last release of the previous page
	Limit       int    // 1 to 500; 0 is 50
}

// List gives releases, newest first.
func List(tx *db.Tx, project string, f Filter) ([]Release, error) {
	if f.Limit <= 0 {
		f.Limit = 50
	}
	if f.Limit > 500 {
		f.Limit = 500
	}
	rows, err := tx.Query(`SELECT `+columns+` FROM release
		WHERE project = $1 AND ($2 = '' OR product = $2) AND ($3 = '' OR environment = $3) AND ($4 = '' OR id < $4)
		ORDER BY id DESC LIMIT $5`, project, f.Product, f.Environment, f.Before, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("listing releases: %w", err)
	}
	defer rows.Close()
	var out []Release
	for rows.Next() {
		r, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

func scan(row interface{ Scan(...any) error }) (Release, error) {
	var r Release
	var hw, image string
	var sig sql.NullString
	var counter int64
	var emergency, unseen int
	err := row.Scan(&r.ID, &r.Project, &r.Request, &r.Product, &r.Environment, &hw, &r.Variant, &r.Version, &counter,
		&r.Format, &emergency, &unseen, &r.BuildID, &image, &sig, &r.Seal, &r.LeafIndex, &r.Created)
	if err != nil {
		return Release{}, err
	}
	r.SecurityCounter, r.Emergency, r.BytesUnseen = uint64(counter), emergency != 0, unseen != 0
	if err := json.Unmarshal([]byte(hw), &r.HardwareIDs); err != nil {
		return Release{}, fmt.Errorf("release %s: hardware ids: %w", r.ID, err)
	}
	if err := json.Unmarshal([]byte(image), &r.Image); err != nil {
		return Release{}, fmt.Errorf("release %s: image: %w", r.ID, err)
	}
	if sig.Valid {
		r.Signature = new(File)
		if err := json.Unmarshal([]byte(sig.String), r.Signature); err != nil {
			return Release{}, fmt.Errorf("release %s: signature: %w", r.ID, err)
		}
	}
	return r, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func nullable(b []byte) any {
	if b == nil {
		return nil
	}
	return string(b)
}

// Count gives the number of a project's releases.
func Count(tx *db.Tx, project string) (int, error) {
	var n int
	if err := tx.QueryRow(`SELECT COUNT(*) FROM release WHERE project = $1`, project).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting releases: %w", err)
	}
	return n, nil
}
