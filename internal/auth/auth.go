// Package auth answers who calls, and what the caller may do.
//
// # Tokens
//
// A program shows an API token, fsl_ID_SECRET. The secret has 256 bits and is
// shown once; the database holds its SHA-256 and could not give it back. Every
// token ends by itself, is for one project, and has scopes from one table.
// Nobody can give a token more than he has: no scope that he lacks, and no longer
// life than his own. Revoking a token revokes what was made with it, and what was
// made with that, so that a token that fell into wrong hands ends with all its
// offspring.
//
// Creating and revoking a token is a leaf of the log: [Record] is what the leaf
// commits to. When a token was last used is kept to within [useResolution], so
// that a request that only reads stays one.
//
// # The person at the keyboard
//
// Without a server the caller is whoever can read the workspace's files: [Local]
// is that person, with every scope.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gowebpki/jcs"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

const (
	prefix      = "fsl_"
	secretBytes = 32

	// MaxLifetime is the longest that a token can live. A build server's token
	// is renewed once a year, by somebody who then sees that it is there.
	MaxLifetime = 366 * 24 * time.Hour

	// MinLifetime is the shortest.
	MinLifetime = time.Minute

	// useResolution is how far behind a token's last use may be.
	useResolution = 10 * time.Minute

	// DefaultProject is the project of a workspace that has but one.
	DefaultProject = "default"

	maxName = 100
	idLen   = 36 // a UUID in text
)

// secrets are lower-case base32, which survives mail, shells and a phone call.
var encoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// Token is an API token without its secret.
type Token struct {
	ID        string  `json:"id"`
	Name      string  `json:"name"` // what it is for, for people
	Project   string  `json:"project"`
	Scopes    []Scope `json:"scopes"`  // sorted, none twice
	Created   int64   `json:"created"` // µs
	CreatedBy string  `json:"created_by"`
	Expires   int64   `json:"expires"`           // µs; always set
	Revoked   int64   `json:"revoked,omitempty"` // µs; 0: not revoked
	RevokedBy string  `json:"revoked_by,omitempty"`
	LastUsed  int64   `json:"last_used,omitempty"` // µs, up to useResolution late; 0: never
	Digest    []byte  `json:"-"`                   // SHA-256 of the secret
}

// Record is the canonical form (RFC 8785) of what is said of t when it is
// created or revoked: its token.* leaf commits to the SHA-256 of these bytes.
// The secret's digest is part of it, so that a row with another secret is not
// the token of the log.
func Record(t Token) []byte {
	text, err := json.Marshal(struct {
		V         int     `json:"v"`
		ID        string  `json:"id"`
		Name      string  `json:"name"`
		Project   string  `json:"project"`
		Scopes    []Scope `json:"scopes"`
		Created   int64   `json:"created"`
		CreatedBy string  `json:"created_by"`
		Expires   int64   `json:"expires"`
		Revoked   int64   `json:"revoked,omitempty"`
		RevokedBy string  `json:"revoked_by,omitempty"`
		Secret    string  `json:"secret_sha256"`
	}{1, t.ID, t.Name, t.Project, t.Scopes, t.Created, t.CreatedBy, t.Expires, t.Revoked, t.RevokedBy, hex.EncodeToString(t.Digest)})
	if err == nil {
		text, err = jcs.Transform(text)
	}
	if err != nil {
		panic("auth: a token record cannot be encoded: " + err.Error())
	}
	return text
}

// Spec asks for a token.
type Spec struct {
	By     Identity // who gives it; the token is for By's project, has no scope that By lacks and ends when By does
	Name   string   // what it is for
	Scopes []Scope
	TTL    time.Duration // MinLifetime to MaxLifetime
}

