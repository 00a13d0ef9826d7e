package policy

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/types"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/problem"
)

// Decision is what a document says of some facts.
type Decision struct {
	Allow  bool         `json:"allow"`
	Rule   string       `json:"rule"`           // the check or rule that decided; "all" for allow
	Code   problem.Code `json:"code,omitempty"` // of a refusal
	What   string       `json:"what,omitempty"`
	Why    string       `json:"why,omitempty"` // the values seen
	Next   string       `json:"next,omitempty"`
	Policy string       `json:"policy"` // the document's digest
	Trace  []Step       `json:"trace"`  // every check and rule, in order, also those after the first refusal
}

// Step is one check or rule as it was evaluated.
type Step struct {
	Name  string       `json:"name"`
	Allow bool         `json:"allow"`
	Code  problem.Code `json:"code,omitempty"`
	What  string       `json:"what,omitempty"`
	Why   string       `json:"why,omitempty"`
	Next  string       `json:"next,omitempty"`
}

// Problem is a refusal as an error, and nil for allow.
func (d Decision) Problem() error {
	if d.Allow {
		return nil
	}
	return problem.New(d.Code, "%s", d.What).Seen("%s", d.Why).WithHint("%s", d.Next)
}

// builtins are the names of the checks that every profile has, in their order.
var builtins = []string{
	"profile", "environment", "product", "format", "version", "metadata", "counter", "emergency", "order", "bytes_unseen", "claims", "keys", "all",
}

// checks are the built-in checks after "profile". Each returns nil or a refusal.
var checks = []struct {
	name  string
	check func(*compiled, *Facts) *problem.Error
}{
	{"environment", checkEnvironment},
	{"product", checkProduct},
	{"format", checkFormat},
	{"version", checkVersion},
	{"metadata", checkMetadata},
	{"counter", checkCounter},
	{"emergency", checkEmergency},
	{"order", checkOrder},
	{"bytes_unseen", checkUnseen},
	{"claims", checkClaims},
	{"keys", checkKeys},
}

// Evaluate decides. It is pure: the same document and facts give the same
// decision, word for word.
func (d *Document) Evaluate(f Facts) Decision {
	out := Decision{Allow: true, Rule: "all", Policy: d.digest}
	step := func(name string, p *problem.Error) {
		if p == nil {
			out.Trace = append(out.Trace, Step{Name: name, Allow: true})
			return
		}
		s := Step{Name: name, Code: p.Code, What: p.What, Why: p.Why, Next: p.Next}
		out.Trace = append(out.Trace, s)
		if out.Allow {
			out.Allow, out.Rule, out.Code, out.What, out.Why, out.Next = false, name, s.Code, s.What, s.Why, s.Next
		}
	}
	c, ok := d.profiles[f.Request.Profile]
	if !ok {
		step("profile", problem.New(problem.PolicyProfile, "the policy has no profile %q", clip(f.Request.Profile, 80)).
			Seen("profiles: %s", clip(strings.Join(d.Profiles(), ", "), 500)).WithHint("firmseal policy show"))
		return out
	}
	out.Trace = make([]Step, 0, len(checks)+len(c.Rules)+1)
	step("profile", nil)
	for _, b := range checks {
		step(b.name, b.check(c, &f))
	}
	if len(c.programs) > 0 {
		vars := f.variables()
		for i, p := range c.programs {
			step(c.Rules[i].Name, c.rule(i, p.Eval, vars))
		}
	}
	return out
}

func checkEnvironment(c *compiled, f *Facts) *problem.Error {
	if f.Request.Environment == c.Environment {
		return nil
	}
	return problem.New(firmseal.CodeEnvironment, "profile %s is not for this environment", f.Request.Profile).
		Seen("it signs for %s, the request is for %q", c.Environment, clip(f.Request.Environment, 80)).
		WithHint("use a profile of the right environment: firmseal policy show")
}

func checkProduct(c *compiled, f *Facts) *problem.Error {
	if f.Request.Product == c.Product {
		return nil
	}
	return problem.New(problem.PolicyProduct, "profile %s is not for this product", f.Request.Profile).
		Seen("it signs for %q, the request is for %q", c.Product, clip(f.Request.Product, 200)).
		WithHint("use a profile of the product: firmseal policy show")
}

func checkFormat(c *compiled, f *Facts) *problem.Error {
	if f.Request.Format == c.Format {
		return nil
	}
	return problem.New(problem.PolicyFormat, "profile %s is not for this format", f.Request.Profile).
		Seen("it signs %s, the request is for %q", c.Format, clip(f.Request.Format, 80)).
		WithHint("use a profile of the format: firmseal policy show")
}

