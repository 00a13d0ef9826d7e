package firmseal

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The names that make a statement one of ours.
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://github.com/firmseal/firmseal/firmware-release/v1"
)

// Environments of releases and keys.
const (
	EnvironmentTest       = "test"
	EnvironmentProduction = "production"
)

// Bounds of a statement.
const (
	MaxStatement       = 256 << 10 // bytes of JSON
	MaxHardwareIDs     = 64
	MaxDependencies    = 32
	MaxSignedWith      = 16
	MaxMetadata        = 64
	MaxMetadataValue   = 1024 // bytes
	MaxName            = 128  // bytes of a product, hardware id, variant, format or metadata key
	MaxFileName        = 255  // bytes of a subject's name
	MaxText            = 512  // bytes of a requester, request id or build id
	MaxSecurityCounter = maxInteger
)

// createdLayout is RFC 3339 in UTC with whole seconds: one text for one time.
const createdLayout = "2006-01-02T15:04:05Z"

// Statement is what a seal says: an in-toto Statement v1 whose predicate is a
// firmware release. It is immutable: its SHA-256 is the name of the seal
// (Envelope.ID), so any change makes another seal.
type Statement struct {
	// Subjects are the files. The first is what a device installs; for a format
	// with a detached signature the second is the signature file.
	Subjects []Subject
	Release  Release
}

// Subject is a file, named by its digest.
type Subject struct {
	Name   string // a plain file name, for people
	SHA256 string // 64 lower-case hex digits
}

// Release says what the files are and what they may run on.
type Release struct {
	Product         string
	HardwareIDs     []string // at least one; no duplicates
	Variant         string   // optional
	Version         string   // Semantic Versioning 2.0.0
	SecurityCounter uint64   // below 2^53; a device never takes a lower one than its own
	MinimumVersion  string   // optional: the least version that may update to this release
	Dependencies    []Dependency
	Format          string // of the image: "mcuboot", "fit", "raw"
	Environment     string // EnvironmentTest or EnvironmentProduction
	Emergency       bool   // waives the order of versions; the counter must rise
	BytesUnseen     bool   // the signer saw digests only
	Created         time.Time
	Request         RequestRef
	Requester       string   // the authenticated identity that asked
	SignedWith      []string // ids of the keys that signed the image (KeyID)
	Policy          string   // hex SHA-256 of the policy document that allowed it
	BuildID         string   // optional
	Metadata        map[string]string
}

// Dependency is another product or image of the device that must be there.
type Dependency struct {
	Name           string `json:"name"`
	MinimumVersion string `json:"minimumVersion"`
}

// RequestRef names the signing request that led to the release.
type RequestRef struct {
	ID     string `json:"id"`
	SHA256 string `json:"sha256"` // hex, of the canonical request
}

// NewSubject is a Subject; sha256 is in hex.
func NewSubject(name, sha256 string) Subject { return Subject{Name: name, SHA256: sha256} }

// NewStatement puts the two halves together. Marshal validates them.
func NewStatement(subjects []Subject, r Release) *Statement {
	return &Statement{Subjects: subjects, Release: r}
}

// The documents, as they are written.
type (
	statementJSON struct {
		Type          string        `json:"_type"`
		Subject       []subjectJSON `json:"subject"`
		PredicateType string        `json:"predicateType"`
		Predicate     releaseJSON   `json:"predicate"`
	}
	subjectJSON struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	}
	releaseJSON struct {
		Product         string            `json:"product"`
		HardwareIDs     []string          `json:"hardwareIds"`
		Variant         string            `json:"variant,omitempty"`
		Version         string            `json:"version"`
		SecurityCounter uint64            `json:"securityCounter"`
		MinimumVersion  string            `json:"minimumVersion,omitempty"`
		Dependencies    []Dependency      `json:"dependencies,omitempty"`
		Format          string            `json:"format"`
		Environment     string            `json:"environment"`
		Emergency       bool              `json:"emergency"`
		BytesUnseen     bool              `json:"bytesUnseen"`
		Created         string            `json:"created"`
		Request         RequestRef        `json:"request"`
		Requester       string            `json:"requester"`
		SignedWith      []string          `json:"signedWith"`
		Policy          string            `json:"policy"`
		BuildID         string            `json:"buildId,omitempty"`
		Metadata        map[string]string `json:"metadata,omitempty"`
	}
)