// Create makes a token in tx and returns its secret form, fsl_ID_SECRET, which
// cannot be had again. AUTH.FORBIDDEN: it would be more than s.By is, or s.By was
// revoked meanwhile.
func Create(tx *db.Tx, s Spec) (string, Token, error) {
	if n := utf8.RuneCountInString(s.Name); n == 0 || n > maxName || !utf8.ValidString(s.Name) || strings.ContainsFunc(s.Name, unicode.IsControl) {
		return "", Token{}, problem.New(problem.BadRequest, "a token needs a name of 1 to %d printable characters", maxName).
			WithHint("say what it is for: --name nightly-build")
	}
	if s.TTL < MinLifetime || s.TTL > MaxLifetime {
		return "", Token{}, problem.New(problem.BadRequest, "a token cannot live for %s", s.TTL).
			Seen("it may live from %s to %d days", MinLifetime, int(MaxLifetime.Hours()/24)).WithHint("add --ttl 90d")
	}
	if s.By.Project == "" || s.By.Actor == "" {
		return "", Token{}, problem.New(problem.Forbidden, "a token is given by somebody, for a project")
	}
	scopes, err := ParseScopes(s.Scopes)
	if err != nil {
		return "", Token{}, err
	}
	for _, sc := range scopes {
		if !s.By.Has(sc) {
			return "", Token{}, problem.New(problem.Forbidden, "%s cannot give the scope %s", s.By.Actor, sc).
				Seen("nobody can give a scope that he does not have").WithHint("ask for fewer scopes")
		}
	}
	secret := make([]byte, secretBytes)
	rand.Read(secret)
	sum := sha256.Sum256(secret)
	now := db.Now()
	t := Token{
		ID: db.NewID(), Name: s.Name, Project: s.By.Project, Scopes: scopes, Created: now, CreatedBy: s.By.Actor,
		Expires: now + s.TTL.Microseconds(), Digest: sum[:],
	}
	if e := s.By.Expires; e != 0 && t.Expires > e {
		hint := "make it with a token that lives longer"
		if left := (time.Duration(e-now) * time.Microsecond).Truncate(time.Minute); left >= MinLifetime {
			hint = fmt.Sprintf("ask for less: --ttl %s", left)
		}
		return "", Token{}, problem.New(problem.Forbidden, "%s cannot give a token that outlives it", s.By.Actor).
			Seen("it ends on %s, the new one would end on %s", moment(e), moment(t.Expires)).WithHint("%s", hint)
	}
	if id, ok := strings.CutPrefix(s.By.Actor, tokenActor); ok {
		// The row is written so that this waits for a revocation that is under
		// way, or makes it wait: else neither would see the other.
		r, err := tx.Exec(`UPDATE auth_token SET last_used = last_used WHERE id = $1 AND project = $2 AND revoked = 0`, id, s.By.Project)
		if err != nil {
			return "", Token{}, fmt.Errorf("holding token %s: %w", id, err)
		}
		if n, err := r.RowsAffected(); err != nil {
			return "", Token{}, fmt.Errorf("holding token %s: %w", id, err)
		} else if n != 1 {
			return "", Token{}, problem.New(problem.Forbidden, "%s cannot give a token", s.By.Actor).Seen("it was revoked")
		}
	}
	_, err = tx.Exec(`INSERT INTO auth_token(id, project, name, digest, scopes, created, created_by, expires, revoked, revoked_by, last_used)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,0,'',0)`,
		t.ID, t.Project, t.Name, t.Digest, joinScopes(scopes), t.Created, t.CreatedBy, t.Expires)
	if err != nil {
		return "", Token{}, fmt.Errorf("writing token %s: %w", t.ID, err)
	}
	return prefix + t.ID + "_" + strings.ToLower(encoding.EncodeToString(secret)), t, nil
}

const columns = `id, project, name, digest, scopes, created, created_by, expires, revoked, revoked_by, last_used`