func checkVersion(_ *compiled, f *Facts) *problem.Error {
	v, err := firmseal.ParseVersion(f.Request.Version)
	if err != nil {
		return problem.New(problem.PolicyVersion, "the version %q cannot be used", clip(f.Request.Version, 80)).
			Seen("it is not MAJOR.MINOR.PATCH of Semantic Versioning 2.0").WithHint("give a version like 1.4.0")
	}
	if f.Request.MinimumVersion == "" {
		return nil
	}
	m, err := firmseal.ParseVersion(f.Request.MinimumVersion)
	if err != nil {
		return problem.New(problem.PolicyVersion, "the minimum version %q cannot be used", clip(f.Request.MinimumVersion, 80)).
			Seen("it is not MAJOR.MINOR.PATCH of Semantic Versioning 2.0").WithHint("give a version like 1.4.0")
	}
	if v.Compare(m) < 0 {
		return problem.New(problem.PolicyVersion, "no device could install version %s", v).
			Seen("it asks for at least %s to be installed before it", m).WithHint("lower the minimum version")
	}
	return nil
}

func checkMetadata(c *compiled, f *Facts) *problem.Error {
	r := &f.Request
	var missing []string
	for _, name := range c.Require {
		ok := false
		switch name {
		case "hardware_ids":
			ok = len(r.HardwareIDs) > 0 && !slices.Contains(r.HardwareIDs, "")
		case "security_counter":
			// From 1, so that a device that never saw a release differs from
			// one that did.
			ok = r.SecurityCounter > 0
		case "minimum_version":
			ok = r.MinimumVersion != ""
		case "variant":
			ok = r.Variant != ""
		case "build_id":
			ok = r.BuildID != "" || r.Metadata["build_id"] != ""
		default:
			ok = r.Metadata[name] != ""
		}
		if !ok {
			missing = append(missing, name)
		}
	}
	if missing == nil {
		return nil
	}
	flags := make([]string, len(missing))
	for i, name := range missing {
		flags[i] = flagFor(name)
	}
	return problem.New(problem.PolicyMetadata, "profile %s requires %s", r.Profile, strings.Join(missing, ", ")).
		Seen("the request came without").WithHint("add %s", strings.Join(flags, " "))
}

// flagFor is the flag of firmseal sign that gives a required field.
func flagFor(name string) string {
	switch name {
	case "hardware_ids":
		return "--hardware-id BOARD"
	case "security_counter":
		return "--security-counter N (at least 1)"
	case "minimum_version":
		return "--minimum-version VERSION"
	case "variant":
		return "--variant NAME"
	case "build_id":
		return "--build-id ID"
	}
	return "--meta " + name + "=VALUE"
}

func checkCounter(_ *compiled, f *Facts) *problem.Error {
	if !f.Last.Exists || f.Request.SecurityCounter >= f.Last.SecurityCounter {
		return nil
	}
	return problem.New(problem.PolicyCounter, "the security counter would go down").
		Seen("the request has %d, the last release %s has %d", f.Request.SecurityCounter, clip(f.Last.Version, 80), f.Last.SecurityCounter).
		WithHint("give a security counter of at least %d", f.Last.SecurityCounter)
}

func checkEmergency(_ *compiled, f *Facts) *problem.Error {
	if !f.Request.Emergency || !f.Last.Exists || f.Request.SecurityCounter > f.Last.SecurityCounter {
		return nil
	}
	return problem.New(problem.PolicyEmergency, "an emergency release must raise the security counter").
		Seen("the request has %d, the last release %s has %d", f.Request.SecurityCounter, clip(f.Last.Version, 80), f.Last.SecurityCounter).
		WithHint("build it with a security counter above %d", f.Last.SecurityCounter)
}

func checkOrder(c *compiled, f *Facts) *problem.Error {
	if f.Request.Emergency || c.AllowOlderVersions || !f.Last.Exists {
		return nil
	}
	v, err := firmseal.ParseVersion(f.Request.Version)
	if err != nil {
		return nil // refused by checkVersion
	}
	last, err := firmseal.ParseVersion(f.Last.Version)
	if err != nil {
		return problem.New(problem.PolicyVersion, "the last release has no usable version").
			Seen("%q", clip(f.Last.Version, 80)).WithHint("firmseal log verify")
	}
	if v.Compare(last) >= 0 {
		return nil
	}
	return problem.New(problem.PolicyOlder, "version %s is below the last release", v).
		Seen("the last release for this hardware is %s", last).WithHint("raise the version above %s", last)
}

