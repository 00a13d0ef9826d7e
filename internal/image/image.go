// Package image is what every firmware image format can do, without ever
// seeing a key.
//
// A format is one folder below this one and one line in cmd/firmseal/parts.go.
// It reads bytes (Detect, Inspect), works out what has to be signed (Plan),
// takes the signatures that somebody else made and writes the finished file
// (Session.Next, Session.Embed), says what the device must hold (ExportTrust),
// and decides as the device's own verifier would (Verify).
//
// # Two implementations, on purpose
//
// Verify of a format shares constants with its Plan and nothing else: no
// parser, no layout code, no hash-region code. If both used one parser, one
// misreading of the bytes would be made twice and found by nobody. The image
// that left Plan and Embed is judged by Verify before it is released, so a
// bug in one half is caught by the other. imagetest checks both statements.
//
// # Memory
//
// An image may be 2 GiB. Nothing here reads one whole: a Source is read by
// ranges, hashing and copying stream, and a length read from an image is
// compared with what is there before anything is allocated by it.
//
// # Rounds
//
// A Session is a state machine that survives a restart: between any two calls
// it can be marshalled, thrown away and resumed over the same source. Next is
// first called with nil and returns requests; it is called again with exactly
// one signature for each of those requests, in any order, until done.
package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/problem"
)

// Source is an image's bytes. ReadAt is safe for concurrent use.
type Source interface {
	io.ReaderAt
	Size() int64
}

// Bytes is a Source over memory.
func Bytes(b []byte) Source { return bytes.NewReader(b) }

// Score is how sure Detect is.
type Score int

const (
	No     Score = 0
	Maybe  Score = 50  // could be; only its name or a weak mark speaks for it
	Likely Score = 80  // the magic is right
	Sure   Score = 100 // the magic is right and the structure holds together
)

// Options are a format's own settings as a JSON object; nil means {}. Every
// format decodes them strictly into its own struct with [DecodeOptions]: an
// unknown or misspelt name is an error, never ignored.
type Options = json.RawMessage

// DecodeOptions decodes o strictly into dst. The error names the format and
// the option.
func DecodeOptions(format string, o Options, dst any) error {
	if len(o) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(o))
	d.DisallowUnknownFields()
	if err := d.Decode(dst); err != nil {
		return problem.New(problem.ImageOptions, "the options for format %s cannot be used", format).
			Seen("%v", err).Because(err).WithHint("firmseal help format %s", format)
	}
	// Not d.More, which takes a stray bracket for the end.
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return problem.New(problem.ImageOptions, "the options for format %s are more than one JSON value", format)
	}
	return nil
}

// PublicMaterial is the public half of a key that will sign, as Plan and
// ExportTrust need it.
type PublicMaterial struct {
	Role string // which key of the profile this is; "image" where a format has but one
	Name string // the key's name in Firmseal; FIT writes it as key-name-hint unless options say otherwise
	SPKI []byte // DER SubjectPublicKeyInfo
	Alg  alg.ID // the scheme to use; empty lets the format take its default for the key type
}

// KeyID is the hex SHA-256 of the SubjectPublicKeyInfo.
func (p PublicMaterial) KeyID() string { return alg.KeyID(p.SPKI) }

// Format is one firmware image format. It holds no state and is safe for
// concurrent use.
type Format interface {
	// Name is the format's one name in profiles, URLs and the CLI.
	Name() string
	// Detect is cheap and never fails.
	Detect(r io.ReaderAt, size int64) Score
	// Inspect reads without keys. It returns a Report for anything Detect
	// scores above No, with what could be read and the findings; it returns an
	// error only if the bytes cannot be read at all as this format.
	Inspect(ctx context.Context, src Source) (*Report, error)
	// Plan decides what must be signed. Everything that ends up in the signed
	// bytes is fixed here. pub names every key that will sign.
	Plan(ctx context.Context, src Source, o Options, pub []PublicMaterial) (Session, error)
	// Resume continues a marshalled session over the same source. A state
	// that is not from MarshalBinary, or from another source's session, is an
	// error.
	Resume(ctx context.Context, src Source, state []byte) (Session, error)
	// Verify decides as the target's verifier would. A refusal is a Verdict;
	// an error means that no decision could be made (reading failed, unusable
	// options, cancelled).
	Verify(ctx context.Context, src Source, t Trust, p Profile) (*Verdict, error)
	// ExportTrust makes what must be on the device for it to accept images
	// signed by pub.
	ExportTrust(pub []PublicMaterial, o Options) ([]Artifact, error)
}

// Session is one signing of one image in progress.
type Session interface {
	// Next takes the signatures of the last round's requests (nil in the first
	// round) and returns the next requests, or done. Signatures are checked
	// for form here; whether they verify is Verify's business.
	Next(ctx context.Context, prev []Signature) (reqs []SignRequest, done bool, err error)
	// MarshalBinary saves the state; it holds no secret.
	MarshalBinary() ([]byte, error)
	// Embed writes the finished output once Next has said done. For a detached
	// format the output is the signature file; see Receipt.Detached. It may be
	// called again and writes the same bytes.
	Embed(ctx context.Context, w io.Writer) (*Receipt, error)
}