func scan(row interface{ Scan(...any) error }) (Token, error) {
	var t Token
	var scopes string
	if err := row.Scan(&t.ID, &t.Project, &t.Name, &t.Digest, &scopes, &t.Created, &t.CreatedBy, &t.Expires, &t.Revoked, &t.RevokedBy, &t.LastUsed); err != nil {
		return Token{}, err
	}
	for _, s := range strings.Fields(scopes) {
		t.Scopes = append(t.Scopes, Scope(s))
	}
	return t, nil
}

// Get is one token of a project.
func Get(tx *db.Tx, project, id string) (Token, error) {
	t, err := scan(tx.QueryRow(`SELECT `+columns+` FROM auth_token WHERE project = $1 AND id = $2`, project, id))
	if errors.Is(err, db.ErrNotFound) {
		return Token{}, problem.New(problem.NotFound, "there is no token %.64q", id).WithHint("firmseal token list").Because(err)
	}
	if err != nil {
		return Token{}, fmt.Errorf("reading token: %w", err)
	}
	return t, nil
}

// List gives a project's tokens, the oldest first, with those that are expired
// or revoked.
func List(tx *db.Tx, project string) ([]Token, error) {
	return list(tx, `project = $1`, project)
}

func list(tx *db.Tx, where string, args ...any) ([]Token, error) {
	rows, err := tx.Query(`SELECT `+columns+` FROM auth_token WHERE `+where+` ORDER BY id`, args...)
	if err != nil {
		return nil, fmt.Errorf("listing tokens: %w", err)
	}
	defer rows.Close()
	var out []Token
	for rows.Next() {
		t, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("listing tokens: %w", err)
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

// Revoke ends a token of by's project now, with all tokens that were made with
// it, and with those. It gives the token and all that this call ended; a token
// that was revoked before is not among these, which is not an error.
func Revoke(tx *db.Tx, by Identity, id string) (t Token, ended []Token, err error) {
	if t, err = Get(tx, by.Project, id); err != nil {
		return t, nil, err
	}
	now := db.Now()
	seen := map[string]bool{t.ID: true}
	for next := []Token{t}; len(next) > 0; next = next[1:] {
		// First the token, then what it made: from here on it makes no more.
		x, changed, err := revoke(tx, by, next[0], now)
		if err != nil {
			return Token{}, nil, fmt.Errorf("revoking token %s: %w", next[0].ID, err)
		}
		if x.ID == t.ID {
			t = x
		}
		if changed {
			ended = append(ended, x)
		}
		made, err := list(tx, `project = $1 AND created_by = $2`, x.Project, tokenActor+x.ID)
		if err != nil {
			return Token{}, nil, err
		}
		for _, m := range made {
			if !seen[m.ID] {
				seen[m.ID] = true
				next = append(next, m)
			}
		}
	}
	return t, ended, nil
}

func revoke(tx *db.Tx, by Identity, t Token, now int64) (Token, bool, error) {
	if t.Revoked != 0 {
		return t, false, nil
	}
	t.Revoked, t.RevokedBy = now, by.Actor
	r, err := tx.Exec(`UPDATE auth_token SET revoked = $1, revoked_by = $2 WHERE id = $3 AND project = $4 AND revoked = 0`, t.Revoked, t.RevokedBy, t.ID, t.Project)
	if err != nil {
		return t, false, err
	}
	n, err := r.RowsAffected()
	if err == nil && n == 0 {
		// Somebody else was faster: that revocation counts.
		t, err = Get(tx, t.Project, t.ID)
	}
	return t, n == 1, err
}

func unauthenticated(why string) *problem.Error {
	return problem.New(problem.Unauthorized, "the API token was not accepted").Seen("%s", why).
		WithHint("set FIRMSEAL_TOKEN, or make a token: firmseal token create")
}

// Authenticate tells who sent a token. Everything that is wrong is
// AUTH.UNAUTHENTICATED. An unknown id and a wrong secret are told apart neither
// by words nor by time; that a token has expired or was revoked is told only to
// who has its secret.
func Authenticate(ctx context.Context, d *db.DB, bearer string) (Identity, error) {
	if bearer == "" {
		return Identity{}, unauthenticated("there is none in the request")
	}
	id, secret, ok := parse(bearer)
	if !ok {
		return Identity{}, unauthenticated("it does not have the form fsl_ID_SECRET")
	}
	var t Token
	found := true
	err := d.View(ctx, func(tx *db.Tx) (err error) {
		t, err = scan(tx.QueryRow(`SELECT `+columns+` FROM auth_token WHERE id = $1`, id))
		return err
	})
	switch {
	case errors.Is(err, db.ErrNotFound):
		found, t.Digest = false, make([]byte, sha256.Size)
	case err != nil:
		return Identity{}, fmt.Errorf("reading a token: %w", err)
	}
	sum := sha256.Sum256(secret)
	if subtle.ConstantTimeCompare(sum[:], t.Digest) != 1 || !found {
		return Identity{}, unauthenticated("it is not known here")
	}
	now := db.Now()
	if t.Revoked != 0 {
		return Identity{}, unauthenticated("it was revoked on " + day(t.Revoked))
	}
	if now >= t.Expires {
		return Identity{}, unauthenticated("it expired on " + day(t.Expires))
	}
	if stale := now - useResolution.Microseconds(); t.LastUsed <= stale {
		err := d.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(`UPDATE auth_token SET last_used = $1 WHERE id = $2 AND last_used <= $3`, now, t.ID, stale)
			return err
		})
		if err != nil {
			return Identity{}, fmt.Errorf("noting the use of token %s: %w", t.ID, err)
		}
	}
	return Identity{Actor: tokenActor + t.ID, Project: t.Project, Scopes: t.Scopes, Expires: t.Expires}, nil
}

