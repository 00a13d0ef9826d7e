package signing

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"time"
	"unicode/utf8"

	"github.com/gowebpki/jcs"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// State is where a request stands.
type State string

const (
	Queued   State = "queued"   // allowed; its ticket waits to be redeemed
	Signing  State = "signing"  // the intent is logged
	Sealing  State = "sealing"  // the finished file is verified, its outcome logged
	Released State = "released" // sealed and in the catalogue; final
	Denied   State = "denied"   // policy said no; final
	Failed   State = "failed"   // something refused for good; final
	Unknown  State = "unknown"  // a key may have been used; waits for a person
)

// Rests reports whether nothing will happen without a person.
func (s State) Rests() bool {
	return s == Released || s == Denied || s == Failed || s == Unknown
}

// Final reports whether nothing will ever happen to the request any more.
func (s State) Final() bool {
	return s == Released || s == Denied || s == Failed
}

// waitPoll is how often Wait looks by itself, for changes made by another replica.
const waitPoll = 500 * time.Millisecond

// Submission is what a caller asks for. What is to be signed is not in it: the
// server derives that from the uploaded bytes.
type Submission struct {
	Profile         string
	Version         string
	SecurityCounter *uint64
	MinimumVersion  string
	HardwareIDs     []string
	Variant         string
	Dependencies    []firmseal.Dependency
	Emergency       bool
	BytesUnseen     bool
	Metadata        map[string]string
	BuildID         string
	BuildFinished   int64 // µs since 1970; 0 if unknown
	Input           Input
	Content         []byte // the image itself, when small; else it is uploaded before
}

// MaxInline bounds Submission.Content, in bytes.
const MaxInline = 1 << 20

// Input names the image's bytes.
type Input struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // hex
	Size   int64  `json:"size"`
}

// Request is the canonical record of what was asked. Its RFC 8785 encoding is
// what policy decided on, what the log commits to and what the key checks.
type Request struct {
	V               int                   `json:"v"` // 1
	ID              string                `json:"id"`
	Project         string                `json:"project"`
	Actor           string                `json:"actor"`
	Scopes          []string              `json:"scopes"`  // what the actor was allowed
	Created         int64                 `json:"created"` // µs
	Profile         string                `json:"profile"`
	Product         string                `json:"product"`
	Environment     string                `json:"environment"`
	Format          string                `json:"format"`
	Version         string                `json:"version"`
	SecurityCounter uint64                `json:"security_counter"`
	MinimumVersion  string                `json:"minimum_version,omitempty"`
	HardwareIDs     []string              `json:"hardware_ids"`
	Variant         string                `json:"variant,omitempty"`
	Dependencies    []firmseal.Dependency `json:"dependencies,omitempty"`
	Emergency       bool                  `json:"emergency,omitempty"`
	BytesUnseen     bool                  `json:"bytes_unseen,omitempty"`
	Metadata        map[string]string     `json:"metadata,omitempty"`
	BuildID         string                `json:"build_id,omitempty"`
	Input           Input                 `json:"input"`
	Keys            []KeyRef              `json:"keys"`
	Options         image.Options         `json:"options,omitempty"` // as the format gets them
	Target          image.Profile         `json:"target"`
}

// KeyRef names the key that fills a role.
type KeyRef struct {
	Role string `json:"role"`
	Name string `json:"name"`
	ID   string `json:"id"` // hex SHA-256 of the SubjectPublicKeyInfo
}

// Canonical gives the record's bytes.
func (r Request) Canonical() ([]byte, error) { return canonical(r) }

func canonical(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return jcs.Transform(b)
}

func hexSum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

var (
	nameRE    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	digestRE  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	keyNameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
)

const (
	maxHardware  = 64
	maxMetadata  = 64
	maxMetaValue = 1024
	maxCounter   = 1<<53 - 1 // JSON numbers stay exact
	maxDeps      = 32
	maxImage     = 4 << 30
	maxFileName  = 255
	maxBuildID   = 200
)

func fields(format string, a ...any) *problem.Error {
	return problem.New(problem.RequestFields, format, a...)
}