func checkUnseen(c *compiled, f *Facts) *problem.Error {
	if !f.Request.BytesUnseen || c.BytesUnseen {
		return nil
	}
	return problem.New(problem.PolicyUnseen, "profile %s does not sign bytes that it has not seen", f.Request.Profile).
		Seen("the request sends a digest only").WithHint("upload the image: firmseal sign IMAGE --profile %s", f.Request.Profile)
}

func checkClaims(_ *compiled, f *Facts) *problem.Error {
	r, i := &f.Request, &f.Image
	no := func(field, image, request string) *problem.Error {
		return problem.New(problem.PolicyClaims, "the image states another %s than the request", field).
			Seen("image: %s, request: %s", clip(image, 200), clip(request, 200)).
			WithHint("build the image and ask for it with the same %s", field)
	}
	switch {
	case i.Version != "" && !SameVersion(i.Version, r.Version):
		return no("version", i.Version, r.Version)
	case i.SecurityCounter != nil && *i.SecurityCounter != r.SecurityCounter:
		return no("security counter", fmt.Sprint(*i.SecurityCounter), fmt.Sprint(r.SecurityCounter))
	case i.Product != "" && i.Product != r.Product:
		return no("product", i.Product, r.Product)
	}
	if len(i.HardwareIDs) > 0 {
		for _, h := range r.HardwareIDs {
			if !slices.Contains(i.HardwareIDs, h) {
				return no("hardware id", strings.Join(i.HardwareIDs, ", "), h)
			}
		}
	}
	return nil
}

// SameVersion compares an image's version with a request's. Formats that
// always have a build number (MCUboot: 1.2.3+0) say with +0 what a request says
// with nothing.
func SameVersion(image, request string) bool {
	return strings.TrimSuffix(image, "+0") == strings.TrimSuffix(request, "+0")
}

func checkKeys(c *compiled, f *Facts) *problem.Error {
	for _, role := range c.roles {
		name := c.Keys[role]
		no := func(format string, a ...any) *problem.Error {
			return problem.New(problem.PolicyKey, "key %s does not fit profile %s", name, f.Request.Profile).Seen(format, a...).
				WithHint("name another key in the profile, or make one: firmseal key create")
		}
		var k *Key
		for j := range f.Keys {
			if f.Keys[j].Role != role {
				continue
			}
			if k != nil {
				return no("there are two keys for role %s", role)
			}
			k = &f.Keys[j]
		}
		switch {
		case k == nil:
			return no("there is no key for role %s", role)
		case k.Name != name:
			return no("key %q came for role %s", clip(k.Name, 80), role)
		case k.Retired:
			return problem.New(problem.KeyRetired, "key %s is retired", name).Seen("profile %s signs with it as %s", f.Request.Profile, role).
				WithHint("name another key in the profile, or make one: firmseal key create")
		case k.Purpose != "firmware":
			return no("its purpose is %q, not firmware", clip(k.Purpose, 80))
		case k.Environment != c.Environment:
			return no("it is a %s key, the profile is for %s", clip(k.Environment, 80), c.Environment)
		case k.Product != c.Product:
			return no("it is bound to product %q, the profile to %q", clip(k.Product, 80), c.Product)
		case k.Format != c.Format:
			return no("it is bound to format %q, the profile to %q", clip(k.Format, 80), c.Format)
		}
	}
	for j := range f.Keys {
		if _, ok := c.Keys[f.Keys[j].Role]; !ok {
			return problem.New(problem.PolicyKey, "profile %s has no role %q", f.Request.Profile, clip(f.Keys[j].Role, 80)).
				Seen("key %q came for it", clip(f.Keys[j].Name, 80))
		}
	}
	return nil
}

func (c *compiled) rule(i int, eval evaluator, vars map[string]any) *problem.Error {
	r := &c.Rules[i]
	v, _, err := eval(vars)
	if err == nil && v == types.True {
		return nil
	}
	p := problem.New(problem.PolicyRule, "%s", clip(r.Say, 500)).WithHint("%s", r.Next)
	if err != nil {
		return p.Seen("rule %s could not be evaluated, which refuses: %s", r.Name, clip(err.Error(), 300))
	}
	return p.Seen("rule %s is not met: %s", r.Name, clip(strings.Join(strings.Fields(r.Check), " "), 300))
}
