// Package policy decides whether a signing request may go ahead.
//
// It is pure: a decision is a function of a document and of facts that the
// caller has gathered. It touches no key, no database and no clock, so that the
// same document and facts give the same decision on a laptop, in the server and
// in an audit years later.
//
// # A document
//
// A document is YAML and has profiles. A profile is what a request names; it
// fixes product, environment, format, keys, format options and the verifier
// that must accept the result. Before any rule of its own, a profile applies
// the checks that are the same for everybody, in this order:
//
//	profile       the document has the profile
//	environment   the request is for the profile's environment
//	product       … and product
//	format        … and format
//	version       version and minimum version are SemVer 2.0
//	metadata      everything that the profile requires is there
//	counter       the security counter is not below the last release's
//	emergency     an emergency release's is strictly above it
//	order         the version is not below the last release's
//	bytes_unseen  the bytes were seen, or the profile does without
//	claims        what the image says of itself is what the request says
//	keys          each key fits and is not retired
//
// # Rules
//
// A rule is a CEL expression that must be true. Rules can only refuse: the
// first check or rule that says no decides, and adding a rule never lets
// through what was refused. A rule that cannot be evaluated (a metadata key
// that is not there, a cost above the limit) says no.
//
// Rules are typed: a misspelt field is an error of the document, found when it
// is applied. They see request, actor, image, last and now, and may call
// semver_less(a, b). They can look through lists but not through maps, whose
// order differs from run to run.
//
// # Tests
//
// A document can carry tests: a request and what must become of it. They run
// offline.
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// APIVersion is the only version of documents.
const APIVersion = "firmseal.policy/v1"

// Bounds of a document. The YAML parser takes time by the square of some texts
// (a line of nothing but commas): 64 KiB, room for some sixty profiles, keeps the
// worst at about a second.
const (
	MaxDocument = 64 << 10
	maxProfiles = 500
	maxRules    = 100
	maxTests    = 1000
	maxCheck    = 4 << 10 // characters of a rule's expression
	maxNesting  = 100
)

// A Document is a parsed and compiled policy. It does not change and is safe
// for concurrent use.
type Document struct {
	digest   string
	profiles map[string]*compiled
	tests    []Test
}

// Profile is what a request names.
type Profile struct {
	Product     string            `json:"product"`
	Environment string            `json:"environment"`
	Format      string            `json:"format"`
	Keys        map[string]string `json:"keys"`              // role → key name
	Options     image.Options     `json:"options,omitempty"` // the format's own; checked by the format
	Target      image.Profile     `json:"target"`            // the verifier that must accept the result
	Require     []string          `json:"require,omitempty"`
	BytesUnseen bool              `json:"bytes_unseen,omitempty"`

	// AllowOlderVersions is for maintenance branches: 1.4.9 may follow 2.0.0.
	// The security counter is not waived by it.
	AllowOlderVersions bool   `json:"allow_older_versions,omitempty"`
	Rules              []Rule `json:"rules,omitempty"`
}

// Rule is a check of the document's own.
type Rule struct {
	Name  string `json:"name" yaml:"name"`
	Check string `json:"check" yaml:"check"` // CEL, a bool; false refuses
	Say   string `json:"say" yaml:"say"`     // what a person is told
	Next  string `json:"next,omitempty" yaml:"next"`
}

type compiled struct {
	Profile
	programs []cel.Program // one for each rule
	roles    []string      // of Keys, sorted
}

// The document as it is written.
type yamlDocument struct {
	APIVersion string                 `yaml:"apiVersion"`
	Profiles   map[string]yamlProfile `yaml:"profiles"`
	Tests      []Test                 `yaml:"tests"`
}

type yamlProfile struct {
	Product            string            `yaml:"product"`
	Environment        string            `yaml:"environment"`
	Format             string            `yaml:"format"`
	Keys               map[string]string `yaml:"keys"`
	Options            map[string]any    `yaml:"options"`
	Target             yamlTarget        `yaml:"target"`
	Require            []string          `yaml:"require"`
	BytesUnseen        bool              `yaml:"bytes_unseen"`
	AllowOlderVersions bool              `yaml:"allow_older_versions"`
	Rules              []Rule            `yaml:"rules"`
}

type yamlTarget struct {
	Verifier string         `yaml:"verifier"`
	Version  string         `yaml:"version"`
	Options  map[string]any `yaml:"options"`
}