// tokenActor comes before a token's id where it is an actor.
const tokenActor = "token:"

func day(us int64) string { return time.UnixMicro(us).UTC().Format(time.DateOnly) }

func moment(us int64) string { return time.UnixMicro(us).UTC().Format(time.RFC3339) }

// parse takes a bearer apart. It accepts exactly what Create writes.
func parse(bearer string) (id string, secret []byte, ok bool) {
	rest, ok := strings.CutPrefix(bearer, prefix)
	if !ok || len(rest) != idLen+1+encoding.EncodedLen(secretBytes) || rest[idLen] != '_' {
		return "", nil, false
	}
	text := rest[idLen+1:]
	secret, err := encoding.DecodeString(strings.ToUpper(text))
	if err != nil || strings.ToLower(encoding.EncodeToString(secret)) != text {
		return "", nil, false
	}
	for _, c := range []byte(rest[:idLen]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && c != '-' {
			return "", nil, false
		}
	}
	return rest[:idLen], secret, true
}

// Identity is who calls.
type Identity struct {
	Actor   string // "token:ID", "local:USER", "system"
	Project string
	Scopes  []Scope
	Expires int64 // µs, when the caller's token ends; 0: never, it has none
}

// Local is the person who works on a workspace directly.
func Local(user string) Identity {
	return Identity{Actor: "local:" + user, Project: DefaultProject, Scopes: Scopes()}
}

// Has says whether i has a scope.
func (i Identity) Has(s Scope) bool { return slices.Contains(i.Scopes, s) }

// Require is nil if i has the scope, and AUTH.FORBIDDEN if not.
func (i Identity) Require(s Scope) error {
	if i.Has(s) {
		return nil
	}
	who := i.Actor
	if who == "" {
		who = "nobody"
	}
	return problem.New(problem.Forbidden, "%s may not do this", who).
		Seen("it needs the scope %s, which allows to %s", s, s.Allows()).
		WithHint("use a token with it: firmseal token create --scope %s", s)
}

type contextKey struct{}

// With puts an identity into a context.
func With(ctx context.Context, i Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, i)
}

// From gives the identity of a context, if there is one.
func From(ctx context.Context) (Identity, bool) {
	i, ok := ctx.Value(contextKey{}).(Identity)
	return i, ok
}
