package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"cel.dev/cel-go/common/types/ref"

	"cel.dev/cel-go/cel"

	"github.com/firmseal/firmseal/internal/problem"
)

type evaluator = func(any) (ref.Val, *cel.EvalDetails, error)

// Test is a request with what must become of it.
type Test struct {
	Name string `yaml:"name"`

	// Request's product, environment and format are the profile's where they
	// are left out.
	Request Request `yaml:"request"`
	Actor   Actor   `yaml:"actor"`
	Image   Image   `yaml:"image"`
	Last    Last    `yaml:"last"`

	// Keys changes what is known of the keys; without it each fits its role.
	Keys map[string]TestKey `yaml:"keys"`
	Now  string             `yaml:"now"` // RFC 3339; without it, 2026-01-01

	Expect string       `yaml:"expect"` // allow or deny
	Rule   string       `yaml:"rule"`   // of a denial: the check or rule that decides
	Code   problem.Code `yaml:"code"`   // of a denial: its code
}

// TestKey is what a test says of a key; what is empty fits.
type TestKey struct {
	Environment string `yaml:"environment"`
	Product     string `yaml:"product"`
	Format      string `yaml:"format"`
	Retired     bool   `yaml:"retired"`
}

func (t *Test) valid() error {
	switch {
	case t.Name == "":
		return errors.New("it has no name")
	case t.Expect != "allow" && t.Expect != "deny":
		return fmt.Errorf("expect is %q, neither allow nor deny", clip(t.Expect, 80))
	case t.Expect == "allow" && (t.Rule != "" || t.Code != ""):
		return errors.New("it expects allow, and names what denies")
	}
	if _, err := t.now(); err != nil {
		return fmt.Errorf("now is %q, which is not a time like 2026-01-31T12:00:00Z", clip(t.Now, 80))
	}
	return nil
}

func (t *Test) now() (time.Time, error) {
	if t.Now == "" {
		return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), nil
	}
	return time.Parse(time.RFC3339, t.Now)
}

// TestResult is how a test went.
type TestResult struct {
	Name     string   `json:"name"`
	Pass     bool     `json:"pass"`
	Why      string   `json:"why,omitempty"` // what differed
	Decision Decision `json:"decision"`
}

// Test runs the document's own tests.
func (d *Document) Test() []TestResult {
	out := make([]TestResult, 0, len(d.tests))
	for i := range d.tests {
		t := &d.tests[i]
		r := TestResult{Name: t.Name, Decision: d.Evaluate(d.facts(t))}
		got := "deny"
		if r.Decision.Allow {
			got = "allow"
		}
		switch {
		case got != t.Expect && got == "deny":
			r.Why = fmt.Sprintf("denied by %s: %s: %s", r.Decision.Rule, r.Decision.What, r.Decision.Why)
		case got != t.Expect:
			r.Why = "allowed, and should be denied"
		case t.Rule != "" && r.Decision.Rule != t.Rule:
			r.Why = fmt.Sprintf("denied by %s, not by %s", r.Decision.Rule, clip(t.Rule, 80))
		case t.Code != "" && r.Decision.Code != t.Code:
			r.Why = fmt.Sprintf("denied with %s, not with %s", r.Decision.Code, clip(string(t.Code), 80))
		default:
			r.Pass = true
		}
		out = append(out, r)
	}
	return out
}

func (d *Document) facts(t *Test) Facts {
	f := Facts{Request: t.Request, Actor: t.Actor, Image: t.Image, Last: t.Last}
	f.Now, _ = t.now() // checked by Parse
	c, ok := d.profiles[t.Request.Profile]
	if !ok {
		return f
	}
	or := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	or(&f.Request.Product, c.Product)
	or(&f.Request.Environment, c.Environment)
	or(&f.Request.Format, c.Format)
	for _, role := range c.roles {
		k := Key{Role: role, Name: c.Keys[role], Purpose: "firmware"}
		x := t.Keys[role]
		k.Environment, k.Product, k.Format, k.Retired = x.Environment, x.Product, x.Format, x.Retired
		or(&k.Environment, c.Environment)
		or(&k.Product, c.Product)
		or(&k.Format, c.Format)
		f.Keys = append(f.Keys, k)
	}
	return f
}

// Warning is something in a document that is allowed and may be a mistake.
type Warning struct {
	Profile string `json:"profile,omitempty"` // "" for the whole document
	Rule    string `json:"rule,omitempty"`
	Text    string `json:"text"`
}

// Lint looks for what is allowed and may be a mistake, in a fixed order.
func Lint(d *Document) []Warning {
	var out []Warning
	owner := map[string]string{} // key → the profile that was seen with it
	for _, name := range d.Profiles() {
		c := d.profiles[name]
		warn := func(rule, format string, a ...any) {
			out = append(out, Warning{name, rule, fmt.Sprintf(format, a...)})
		}
		production := c.Environment == "production"
		if production && c.BytesUnseen {
			warn("", "production images are signed without being seen: nothing about them can be checked")
		}
		if production && c.AllowOlderVersions {
			warn("", "older versions can be released; only the security counter keeps devices from going back")
		}
		if production {
			for _, field := range []string{"hardware_ids", "security_counter"} {
				if !slices.Contains(c.Require, field) {
					warn("", "%s is not required", field)
				}
			}
			if len(c.Rules) == 0 {
				warn("", "there are no rules: every caller with the scope can release for production")
			}
		}
		if c.Target.Verifier == "" {
			warn("", "no target verifier is named: the format's strictest current one decides")
		}
		for _, role := range slices.Sorted(maps.Keys(c.Keys)) {
			key := c.Keys[role]
			first, seen := owner[key]
			if !seen {
				owner[key] = name
				continue
			}
			if o := d.profiles[first]; o.Environment != c.Environment || o.Product != c.Product || o.Format != c.Format {
				warn("", "key %s is also that of profile %s, which is for something else: one of the two never signs", key, first)
			}
		}
		for _, r := range c.Rules {
			switch r.Check {
			case "true":
				warn(r.Name, "the rule never refuses")
			case "false":
				warn(r.Name, "the rule refuses everything")
			}
			if r.Next == "" {
				warn(r.Name, "the rule does not say what to do next")
			}
		}
	}
	if len(d.tests) == 0 {
		out = append(out, Warning{Text: "the document has no tests"})
	}
	return out
}