// names of profiles, roles, rules, keys and required fields.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// metadataForm is what a metadata key may look like.
var metadataForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,99}$`)

func malformed(format string, a ...any) *problem.Error {
	return problem.New(problem.PolicyMalformed, format, a...).WithHint("correct the document; try it with: firmseal policy test FILE")
}

// Parse reads a document and compiles all of it. Every refusal is
// POLICY.MALFORMED and points at the place.
func Parse(text []byte) (*Document, error) {
	if len(text) > MaxDocument {
		return nil, malformed("the policy document is too large").Seen("%d bytes, the limit is %d", len(text), MaxDocument)
	}
	if err := flat(text); err != nil {
		return nil, err
	}
	var y yamlDocument
	if err := yaml.UnmarshalWithOptions(text, &y, yaml.Strict()); err != nil {
		return nil, malformed("the policy document cannot be read").Seen("%s", clip(strings.TrimSpace(yaml.FormatError(err, false, true)), 2000)).Because(err)
	}
	if y.APIVersion != APIVersion {
		return nil, malformed("the policy document is of version %q", clip(y.APIVersion, 80)).Seen("this program reads apiVersion: %s", APIVersion)
	}
	if len(y.Profiles) == 0 || len(y.Profiles) > maxProfiles || len(y.Tests) > maxTests {
		return nil, malformed("a policy document has 1 to %d profiles and at most %d tests", maxProfiles, maxTests).
			Seen("%d profiles, %d tests", len(y.Profiles), len(y.Tests))
	}
	sum := sha256.Sum256(text)
	d := &Document{digest: hex.EncodeToString(sum[:]), profiles: make(map[string]*compiled, len(y.Profiles)), tests: y.Tests}
	env, err := environment()
	if err != nil {
		return nil, fmt.Errorf("making the CEL environment: %w", err)
	}
	names := make([]string, 0, len(y.Profiles))
	for name := range y.Profiles {
		names = append(names, name)
	}
	sort.Strings(names) // the first error is the same each time
	for _, name := range names {
		c, err := y.Profiles[name].compile(env, name)
		if err != nil {
			return nil, err
		}
		d.profiles[name] = c
	}
	for i, t := range d.tests {
		if err := t.valid(); err != nil {
			return nil, malformed("test %d, %q, cannot be used", i+1, clip(t.Name, 80)).Seen("%v", err)
		}
	}
	return d, nil
}

// flat refuses what makes a small text large or a parser deep: anchors and
// aliases, several documents, nesting that no policy has.
func flat(text []byte) error {
	depth := 0
	for _, line := range strings.Split(string(text), "\n") {
		if n := strings.Count(line, "- ") + strings.Count(line, "? ") + strings.Count(line, ": "); n > maxNesting && len(strings.TrimSpace(line)) < 4*n {
			return malformed("the policy document is nested too deep")
		}
		for _, c := range line {
			switch c {
			case '[', '{':
				depth++
			case ']', '}':
				depth = max(depth-1, 0)
			}
			if depth > maxNesting {
				return malformed("the policy document is nested too deep").Seen("more than %d open brackets", maxNesting)
			}
		}
	}
	f, err := parser.ParseBytes(text, 0)
	if err != nil {
		return malformed("the policy document is not YAML").Seen("%s", clip(strings.TrimSpace(yaml.FormatError(err, false, true)), 2000)).Because(err)
	}
	bodies := 0
	for _, d := range f.Docs {
		if d.Body == nil {
			continue
		}
		bodies++
		var v noAlias
		ast.Walk(&v, d.Body)
		if v.found != "" {
			return malformed("the policy document uses %s", v.found).Seen("anchors, aliases and merge keys are not read: write it out")
		}
	}
	if bodies != 1 {
		return malformed("a policy is one YAML document").Seen("the text has %d", bodies)
	}
	return nil
}

type noAlias struct{ found string }

func (v *noAlias) Visit(n ast.Node) ast.Visitor {
	switch n.(type) {
	case *ast.AnchorNode:
		v.found = "an anchor"
	case *ast.AliasNode:
		v.found = "an alias"
	case *ast.MergeKeyNode:
		v.found = "a merge key"
	case *ast.TagNode:
		v.found = "a tag"
	}
	if v.found != "" {
		return nil
	}
	return v
}

func (y yamlProfile) compile(env *cel.Env, name string) (*compiled, error) {
	bad := func(format string, a ...any) *problem.Error {
		return malformed("profile %s cannot be used", clip(name, 80)).Seen(format, a...)
	}
	if !nameForm.MatchString(name) {
		return nil, malformed("%q cannot name a profile", clip(name, 80)).Seen("a name has 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit")
	}
	switch {
	case y.Product == "" || len(y.Product) > 200:
		return nil, bad("it names no product, or one of more than 200 bytes")
	case y.Environment != "test" && y.Environment != "production":
		return nil, bad("environment %q is neither test nor production", clip(y.Environment, 80))
	case !nameForm.MatchString(y.Format):
		return nil, bad("%q is no format", clip(y.Format, 80))
	case len(y.Keys) == 0 || len(y.Keys) > 20:
		return nil, bad("it names %d keys; it needs 1 to 20, as in keys: {image: NAME}", len(y.Keys))
	case len(y.Rules) > maxRules:
		return nil, bad("it has more than %d rules", maxRules)
	}
	c := &compiled{Profile: Profile{
		Product: y.Product, Environment: y.Environment, Format: y.Format, Keys: y.Keys, Require: y.Require, BytesUnseen: y.BytesUnseen,
		AllowOlderVersions: y.AllowOlderVersions, Rules: y.Rules, Target: image.Profile{Verifier: y.Target.Verifier, Version: y.Target.Version},
	}}
	for role, key := range y.Keys {
		if !nameForm.MatchString(role) || !nameForm.MatchString(key) {
			return nil, bad("%q: %q is no role with a key name", clip(role, 80), clip(key, 80))
		}
		c.roles = append(c.roles, role)
	}
	sort.Strings(c.roles)
	for i, r := range y.Require {
		if !metadataForm.MatchString(r) || slices.Contains(y.Require[:i], r) {
			return nil, bad("require has %q, which is no field name or is there twice", clip(r, 80))
		}
	}
	var err error
	if c.Options, err = options(y.Options); err != nil {
		return nil, bad("its options are not JSON: %v", err)
	}
	if c.Target.Options, err = options(y.Target.Options); err != nil {
		return nil, bad("its target's options are not JSON: %v", err)
	}
	for i, r := range y.Rules {
		where := func(format string, a ...any) *problem.Error {
			return malformed("rule %d, %q, of profile %s cannot be used", i+1, clip(r.Name, 80), name).Seen(format, a...)
		}
		switch {
		case !nameForm.MatchString(r.Name):
			return nil, where("a name has 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit")
		case slices.Contains(builtins, r.Name):
			return nil, where("the name is that of a built-in check")
		case slices.ContainsFunc(y.Rules[:i], func(o Rule) bool { return o.Name == r.Name }):
			return nil, where("another rule has the name")
		case r.Say == "":
			return nil, where("it has no say: what is a person told whom it refuses?")
		}
		p, err := compile(env, r.Check)
		if err != nil {
			return nil, where("%v", err)
		}
		c.programs = append(c.programs, p)
	}
	return c, nil
}

func options(m map[string]any) (image.Options, error) {
	if len(m) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%.100s", err)
	}
	return b, nil
}

// Digest is the hex SHA-256 of the exact bytes that were parsed.
func (d *Document) Digest() string { return d.digest }

// Profiles lists the profiles' names, sorted.
func (d *Document) Profiles() []string {
	out := make([]string, 0, len(d.profiles))
	for n := range d.profiles {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}

// Profile gives a profile. Its slices and maps are the document's: do not
// write to them.
func (d *Document) Profile(name string) (Profile, bool) {
	c, ok := d.profiles[name]
	if !ok {
		return Profile{}, false
	}
	return c.Profile, true
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// Facts are what a decision is made from. The caller gathers them; what is not
// known is left at its zero value.
type Facts struct {
	Request Request
	Actor   Actor
	Image   Image
	Last    Last
	Keys    []Key // those of the profile, as their backend or registry says
	Now     time.Time
}

// Request is what is asked for.
type Request struct {
	Profile         string            `yaml:"profile"`
	Product         string            `yaml:"product"`
	Environment     string            `yaml:"environment"`
	Format          string            `yaml:"format"`
	Version         string            `yaml:"version"`
	SecurityCounter uint64            `yaml:"security_counter"`
	HardwareIDs     []string          `yaml:"hardware_ids"`
	Variant         string            `yaml:"variant"`
	MinimumVersion  string            `yaml:"minimum_version"`
	Emergency       bool              `yaml:"emergency"`
	BytesUnseen     bool              `yaml:"bytes_unseen"`
	Metadata        map[string]string `yaml:"metadata"`
	BuildID         string            `yaml:"build_id"`
	Size            int64             `yaml:"size"`
}

// Actor is who asks.
type Actor struct {
	ID      string   `yaml:"id"`
	Project string   `yaml:"project"`
	Scopes  []string `yaml:"scopes"`
}

// Image is what the image says of itself; empty fields say nothing.
type Image struct {
	Version         string   `yaml:"version"`
	SecurityCounter *uint64  `yaml:"security_counter"`
	Product         string   `yaml:"product"`
	HardwareIDs     []string `yaml:"hardware_ids"`
	Signed          bool     `yaml:"signed"`
	SignedWith      []string `yaml:"signed_with"`
}

// Last is the newest release for the same product, environment and hardware.
type Last struct {
	Exists          bool   `yaml:"exists"`
	Version         string `yaml:"version"`
	SecurityCounter uint64 `yaml:"security_counter"`
}

// Key is a key of the profile as plain data.
type Key struct {
	Role        string
	Name        string
	Purpose     string
	Environment string
	Product     string
	Format      string
	Retired     bool
}