// SignRequest is one thing for one key to sign.
type SignRequest struct {
	Slot  string   `json:"slot"` // which signature of the image: "image", "conf-1"; unique within the session
	Role  string   `json:"role"` // which key of the profile
	Key   string   `json:"key"`  // KeyID of the key that must sign
	Alg   alg.ID   `json:"alg"`
	Kind  alg.Kind `json:"kind"`
	Input []byte   `json:"input"` // the digest, or the message
	Show  []Field  `json:"show"`  // what a reviewer sees; derived from the image by the format
}

// Field is a name and a value for people.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Signature answers a SignRequest. Value is canonical: ECDSA as DER, RSA
// big-endian of the modulus length, Ed25519 64 bytes. Formats convert.
type Signature struct {
	Slot  string `json:"slot"`
	Value []byte `json:"value"`
}

// Receipt says what Embed wrote.
type Receipt struct {
	Format   string  `json:"format"`
	Size     int64   `json:"size"`               // bytes written
	Detached bool    `json:"detached,omitempty"` // the output is a signature file beside the unchanged image
	Notes    []Field `json:"notes,omitempty"`
}

// Trust is what the target holds.
type Trust struct {
	Keys     []TrustedKey // anchors
	Detached []byte       // the detached signature file, for formats that have one
	Counter  *uint64      // the target's stored security counter, where known
}

// TrustedKey is an anchor on a target.
type TrustedKey struct {
	Name     string // as the target knows it (key-name-hint, label); may be empty
	SPKI     []byte // DER SubjectPublicKeyInfo
	Optional bool   // present, but the target does not require a signature by it
}

// Profile names the verifier that decides: which one, which version, how it was
// built. The zero Profile is the format's strictest current verifier.
type Profile struct {
	Verifier string  `json:"verifier,omitempty"` // "u-boot", "mcuboot", "openssl"
	Version  string  `json:"version,omitempty"`
	Options  Options `json:"options,omitempty"` // the format's own
}

// Stage is where in a verification a finding belongs; the order is the order
// in which a verifier meets them. One vocabulary for all formats.
type Stage string

const (
	StageContainer   Stage = "container"
	StageIntegrity   Stage = "integrity"
	StageCoverage    Stage = "coverage"
	StageKeyID       Stage = "key-id"
	StageSignature   Stage = "signature"
	StageCertificate Stage = "certificate"
	StagePolicy      Stage = "policy"
	StageTarget      Stage = "target-capability"
)

// Severity of a finding.
type Severity string

const (
	OK    Severity = "ok"    // checked, and right
	Warn  Severity = "warn"  // accepted, but somebody should know
	Fatal Severity = "fatal" // refused for this
)

// Range is a run of bytes of the source.
type Range struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// Finding is one thing that Verify or Inspect saw.
type Finding struct {
	Stage    Stage        `json:"stage"`
	Severity Severity     `json:"severity"`
	Code     problem.Code `json:"code,omitempty"` // for warn and fatal
	What     string       `json:"what"`
	Range    *Range       `json:"range,omitempty"`
	Expected string       `json:"expected,omitempty"`
	Actual   string       `json:"actual,omitempty"`
	Device   []string     `json:"device,omitempty"` // the device's own words for this
	Cause    string       `json:"cause,omitempty"`  // the usual cause, for people
	Next     string       `json:"next,omitempty"`   // what to do
}

// Verdict has two columns. Valid: the signatures are right for the bytes and a
// trusted key, whoever asks. Accepted: this target with this profile would run
// the image. Accepted without Valid is possible, and is the worst finding there
// is: a target that does not enforce.
type Verdict struct {
	Format     string          `json:"format"`
	Profile    Profile         `json:"profile"`
	Valid      bool            `json:"valid"`
	Accepted   bool            `json:"accepted"`
	Findings   []Finding       `json:"findings"`
	Signatures []SignatureInfo `json:"signatures,omitempty"`
}