// check validates a submission's form and normalises it: hardware ids sorted
// and unique.
func (sub *Submission) check() error {
	if sub.Profile == "" {
		return fields("the request names no profile").WithHint("add --profile NAME; firmseal policy show lists them")
	}
	if sub.Version == "" {
		return fields("the request has no version").WithHint("add --version 1.2.3")
	}
	if !utf8.ValidString(sub.Version) || len(sub.Version) > 64 {
		return fields("the version is not a version").Seen("%d bytes", len(sub.Version))
	}
	if sub.SecurityCounter == nil {
		return fields("the request has no security counter").
			Seen("protection against downgrade is by the counter, never by the version").
			WithHint("add --security-counter N, not below the last release's")
	}
	if *sub.SecurityCounter > maxCounter {
		return fields("the security counter %d is too large", *sub.SecurityCounter).Seen("the largest is %d", uint64(maxCounter))
	}
	if len(sub.HardwareIDs) == 0 {
		return fields("the request names no hardware id").WithHint("add --hardware-id BOARD for each board that may run this image")
	}
	if len(sub.HardwareIDs) > maxHardware {
		return fields("%d hardware ids are too many", len(sub.HardwareIDs)).Seen("the most is %d", maxHardware)
	}
	sub.HardwareIDs = slices.Clone(sub.HardwareIDs)
	sort.Strings(sub.HardwareIDs)
	sub.HardwareIDs = slices.Compact(sub.HardwareIDs)
	for _, h := range sub.HardwareIDs {
		if !nameRE.MatchString(h) {
			return fields("hardware id %q is not a name", clip(h)).Seen("letters, digits, '.', '_' and '-', at most 64")
		}
	}
	if sub.Variant != "" && !nameRE.MatchString(sub.Variant) {
		return fields("variant %q is not a name", clip(sub.Variant))
	}
	if len(sub.Dependencies) > maxDeps {
		return fields("%d dependencies are too many", len(sub.Dependencies)).Seen("the most is %d", maxDeps)
	}
	if len(sub.Metadata) > maxMetadata {
		return fields("%d metadata entries are too many", len(sub.Metadata)).Seen("the most is %d", maxMetadata)
	}
	for k, v := range sub.Metadata {
		if !nameRE.MatchString(k) {
			return fields("metadata key %q is not a name", clip(k))
		}
		if len(v) > maxMetaValue || !utf8.ValidString(v) {
			return fields("the value of metadata %s is too long or not UTF-8", k).Seen("%d bytes, the most is %d", len(v), maxMetaValue)
		}
	}
	if len(sub.BuildID) > maxBuildID || !utf8.ValidString(sub.BuildID) {
		return fields("the build id is too long or not UTF-8").Seen("the most is %d bytes", maxBuildID)
	}
	if sub.Content != nil {
		if len(sub.Content) > MaxInline {
			return problem.New(problem.TooLarge, "the inline image is too large").
				Seen("%d bytes, the most is %d", len(sub.Content), MaxInline).WithHint("upload it first")
		}
		h := hexSum(sub.Content)
		if sub.Input.SHA256 == "" {
			sub.Input.SHA256 = h
		}
		if sub.Input.Size == 0 {
			sub.Input.Size = int64(len(sub.Content))
		}
		if sub.Input.SHA256 != h || sub.Input.Size != int64(len(sub.Content)) {
			return fields("the inline image is not the one that the request names").
				Seen("named %s of %d bytes, sent %s of %d bytes", sub.Input.SHA256, sub.Input.Size, h, len(sub.Content))
		}
		if sub.BytesUnseen {
			return fields("the image was sent although its bytes shall stay unseen")
		}
	}
	if !digestRE.MatchString(sub.Input.SHA256) {
		return fields("the image's SHA-256 is not 64 lower-case hex digits").Seen("%q", clip(sub.Input.SHA256))
	}
	if sub.Input.Size <= 0 || sub.Input.Size > maxImage {
		return fields("the image has %d bytes", sub.Input.Size).Seen("between 1 and %d are possible", int64(maxImage))
	}
	if sub.Input.Name == "" {
		sub.Input.Name = "image"
	}
	if len(sub.Input.Name) > maxFileName || !utf8.ValidString(sub.Input.Name) || !cleanFileName(sub.Input.Name) {
		return fields("the image's file name %q cannot be used", clip(sub.Input.Name)).Seen("a plain name without a path, at most %d bytes", maxFileName)
	}
	return nil
}

// cleanFileName keeps path elements and control characters out of what is later
// offered as a file name.
func cleanFileName(s string) bool {
	if s == "." || s == ".." {
		return false
	}
	for _, r := range s {
		if r == '/' || r == '\\' || r < 0x20 || r == 0x7f {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

func decodeRequest(doc []byte) (Request, error) {
	var r Request
	if err := json.Unmarshal(doc, &r); err != nil {
		return Request{}, fmt.Errorf("decoding the stored request: %w", err)
	}
	return r, nil
}
