package policy_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/policy"
	"github.com/firmseal/firmseal/internal/problem"
)

func example(tb testing.TB) []byte {
	tb.Helper()
	text, err := os.ReadFile("testdata/policy.yaml")
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

func parse(tb testing.TB, text string) *policy.Document {
	tb.Helper()
	d, err := policy.Parse([]byte(text))
	if err != nil {
		tb.Fatalf("%v\n%s", err, text)
	}
	return d
}

// doc is a document with the profile p and the given further lines in it.
func doc(lines ...string) string {
	var b strings.Builder
	b.WriteString("apiVersion: firmseal.policy/v1\nprofiles:\n  p:\n    product: sensor\n    environment: production\n    format: raw\n    keys: {image: boot}\n")
	for _, l := range lines {
		b.WriteString("    " + l + "\n")
	}
	return b.String()
}

func rule(name, check string) string {
	return fmt.Sprintf("- {name: %s, check: %q, say: the rule %s says no, next: do better}", name, check, name)
}

// facts that the profile p of doc allows.
func facts() policy.Facts {
	return policy.Facts{
		Request: policy.Request{
			Profile: "p", Product: "sensor", Environment: "production", Format: "raw", Version: "1.2.3", SecurityCounter: 5,
			HardwareIDs: []string{"a", "b"}, Metadata: map[string]string{"commit": "abc"}, Size: 1000,
		},
		Actor: policy.Actor{ID: "token:1", Project: "default", Scopes: []string{"request:write"}},
		Last:  policy.Last{Exists: true, Version: "1.2.2", SecurityCounter: 5},
		Keys:  []policy.Key{{Role: "image", Name: "boot", Purpose: "firmware", Environment: "production", Product: "sensor", Format: "raw"}},
		Now:   time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
	}
}

func TestExample(t *testing.T) {
	t.Parallel()
	text := example(t)
	d := parse(t, string(text))
	sum := sha256.Sum256(text)
	if d.Digest() != hex.EncodeToString(sum[:]) {
		t.Error("the digest is not that of the bytes")
	}
	results := d.Test()
	if len(results) != 5 {
		t.Errorf("%d tests ran", len(results))
	}
	for _, r := range results {
		if !r.Pass {
			t.Errorf("%s: %s", r.Name, r.Why)
		}
	}
	if w := policy.Lint(d); len(w) != 0 {
		t.Errorf("warnings about the example: %v", w)
	}
	p, ok := d.Profile("sensor-production")
	if !ok || string(p.Options) != `{"header-size":512,"slot-size":393216}` || string(p.Target.Options) != `{"signature":"ecdsa-p256"}` || p.Target.Verifier != "mcuboot" {
		t.Errorf("profile %+v, %v", p, ok)
	}
	if !slices.Equal(d.Profiles(), []string{"sensor-production", "sensor-test"}) {
		t.Errorf("profiles %v", d.Profiles())
	}
}

// A failing test of a document says why it fails.
func TestTestResults(t *testing.T) {
	t.Parallel()
	d := parse(t, doc()+`tests:
  - {name: a, request: {profile: p, version: 1.0.0}, expect: deny}
  - {name: b, request: {profile: p, version: one}, expect: allow}
  - {name: c, request: {profile: p, version: one}, expect: deny, rule: keys}
  - {name: d, request: {profile: p, version: one}, expect: deny, code: POLICY.RULE}
  - {name: e, request: {profile: nope}, expect: deny, rule: profile}
  - {name: f, request: {profile: p, version: 1.0.0}, keys: {image: {retired: true}}, expect: deny, code: KEY.RETIRED}
`)
	want := map[string]string{"a": "should be denied", "b": "denied by version", "c": "not by keys", "d": "not with POLICY.RULE", "e": "", "f": ""}
	for _, r := range d.Test() {
		if w := want[r.Name]; r.Pass != (w == "") || !strings.Contains(r.Why, w) {
			t.Errorf("%s: pass %v, %q", r.Name, r.Pass, r.Why)
		}
	}
}

func TestChecks(t *testing.T) {
	t.Parallel()
	u := func(n uint64) *uint64 { return &n }
	for _, c := range []struct {
		name   string
		lines  []string
		change func(*policy.Facts)
		rule   string // "" for allow
		code   problem.Code
		says   string
	}{
		{"right", nil, func(*policy.Facts) {}, "", "", ""},
		{"first release", nil, func(f *policy.Facts) { f.Last = policy.Last{}; f.Request.SecurityCounter = 0 }, "", "", ""},
		{"unknown profile", nil, func(f *policy.Facts) { f.Request.Profile = "q" }, "profile", problem.PolicyProfile, "profiles: p"},
		{"test for production", nil, func(f *policy.Facts) { f.Request.Environment = "test" }, "environment", firmseal.CodeEnvironment, `"test"`},
		{"other product", nil, func(f *policy.Facts) { f.Request.Product = "door" }, "product", problem.PolicyProduct, `"door"`},
		{"other format", nil, func(f *policy.Facts) { f.Request.Format = "fit" }, "format", problem.PolicyFormat, `"fit"`},
		{"no version", nil, func(f *policy.Facts) { f.Request.Version = "" }, "version", problem.PolicyVersion, ""},
		{"v1.2.3", nil, func(f *policy.Facts) { f.Request.Version = "v1.2.3" }, "version", problem.PolicyVersion, ""},
		{"01.2.3", nil, func(f *policy.Facts) { f.Request.Version = "01.2.3" }, "version", problem.PolicyVersion, ""},
		{"prerelease", nil, func(f *policy.Facts) { f.Request.Version = "1.3.0-rc.1+x" }, "", "", ""},
		{"minimum", nil, func(f *policy.Facts) { f.Request.MinimumVersion = "1.2.3" }, "", "", ""},
		{"minimum above", nil, func(f *policy.Facts) { f.Request.MinimumVersion = "1.2.4" }, "version", problem.PolicyVersion, "1.2.4"},
		{"minimum broken", nil, func(f *policy.Facts) { f.Request.MinimumVersion = "1.2" }, "version", problem.PolicyVersion, ""},
		{"missing metadata", []string{"require: [source_commit]"}, func(*policy.Facts) {}, "metadata", problem.PolicyMetadata, "came without"},
		{"metadata", []string{"require: [commit, hardware_ids, security_counter]"}, func(*policy.Facts) {}, "", "", ""},
		{"no hardware", []string{"require: [hardware_ids]"}, func(f *policy.Facts) { f.Request.HardwareIDs = nil }, "metadata", problem.PolicyMetadata, ""},
		{"empty hardware id", []string{"require: [hardware_ids]"}, func(f *policy.Facts) { f.Request.HardwareIDs = []string{""} }, "metadata", problem.PolicyMetadata, ""},
		{"no counter", []string{"require: [security_counter]"}, func(f *policy.Facts) { f.Last, f.Request.SecurityCounter = policy.Last{}, 0 }, "metadata", problem.PolicyMetadata, ""},
		{"no minimum", []string{"require: [minimum_version]"}, func(*policy.Facts) {}, "metadata", problem.PolicyMetadata, ""},
		{"no variant", []string{"require: [variant]"}, func(*policy.Facts) {}, "metadata", problem.PolicyMetadata, ""},
		{"no build", []string{"require: [build_id]"}, func(*policy.Facts) {}, "metadata", problem.PolicyMetadata, ""},
		{"build", []string{"require: [build_id]"}, func(f *policy.Facts) { f.Request.BuildID = "7" }, "", "", ""},
		{"counter below", nil, func(f *policy.Facts) { f.Request.SecurityCounter = 4 }, "counter", problem.PolicyCounter, "has 4, the last release 1.2.2 has 5"},
		{"emergency equal", nil, func(f *policy.Facts) { f.Request.Emergency = true }, "emergency", problem.PolicyEmergency, ""},
		{"emergency below", nil, func(f *policy.Facts) { f.Request.Emergency = true; f.Request.SecurityCounter = 4 }, "counter", problem.PolicyCounter, ""},
		{"emergency back", nil, func(f *policy.Facts) {
			f.Request.Emergency, f.Request.Version, f.Request.SecurityCounter = true, "1.0.0", 6
		}, "", "", ""},
		{"version below", nil, func(f *policy.Facts) { f.Request.Version = "1.2.1" }, "order", problem.PolicyOlder, "1.2.2"},
		{"prerelease below", nil, func(f *policy.Facts) { f.Request.Version = "1.2.2-rc.1" }, "order", problem.PolicyOlder, ""},
		{"maintenance", []string{"allow_older_versions: true"}, func(f *policy.Facts) { f.Request.Version = "1.2.1" }, "", "", ""},
		{"maintenance, counter below", []string{"allow_older_versions: true"}, func(f *policy.Facts) { f.Request.SecurityCounter = 4 }, "counter", problem.PolicyCounter, ""},
		{"unseen", nil, func(f *policy.Facts) { f.Request.BytesUnseen = true }, "bytes_unseen", problem.PolicyUnseen, ""},
		{"unseen allowed", []string{"bytes_unseen: true"}, func(f *policy.Facts) { f.Request.BytesUnseen = true }, "", "", ""},
		{"claims", nil, func(f *policy.Facts) {
			f.Image = policy.Image{Version: "1.2.3+0", SecurityCounter: u(5), Product: "sensor", HardwareIDs: []string{"c", "b", "a"}}
		}, "", "", ""},
		{"other version", nil, func(f *policy.Facts) { f.Image.Version = "1.2.4" }, "claims", problem.PolicyClaims, "image: 1.2.4, request: 1.2.3"},
		{"other build", nil, func(f *policy.Facts) { f.Image.Version = "1.2.3+1" }, "claims", problem.PolicyClaims, ""},
		{"other counter", nil, func(f *policy.Facts) { f.Image.SecurityCounter = u(6) }, "claims", problem.PolicyClaims, "image: 6, request: 5"},
		{"counter 0", nil, func(f *policy.Facts) { f.Image.SecurityCounter = u(0) }, "claims", problem.PolicyClaims, ""},
		{"other product inside", nil, func(f *policy.Facts) { f.Image.Product = "door" }, "claims", problem.PolicyClaims, ""},
		{"other board inside", nil, func(f *policy.Facts) { f.Image.HardwareIDs = []string{"a"} }, "claims", problem.PolicyClaims, "request: b"},
		{"no key", nil, func(f *policy.Facts) { f.Keys = nil }, "keys", problem.PolicyKey, "no key for role image"},
		{"two keys", nil, func(f *policy.Facts) { f.Keys = append(f.Keys, f.Keys[0]) }, "keys", problem.PolicyKey, "two keys"},
		{"key of no role", nil, func(f *policy.Facts) { f.Keys = append(f.Keys, policy.Key{Role: "x"}) }, "keys", problem.PolicyKey, ""},
		{"other key", nil, func(f *policy.Facts) { f.Keys[0].Name = "evil" }, "keys", problem.PolicyKey, "evil"},
		{"test key", nil, func(f *policy.Facts) { f.Keys[0].Environment = "test" }, "keys", problem.PolicyKey, "test key"},
		{"other product's key", nil, func(f *policy.Facts) { f.Keys[0].Product = "door" }, "keys", problem.PolicyKey, "door"},
		{"other format's key", nil, func(f *policy.Facts) { f.Keys[0].Format = "fit" }, "keys", problem.PolicyKey, "fit"},
		{"seal key", nil, func(f *policy.Facts) { f.Keys[0].Purpose = "seal" }, "keys", problem.PolicyKey, "seal"},
		{"retired", nil, func(f *policy.Facts) { f.Keys[0].Retired = true }, "keys", problem.KeyRetired, ""},
	} {
		f := facts()
		c.change(&f)
		d := parse(t, doc(c.lines...)).Evaluate(f)
		want := c.rule
		if want == "" {
			want = "all"
		}
		if d.Allow != (c.rule == "") || d.Rule != want || d.Code != c.code || !strings.Contains(d.Why, c.says) {
			t.Errorf("%s: %v by %s, %s: %s: %s", c.name, d.Allow, d.Rule, d.Code, d.What, d.Why)
		}
		if !d.Allow && (d.What == "" || d.Problem() == nil || !problem.Has(d.Problem(), c.code)) {
			t.Errorf("%s: a refusal that explains nothing: %+v", c.name, d)
		}
		if d.Allow && d.Problem() != nil {
			t.Errorf("%s: allow is a problem", c.name)
		}
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	for check, want := range map[string]bool{
		`request.version == "1.2.3" && request.security_counter >= 5`:        true,
		`request.security_counter > last.security_counter`:                   false,
		`actor.id.startsWith("token:") && "request:write" in actor.scopes`:   true,
		`semver_less(last.version, request.version)`:                         true,
		`semver_less(request.version, last.version)`:                         false,
		`semver_less(request.variant, last.version)`:                         false, // an error refuses
		`request.metadata.commit == "abc"`:                                   true,
		`request.metadata.branch == "main"`:                                  false, // not there: an error refuses
		`"branch" in request.metadata`:                                       false,
		`has(request.metadata.commit)`:                                       true,
		`request.hardware_ids.all(h, h in ["a", "b"])`:                       true,
		`request.hardware_ids.exists(h, h == "c")`:                           false,
		`now > timestamp("2026-01-01T00:00:00Z") && now.getDayOfWeek() != 5`: true,
		`!image.signed && !image.states_counter && image.version == ""`:      true,
		`request.size < 1024 * 1024`:                                         true,
		`1 / (request.size - 1000) == 0`:                                     false, // division by zero refuses
		`request.version.matches("^1\\.")`:                                   true,
		`[1,2,3,4,5,6,7,8].all(a, [1,2,3,4,5,6,7,8].all(b, [1,2,3,4,5,6,7,8].all(c, [1,2,3,4,5,6,7,8].all(d, [1,2,3,4,5,6,7,8].all(e, a+b+c+d+e > 0)))))`: false, // too dear
	} {
		start := time.Now()
		d := parse(t, doc("rules:", rule("r", check))).Evaluate(facts())
		if d.Allow != want {
			t.Errorf("%s: %v: %s", check, d.Allow, d.Why)
		}
		if !want && (d.Code != problem.PolicyRule || d.Rule != "r" || d.What != "the rule r says no" || d.Next != "do better") {
			t.Errorf("%s: %+v", check, d)
		}
		if e := time.Since(start); e > 2*time.Second {
			t.Errorf("%s took %v", check, e)
		}
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	good := doc()
	for name, c := range map[string]struct{ text, says string }{
		"empty":               {"", "one YAML document"},
		"comment":             {"# nothing\n", "one YAML document"},
		"a list":              {"- a\n", ""},
		"two documents":       {good + "---\n" + good, "one YAML document"},
		"no version":          {strings.Replace(good, "apiVersion: firmseal.policy/v1\n", "", 1), "apiVersion"},
		"version 2":           {strings.Replace(good, "/v1", "/v2", 1), "firmseal.policy/v1"},
		"no profiles":         {"apiVersion: firmseal.policy/v1\n", "0 profiles"},
		"unknown key":         {doc("requires: [x]"), "requires"},
		"unknown top key":     {good + "rules: []\n", "rules"},
		"key twice":           {doc("product: door"), "product"},
		"wrong type":          {doc("require: yes"), "require"},
		"staging":             {strings.Replace(good, "production", "staging", 1), "staging"},
		"no product":          {strings.Replace(good, "product: sensor", "product: ''", 1), "no product"},
		"bad format":          {strings.Replace(good, "format: raw", "format: ../raw", 1), "no format"},
		"no keys":             {strings.Replace(good, "{image: boot}", "{}", 1), "0 keys"},
		"bad key name":        {strings.Replace(good, "image: boot", "image: Boot/", 1), "Boot/"},
		"bad profile name":    {strings.Replace(good, "  p:", "  P P:", 1), "P P"},
		"require twice":       {doc("require: [a, a]"), "twice"},
		"anchor":              {doc("require: &a [x]"), "anchor"},
		"alias":               {doc("require: &a [x]", "options: {a: *a}"), "anchor"},
		"tag":                 {doc("bytes_unseen: !!bool true"), "tag"},
		"tab":                 {"\tapiVersion: x\n", ""},
		"rule without check":  {doc("rules:", "- {name: r, say: no}"), "no check"},
		"rule without say":    {doc("rules:", "- {name: r, check: 'true'}"), "no say"},
		"rule without name":   {doc("rules:", "- {check: 'true', say: no}"), "a name"},
		"rule twice":          {doc("rules:", rule("r", "true"), rule("r", "true")), "another rule"},
		"rule named keys":     {doc("rules:", rule("keys", "true")), "built-in"},
		"not CEL":             {doc("rules:", rule("r", "request.")), "Syntax error"},
		"misspelt field":      {doc("rules:", rule("r", "request.versoin == 'x'")), "undefined field 'versoin'"},
		"unknown variable":    {doc("rules:", rule("r", "device.x")), "device"},
		"not a bool":          {doc("rules:", rule("r", "request.version")), "not a bool"},
		"wrong types":         {doc("rules:", rule("r", "request.version > 3")), "no matching overload"},
		"through a map":       {doc("rules:", rule("r", "request.metadata.all(k, k != '')")), "members of a map"},
		"long check":          {doc("rules:", rule("r", strings.Repeat("true && ", 1000)+"true")), "longer"},
		"deep check":          {doc("rules:", rule("r", strings.Repeat("(", 500)+"true"+strings.Repeat(")", 500))), ""},
		"bad regex":           {doc("rules:", rule("r", "request.version.matches('(')")), ""},
		"test without expect": {good + "tests: [{name: a, request: {profile: p}}]\n", "expect"},
		"test without name":   {good + "tests: [{request: {profile: p}, expect: deny}]\n", "no name"},
		"test with bad time":  {good + "tests: [{name: a, expect: deny, now: monday}]\n", "monday"},
		"test of allow":       {good + "tests: [{name: a, expect: allow, rule: keys}]\n", "names what denies"},
		"test misspelt":       {good + "tests: [{name: a, expect: deny, request: {versoin: 1}}]\n", "versoin"},
		"too large":           {good + strings.Repeat("# padding\n", policy.MaxDocument/10), "limit"},
		"brackets":            {strings.Repeat("[", 60_000), "deep"},
		"braces":              {strings.Repeat("{a: ", 15_000), "deep"},
		"dashes":              {strings.Repeat("- ", 30_000), "deep"},
		"questions":           {strings.Repeat("? ", 30_000), "deep"},
		"commas":              {"[" + strings.Repeat(",", policy.MaxDocument-2) + "]", ""},
		"aliases":             {strings.Repeat("*a ", policy.MaxDocument/3), ""},
		"a long list":         {"[" + strings.Repeat("a,", policy.MaxDocument/2-1) + "]", ""},
		"NaN option":          {doc("options: {x: .nan}"), "not JSON"},
	} {
		start := time.Now()
		_, err := policy.Parse([]byte(c.text))
		if !problem.Has(err, problem.PolicyMalformed) {
			t.Errorf("%s: %v, want POLICY.MALFORMED", name, err)
			continue
		}
		if p := problem.Of(err); !strings.Contains(p.What+" "+p.Why, c.says) || len(p.Why) > 3000 {
			t.Errorf("%s: %q does not say %q", name, err, c.says)
		}
		// A guard against minutes, not a measurement: the machine may be busy.
		if e := time.Since(start); e > 30*time.Second {
			t.Errorf("%s took %v", name, e)
		}
	}
	// The place is shown.
	_, err := policy.Parse([]byte(doc("requires: [x]")))
	if why := problem.Of(err).Why; !strings.Contains(why, "^") || !strings.Contains(why, "requires") {
		t.Errorf("no caret: %s", why)
	}
	_, err = policy.Parse([]byte(doc("rules:", rule("r", "request.versoin == ''"))))
	if why := problem.Of(err).Why; !strings.Contains(why, "^") {
		t.Errorf("no caret: %s", why)
	}
}

func TestLint(t *testing.T) {
	t.Parallel()
	d := parse(t, `apiVersion: firmseal.policy/v1
profiles:
  a: {product: x, environment: production, format: raw, keys: {image: k}, bytes_unseen: true, allow_older_versions: true}
  b: {product: x, environment: test, format: raw, keys: {image: k}, rules: [{name: r, check: "true", say: no}]}
`)
	var got []string
	for _, w := range policy.Lint(d) {
		got = append(got, w.Profile+" "+w.Rule+" "+w.Text)
	}
	for _, want := range []string{
		"a  production images are signed without being seen", "a  older versions", "a  hardware_ids is not", "a  security_counter is not",
		"a  there are no rules", "b  key k is also that of profile a", "b r the rule never refuses", "b r the rule does not say", "no tests", "a  no target",
	} {
		if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("no warning %q in %q", want, got)
		}
	}
	if !reflect.DeepEqual(policy.Lint(d), policy.Lint(d)) {
		t.Error("the order changes")
	}
}

func draw(t *rapid.T) policy.Facts {
	f := facts()
	pick := func(name string, of ...string) string { return rapid.SampledFrom(of).Draw(t, name) }
	f.Request.Environment = pick("environment", "production", "production", "test", "")
	f.Request.Version = pick("version", "1.2.3", "1.2.4", "2.0.0-rc.1", "1.0.0", "x")
	f.Request.SecurityCounter = rapid.Uint64Range(0, 10).Draw(t, "counter")
	f.Request.Emergency = rapid.Bool().Draw(t, "emergency")
	f.Request.BytesUnseen = rapid.Bool().Draw(t, "unseen")
	f.Request.HardwareIDs = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3).Draw(t, "hardware")
	f.Request.Metadata = rapid.MapOfN(rapid.SampledFrom([]string{"commit", "branch", "x"}), rapid.SampledFrom([]string{"", "abc"}), 0, 3).Draw(t, "metadata")
	f.Last = policy.Last{Exists: rapid.Bool().Draw(t, "exists"), Version: pick("last", "1.2.2", "1.2.3", "3.0.0"), SecurityCounter: rapid.Uint64Range(0, 10).Draw(t, "last counter")}
	f.Keys[0].Environment = pick("key environment", "production", "production", "test")
	f.Keys[0].Retired = rapid.IntRange(0, 5).Draw(t, "retired") == 0
	return f
}

var ruleChecks = []string{
	`request.metadata.commit == "abc"`, `request.hardware_ids.all(h, h != "c")`, `semver_less(last.version, request.version)`, `!request.emergency`,
	`request.security_counter % 2 == 1`, `true`, `false`, `1 / request.security_counter > 0`, `request.metadata.x == "" || request.metadata.branch == ""`,
}

func drawDoc(t *rapid.T) []string {
	lines := []string{
		fmt.Sprintf("bytes_unseen: %v", rapid.Bool().Draw(t, "doc unseen")), fmt.Sprintf("allow_older_versions: %v", rapid.Bool().Draw(t, "doc older")), "rules:",
	}
	for i, c := range rapid.SliceOfN(rapid.SampledFrom(ruleChecks), 0, 3).Draw(t, "rules") {
		lines = append(lines, rule(fmt.Sprintf("r%d", i), c))
	}
	return lines
}

func TestProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		lines := drawDoc(t)
		d, err := policy.Parse([]byte(doc(lines...)))
		if err != nil {
			t.Fatal(err)
		}
		f := draw(t)
		got := d.Evaluate(f)

		// The same facts give the same words, also from a copy.
		again := f
		again.Request.Metadata = maps.Clone(f.Request.Metadata)
		d2, err := policy.Parse([]byte(doc(lines...)))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if other := d2.Evaluate(again); !reflect.DeepEqual(got, other) {
				t.Fatalf("two decisions:\n%+v\n%+v", got, other)
			}
		}
		// Another environment than the profile's, of request or key, never passes.
		if got.Allow && (f.Request.Environment != "production" || f.Keys[0].Environment != "production" || f.Keys[0].Retired) {
			t.Fatalf("allowed %+v", f)
		}
		// The counter never goes down, and an emergency raises it.
		if got.Allow && f.Last.Exists && (f.Request.SecurityCounter < f.Last.SecurityCounter || f.Request.Emergency && f.Request.SecurityCounter == f.Last.SecurityCounter) {
			t.Fatalf("allowed counter %d after %d", f.Request.SecurityCounter, f.Last.SecurityCounter)
		}
		// One rule more, anywhere, never turns a refusal into an allow, and
		// every built-in check says the same.
		at := rapid.IntRange(3, len(lines)).Draw(t, "at")
		more := slices.Insert(slices.Clone(lines), at, rule("added", rapid.SampledFrom(ruleChecks).Draw(t, "added")))
		d3, err := policy.Parse([]byte(doc(more...)))
		if err != nil {
			t.Fatal(err)
		}
		if stricter := d3.Evaluate(f); stricter.Allow && !got.Allow {
			t.Fatalf("a rule more allowed it: %+v", got)
		}
		// Refused if and only if a step refuses; the first that does decides.
		i := slices.IndexFunc(got.Trace, func(s policy.Step) bool { return !s.Allow })
		if got.Allow != (i < 0) || i >= 0 && got.Trace[i].Name != got.Rule {
			t.Fatalf("decision %v by %s, trace %+v", got.Allow, got.Rule, got.Trace)
		}
	})
}