// Refusal is the first fatal finding as an error, or nil if Valid and Accepted.
func (v *Verdict) Refusal() error {
	if v.Valid && v.Accepted {
		return nil
	}
	for _, f := range v.Findings {
		if f.Severity != Fatal {
			continue
		}
		e := problem.New(f.Code, "%s", f.What)
		switch {
		case f.Expected != "" || f.Actual != "":
			e = e.Seen("expected %s, saw %s", orNone(f.Expected), orNone(f.Actual))
		case f.Cause != "":
			e = e.Seen("%s", f.Cause)
		}
		return e.WithHint("%s", f.Next)
	}
	return problem.New(problem.Internal, "the %s verdict is a refusal without a finding", v.Format)
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// SignatureInfo is one signature found in an image.
type SignatureInfo struct {
	Slot    string `json:"slot"`
	Alg     alg.ID `json:"alg,omitempty"`
	KeyHint string `json:"key_hint,omitempty"` // as the image names the key
	KeyID   string `json:"key_id,omitempty"`   // SPKI SHA-256, where the image or the trust tells it
	Valid   *bool  `json:"valid,omitempty"`    // nil: not checked
	Range   *Range `json:"range,omitempty"`
}

// Report is what an image says of itself, unchecked.
type Report struct {
	Format     string          `json:"format"`
	Size       int64           `json:"size"`
	Facts      Facts           `json:"facts"`
	Tree       []Node          `json:"tree"`
	Signatures []SignatureInfo `json:"signatures,omitempty"`
	Findings   []Finding       `json:"findings,omitempty"`
}

// Facts are the claims of an image that policy compares with the request. A nil
// or empty field: the format has none, or the image does not say.
type Facts struct {
	Version         string   `json:"version,omitempty"`
	SecurityCounter *uint64  `json:"security_counter,omitempty"`
	Product         string   `json:"product,omitempty"`
	HardwareIDs     []string `json:"hardware_ids,omitempty"`
	Signed          bool     `json:"signed"`                // carries at least one signature
	SignedWith      []string `json:"signed_with,omitempty"` // key ids or hints
}

// Node is a field of an image with its bytes.
type Node struct {
	Name     string `json:"name"`
	Value    string `json:"value,omitempty"`
	Off      int64  `json:"off"`
	Len      int64  `json:"len"`
	Children []Node `json:"children,omitempty"`
}

// Artifact is something to put on the device, or into its build.
type Artifact struct {
	Name      string `json:"name"` // a file name
	MediaType string `json:"media_type"`
	Data      []byte `json:"data"`
	Note      string `json:"note"` // where it goes
}

// Registry is the list of formats that main handed down, in order.
type Registry []Format

// ByName gives a format, or an error that lists those there are.
func (g Registry) ByName(name string) (Format, error) {
	for _, f := range g {
		if f.Name() == name {
			return f, nil
		}
	}
	return nil, problem.New(problem.ImageUnknownFormat, "there is no format %q", name).Seen("formats: %s", g.names())
}

// Detect gives the format that is surest of src, if any scores above No.
func (g Registry) Detect(src Source) (Format, Score) {
	var best Format
	score := No
	for _, f := range g {
		if s := f.Detect(src, src.Size()); s > score {
			best, score = f, s
		}
	}
	return best, score
}

func (g Registry) names() string {
	var b bytes.Buffer
	for i, f := range g {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(f.Name())
	}
	return b.String()
}

// DigestFormat is an optional interface of a Format whose image may stay at
// home: it can plan and verify from the image's SHA-256 and size alone. What is
// made this way is marked "bytes unseen" wherever it is shown.
type DigestFormat interface {
	PlanDigest(ctx context.Context, sha256 []byte, size int64, o Options, pub []PublicMaterial) (Session, error)
	ResumeDigest(ctx context.Context, sha256 []byte, size int64, state []byte) (Session, error)
	VerifyDigest(ctx context.Context, sha256 []byte, size int64, t Trust, p Profile) (*Verdict, error)
}

// Stamper is an optional interface of a Format that writes the release's own
// version and counter into the image (MCUboot does). Stamp returns o with them
// set; values that the profile has set already and that differ are an error.
type Stamper interface {
	Stamp(o Options, version string, securityCounter uint64) (Options, error)
}

// OptionHelp describes one option of a format for people.
type OptionHelp struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Text string `json:"text"`
}

// FormatHelp is what a format says of itself: what it is, which keys its
// verifiers can check, and the options that Plan, Verify and ExportTrust take.
type FormatHelp struct {
	Name     string        `json:"name"`
	Summary  string        `json:"summary"`
	KeyTypes []alg.KeyType `json:"key_types"` // the one to propose first
	Options  []OptionHelp  `json:"options"`
	Target   []OptionHelp  `json:"target"`
	Trust    []OptionHelp  `json:"trust"`
}

// Describer is an optional interface of a Format that explains its options.
type Describer interface {
	// Help is the Plan half's: everything but Target.
	Help() FormatHelp
	// VerifyHelp gives Target: the options of a Profile.
	VerifyHelp() []OptionHelp
}

// Describe is a format's whole help.
func Describe(d Describer) FormatHelp {
	h := d.Help()
	h.Target = d.VerifyHelp()
	return h
}

// TrustInstaller is an optional interface of a Format whose trust lives inside
// a file that the device has already (FIT: the control device tree). It returns
// base with the keys added; what else base trusts stays.
type TrustInstaller interface {
	InstallTrust(base []byte, pub []PublicMaterial, o Options) ([]byte, error)
}