// Marshal validates s and gives the bytes that are sealed. They are the payload
// for ever; nothing marshals them a second time.
func (s *Statement) Marshal() ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	r := s.Release
	doc := statementJSON{Type: StatementType, PredicateType: PredicateType, Predicate: releaseJSON{
		Product: r.Product, HardwareIDs: r.HardwareIDs, Variant: r.Variant, Version: r.Version, SecurityCounter: r.SecurityCounter,
		MinimumVersion: r.MinimumVersion, Dependencies: r.Dependencies, Format: r.Format, Environment: r.Environment,
		Emergency: r.Emergency, BytesUnseen: r.BytesUnseen, Created: r.Created.Format(createdLayout), Request: r.Request,
		Requester: r.Requester, SignedWith: r.SignedWith, Policy: r.Policy, BuildID: r.BuildID, Metadata: r.Metadata,
	}}
	for _, f := range s.Subjects {
		doc.Subject = append(doc.Subject, subjectJSON{f.Name, map[string]string{"sha256": f.SHA256}})
	}
	data, err := encodeJSON(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding the release statement: %w", err)
	}
	// Fields within their own bounds add up to less than this, whatever the
	// JSON escapes cost.
	if len(data) > MaxStatement {
		return nil, tooLarge("the release statement", len(data), MaxStatement)
	}
	return data, nil
}