// What the last release raised, no later request lowers: a chain of allowed
// releases has a rising counter, however the requests come.
func TestCounterChain(t *testing.T) {
	t.Parallel()
	d := parse(t, doc("allow_older_versions: true"))
	rapid.Check(t, func(t *rapid.T) {
		last := policy.Last{}
		for range 20 {
			f := facts()
			f.Last = last
			f.Request.SecurityCounter = rapid.Uint64Range(0, 5).Draw(t, "counter")
			f.Request.Emergency = rapid.Bool().Draw(t, "emergency")
			if !d.Evaluate(f).Allow {
				continue
			}
			if last.Exists && f.Request.SecurityCounter < last.SecurityCounter {
				t.Fatalf("%d after %d", f.Request.SecurityCounter, last.SecurityCounter)
			}
			last = policy.Last{Exists: true, Version: f.Request.Version, SecurityCounter: f.Request.SecurityCounter}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(example(f))
	f.Add([]byte(doc("rules:", rule("r", `request.metadata.all(k, k != "")`))))
	f.Add([]byte(doc("options: {a: [1, {b: 2}], c: 1e400}")))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("? ? ? - - - [{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := policy.Parse(text)
		if err != nil {
			if !problem.Has(err, problem.PolicyMalformed) {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		policy.Lint(d)
		d.Test()
		for _, p := range d.Profiles() {
			x := facts()
			x.Request.Profile = p
			d.Evaluate(x)
		}
	})
}

func BenchmarkEvaluate(b *testing.B) {
	d := parse(b, string(example(b)))
	f := facts()
	f.Request.Profile, f.Request.Format, f.Request.HardwareIDs = "sensor-production", "mcuboot", []string{"sensor-a"}
	f.Request.BuildID, f.Request.Metadata = "1", map[string]string{"source_commit": "8f2c"}
	f.Keys[0].Name, f.Keys[0].Format = "sensor-2026", "mcuboot"
	b.ReportAllocs()
	for b.Loop() {
		if r := d.Evaluate(f); !r.Allow {
			b.Fatal(r.Problem())
		}
	}
}

func BenchmarkParse(b *testing.B) {
	text := example(b)
	for b.Loop() {
		if _, err := policy.Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

// A document is shared by every request: decisions at the same time are the
// decisions one after another.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	d := parse(t, doc("rules:", rule("r", `request.security_counter % 2 == 1 && semver_less(last.version, request.version)`)))
	want := map[uint64]policy.Decision{}
	for n := uint64(5); n < 9; n++ {
		f := facts()
		f.Request.SecurityCounter = n
		want[n] = d.Evaluate(f)
	}
	var wg sync.WaitGroup
	for n, w := range want {
		wg.Go(func() {
			for range 50 {
				f := facts()
				f.Request.SecurityCounter = n
				if got := d.Evaluate(f); !reflect.DeepEqual(got, w) {
					t.Errorf("counter %d: %+v, alone %+v", n, got, w)
					return
				}
			}
		})
	}
	wg.Wait()
}

// The next step names every flag at once: nobody wants to be told five times.
func TestMissingMetadataIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	f := facts()
	f.Request.MinimumVersion = ""
	d := parse(t, doc("require: [minimum_version, source_commit]")).Evaluate(f)
	if want := "add --minimum-version VERSION --meta source_commit=VALUE"; d.Next != want {
		t.Errorf("next is %q, not %q", d.Next, want)
	}
}