// ParseStatement reads a statement strictly. Members that it does not know are
// ignored, as in-toto demands; everything that it knows is valid afterwards.
// Errors: SEAL.TOO_LARGE, SEAL.MALFORMED, SEAL.TYPE_UNKNOWN.
func ParseStatement(data []byte) (*Statement, error) {
	if len(data) > MaxStatement {
		return nil, tooLarge("the release statement", len(data), MaxStatement)
	}
	m, err := parseJSON(data)
	if err != nil {
		return nil, malformedStatement(err)
	}
	doc := members{m, "", &err}
	typ, predicateType := doc.str("_type"), doc.str("predicateType")
	if err != nil {
		return nil, malformedStatement(err)
	}
	if typ != StatementType || predicateType != PredicateType {
		return nil, refuse(CodeSealType, "the statement is not a firmware release").
			seen("its type is %q with predicate %q", clip(typ), clip(predicateType)).
			next("use the .seal file that came with the image; a newer predicate needs a newer Firmseal")
	}
	s := new(Statement)
	for _, f := range doc.objects("subject", 2) {
		s.Subjects = append(s.Subjects, Subject{Name: f.str("name"), SHA256: f.object("digest").str("sha256")})
	}
	p := doc.object("predicate")
	r := Release{
		Product: p.str("product"), HardwareIDs: p.strs("hardwareIds", MaxHardwareIDs), Variant: p.optStr("variant"),
		Version: p.str("version"), SecurityCounter: p.integer("securityCounter"), MinimumVersion: p.optStr("minimumVersion"),
		Format: p.str("format"), Environment: p.str("environment"), Emergency: p.boolean("emergency"),
		BytesUnseen: p.boolean("bytesUnseen"), Requester: p.str("requester"), SignedWith: p.strs("signedWith", MaxSignedWith),
		Policy: p.str("policy"), BuildID: p.optStr("buildId"),
	}
	if p.has("dependencies") {
		for _, d := range p.objects("dependencies", MaxDependencies) {
			r.Dependencies = append(r.Dependencies, Dependency{d.str("name"), d.str("minimumVersion")})
		}
	}
	request := p.object("request")
	r.Request = RequestRef{request.str("id"), request.str("sha256")}
	if p.has("metadata") {
		meta := p.object("metadata")
		if len(meta.m) > MaxMetadata {
			p.fail("metadata", "has %d entries, more than %d", len(meta.m), MaxMetadata)
		} else if len(meta.m) > 0 {
			r.Metadata = make(map[string]string, len(meta.m))
			for _, k := range meta.names() {
				r.Metadata[k] = meta.str(k)
			}
		}
	}
	created := p.str("created")
	if r.Created, _ = time.Parse(createdLayout, created); r.Created.Format(createdLayout) != created {
		p.fail("created", "is not a time as %s", createdLayout)
	}
	if err != nil {
		return nil, malformedStatement(err)
	}
	s.Release = r
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

func malformedStatement(err error) *Error {
	return refuse(CodeEnvelopeMalformed, "the release statement cannot be read").seen("%v", err).
		next("fetch the .seal file again from where the release was published")
}

func tooLarge(what string, n, most int) *Error {
	return refuse(CodeEnvelopeTooLarge, "%s is too large", what).seen("%d bytes, the most is %d", n, most).
		next("use the file that Firmseal wrote; nothing that it writes is as large")
}

// Validate checks both halves. The error is SEAL.MALFORMED and names the member
// of the document that is wrong.
func (s *Statement) Validate() error {
	if n := len(s.Subjects); n < 1 || n > 2 {
		return malformedStatement(fmt.Errorf("subject has %d entries, not one or two", n))
	}
	for _, f := range s.Subjects {
		if !plainFileName(f.Name) {
			return malformedStatement(fmt.Errorf("subject name %q is not a plain file name of at most %d bytes", clip(f.Name), MaxFileName))
		}
		if !isDigest(f.SHA256) {
			return malformedStatement(fmt.Errorf("subject %s has no SHA-256 of 64 lower-case hex digits", clip(f.Name)))
		}
	}
	if len(s.Subjects) == 2 && s.Subjects[0].Name == s.Subjects[1].Name {
		return malformedStatement(fmt.Errorf("both subjects are named %q", clip(s.Subjects[0].Name)))
	}
	return s.Release.Validate()
}

// Validate checks everything that can be checked without the files. A signer
// calls it before a key is used.
func (r Release) Validate() error {
	if err := r.check(); err != nil {
		return malformedStatement(err)
	}
	return nil
}

func (r Release) check() error {
	names := []struct{ member, value string }{{"product", r.Product}, {"format", r.Format}}
	if r.Variant != "" {
		names = append(names, struct{ member, value string }{"variant", r.Variant})
	}
	for _, n := range names {
		if !isName(n.value) {
			return fmt.Errorf("%s %q is not a name: 1 to %d printable ASCII characters without spaces", n.member, clip(n.value), MaxName)
		}
	}
	if len(r.HardwareIDs) == 0 || len(r.HardwareIDs) > MaxHardwareIDs {
		return fmt.Errorf("hardwareIds has %d entries, not 1 to %d", len(r.HardwareIDs), MaxHardwareIDs)
	}
	for i, h := range r.HardwareIDs {
		if !isName(h) {
			return fmt.Errorf("hardwareIds %q is not a name", clip(h))
		}
		if slices.Contains(r.HardwareIDs[:i], h) {
			return fmt.Errorf("hardwareIds has %q twice", clip(h))
		}
	}
	if _, err := ParseVersion(r.Version); err != nil {
		return fmt.Errorf("version %w", err)
	}
	if r.SecurityCounter > MaxSecurityCounter {
		return fmt.Errorf("securityCounter is %d, more than 2^53-1", r.SecurityCounter)
	}
	if r.MinimumVersion != "" {
		if _, err := ParseVersion(r.MinimumVersion); err != nil {
			return fmt.Errorf("minimumVersion %w", err)
		}
	}
	if len(r.Dependencies) > MaxDependencies {
		return fmt.Errorf("dependencies has %d entries, more than %d", len(r.Dependencies), MaxDependencies)
	}
	for _, d := range r.Dependencies {
		if !isName(d.Name) {
			return fmt.Errorf("dependencies: %q is not a name", clip(d.Name))
		}
		if _, err := ParseVersion(d.MinimumVersion); err != nil {
			return fmt.Errorf("dependencies: minimumVersion of %s %w", d.Name, err)
		}
	}
	if !isEnvironment(r.Environment) {
		return fmt.Errorf("environment is %q, neither %q nor %q", clip(r.Environment), EnvironmentTest, EnvironmentProduction)
	}
	if c := r.Created; c.Location() != time.UTC || c.Nanosecond() != 0 || c.Year() < 1970 || c.Year() > 9999 {
		return fmt.Errorf("created %s is not a time in UTC with whole seconds", r.Created)
	}
	if !isText(r.Request.ID) || !isDigest(r.Request.SHA256) {
		return fmt.Errorf("request has no id or no SHA-256")
	}
	if !isText(r.Requester) {
		return fmt.Errorf("requester is not a text of 1 to %d bytes without control characters", MaxText)
	}
	if len(r.SignedWith) > MaxSignedWith {
		return fmt.Errorf("signedWith has %d entries, more than %d", len(r.SignedWith), MaxSignedWith)
	}
	for _, id := range r.SignedWith {
		if !isDigest(id) {
			return fmt.Errorf("signedWith %q is not a key id", clip(id))
		}
	}
	if !isDigest(r.Policy) {
		return fmt.Errorf("policy %q is not a SHA-256 of 64 lower-case hex digits", clip(r.Policy))
	}
	if r.BuildID != "" && !isText(r.BuildID) {
		return fmt.Errorf("buildId is not a text of at most %d bytes without control characters", MaxText)
	}
	if len(r.Metadata) > MaxMetadata {
		return fmt.Errorf("metadata has %d entries, more than %d", len(r.Metadata), MaxMetadata)
	}
	for _, k := range slices.Sorted(maps.Keys(r.Metadata)) {
		v := r.Metadata[k]
		if !isName(k) {
			return fmt.Errorf("metadata key %q is not a name", clip(k))
		}
		if len(v) > MaxMetadataValue || !utf8.ValidString(v) || strings.ContainsFunc(v, func(c rune) bool { return isControl(c) && c != '\n' && c != '\t' }) {
			return fmt.Errorf("metadata %s is not a text of at most %d bytes", k, MaxMetadataValue)
		}
	}
	return nil
}

func isEnvironment(s string) bool { return s == EnvironmentTest || s == EnvironmentProduction }

// isName keeps names free of what a shell, a terminal or a path could take for
// something else than a name.
func isName(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= MaxName
}

func isText(s string) bool {
	return s != "" && len(s) <= MaxText && utf8.ValidString(s) && !strings.ContainsFunc(s, isControl)
}

// isControl includes C1: U+009B starts a terminal's control sequence.
func isControl(c rune) bool { return c < 0x20 || c >= 0x7f && c <= 0x9f }

func plainFileName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= MaxFileName && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, isControl) && !strings.ContainsAny(s, `/\`)
}

func isDigest(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return true
}

func hexSum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
