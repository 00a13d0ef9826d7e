package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/api"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/servertest"
	"github.com/firmseal/firmseal/internal/telemetry"
)

// openapi is what these tests read of the document.
type openapi struct {
	OpenAPI    string                          `json:"openapi"`
	Paths      map[string]map[string]operation `json:"paths"`
	Components struct {
		Schemas         map[string]json.RawMessage `json:"schemas"`
		SecuritySchemes map[string]json.RawMessage `json:"securitySchemes"`
	} `json:"components"`
}

type operation struct {
	ID         string                                                  `json:"operationId"`
	Summary    string                                                  `json:"summary"`
	Security   []map[string][]string                                   `json:"security"`
	Parameters []struct{ Name, In string }                             `json:"parameters"`
	Responses  map[string]struct{ Content map[string]json.RawMessage } `json:"responses"`
	Body       *struct {
		Content map[string]struct{ Schema map[string]any }
	} `json:"requestBody"`
}

// caller makes plain HTTP calls, as somebody without package client does.
type caller struct {
	t     *testing.T
	base  string
	token string
	http  *http.Client
}

func newCaller(t *testing.T, s *servertest.Server) *caller {
	c := s.HTTP()
	return &caller{t, c.BaseURL, c.Token, c.HTTP}
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (c *caller) call(method, path, token, mediaType string, body []byte, header ...string) answer {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{res.StatusCode, res.Header, b}
}

func (c *caller) get(path string) answer { return c.call("GET", path, c.token, "", nil) }

// refused demands a problem document that is whole, with a code of the list.
func (c *caller) refused(a answer, status int, code problem.Code) client.Problem {
	c.t.Helper()
	var p client.Problem
	if err := json.Unmarshal(a.body, &p); err != nil || a.header.Get("Content-Type") != "application/problem+json" {
		c.t.Fatalf("%d %s is no problem document: %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	e, known := problem.Lookup(problem.Code(p.Code))
	if a.status != status || p.Status != status || problem.Code(p.Code) != code || !known {
		c.t.Fatalf("got %d %s (in the document: %d), want %d %s: %s", a.status, p.Code, p.Status, status, code, a.body)
	}
	if p.Detail == "" || p.Title != e.Title || p.Type != "urn:firmseal:problem:"+p.Code {
		c.t.Errorf("the document is not whole: %s", a.body)
	}
	if p.RequestID == "" || p.RequestID != a.header.Get("X-Request-Id") {
		c.t.Errorf("request_id %q, X-Request-ID %q", p.RequestID, a.header.Get("X-Request-Id"))
	}
	if inner := regexp.MustCompile(`(?i)sql|unmarshal|goroutine|\.go:|runtime error|nil pointer`).Find(a.body); inner != nil {
		c.t.Errorf("the refusal shows what is inside (%s): %s", inner, a.body)
	}
	return p
}

func document(c *caller) openapi {
	c.t.Helper()
	a := c.call("GET", "/openapi.json", "", "", nil)
	var d openapi
	if err := json.Unmarshal(a.body, &d); err != nil || a.status != 200 {
		c.t.Fatalf("/openapi.json: %d %v", a.status, err)
	}
	return d
}

var methods = []string{"get", "put", "post", "delete", "patch", "head", "options", "trace"}

// The document is OpenAPI 3.1 that tools can read: names, references,
// parameters and answers are whole, and each operation says who may call it.
func TestDocumentIsWhole(t *testing.T) {
	t.Parallel()
	c := newCaller(t, servertest.New(t, servertest.Options{}))
	d := document(c)
	if !strings.HasPrefix(d.OpenAPI, "3.1.") {
		t.Errorf("openapi is %q", d.OpenAPI)
	}
	raw := string(c.get("/openapi.json").body)
	for _, m := range regexp.MustCompile(`"\$ref":"([^"]*)"`).FindAllStringSubmatch(raw, -1) {
		name, ok := strings.CutPrefix(m[1], "#/components/schemas/")
		if _, there := d.Components.Schemas[name]; !ok || !there {
			t.Errorf("the reference %s leads nowhere", m[1])
		}
	}
	for name := range d.Components.Schemas {
		if !regexp.MustCompile(`^[a-zA-Z0-9._-]+$`).MatchString(name) {
			t.Errorf("%q cannot name a schema", name)
		}
		if !strings.Contains(raw, `"#/components/schemas/`+name+`"`) {
			t.Errorf("schema %s is used nowhere", name)
		}
	}
	if _, ok := d.Components.SecuritySchemes["token"]; !ok {
		t.Error("the token scheme is not described")
	}
	public := map[string]bool{"health-get": true, "metrics-get": true}
	ids := map[string]bool{}
	for path, ops := range d.Paths {
		var inPath []string
		for _, m := range regexp.MustCompile(`\{([a-z0-9]+)\}`).FindAllStringSubmatch(path, -1) {
			inPath = append(inPath, m[1])
		}
		if rest := regexp.MustCompile(`\{[a-z0-9]+\}`).ReplaceAllString(path, ""); !strings.HasPrefix(path, "/") || strings.ContainsAny(rest, "{}?#") {
			t.Errorf("%s is no OpenAPI path", path)
		}
		for method, o := range ops {
			if !slices.Contains(methods, method) {
				t.Errorf("%s is no method", method)
			}
			if ids[o.ID] || o.ID == "" || o.Summary == "" {
				t.Errorf("%s %s: operationId %q, summary %q", method, path, o.ID, o.Summary)
			}
			ids[o.ID] = true
			var declared []string
			for _, p := range o.Parameters {
				if p.In == "path" {
					declared = append(declared, p.Name)
				}
			}
			slices.Sort(declared)
			slices.Sort(inPath)
			if !slices.Equal(declared, inPath) {
				t.Errorf("%s: the path has %v, its parameters are %v", o.ID, inPath, declared)
			}
			good := 0
			for status, r := range o.Responses {
				if status[0] == '2' {
					good++
				} else if _, ok := r.Content["application/problem+json"]; !ok {
					t.Errorf("%s: answer %s is no problem document", o.ID, status)
				}
			}
			if good != 1 {
				t.Errorf("%s has %d good answers", o.ID, good)
			}
			if public[o.ID] {
				if len(o.Security) != 0 {
					t.Errorf("%s is public and asks for %v", o.ID, o.Security)
				}
				continue
			}
			if len(o.Security) != 1 || len(o.Security[0]["token"]) != 1 || !slices.Contains(auth.Scopes(), auth.Scope(o.Security[0]["token"][0])) {
				t.Errorf("%s asks for %v, which is not one known scope", o.ID, o.Security)
			}
			for _, want := range []string{"401", "403"} {
				if _, ok := o.Responses[want]; !ok {
					t.Errorf("%s does not say that it may answer %s", o.ID, want)
				}
			}
		}
	}
	if len(ids) < 25 {
		t.Errorf("only %d operations", len(ids))
	}
}

// Nobody calls an operation without a token, nor with one that lacks its
// scope, whatever else the token may; and each path of the document is there.
func TestEveryOperationAsksForItsScope(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Options{})
	c := newCaller(t, s)
	without := map[string]string{} // scope → token with all others
	for _, missing := range auth.Scopes() {
		var others []string
		for _, sc := range auth.Scopes() {
			if sc != missing {
				others = append(others, string(sc))
			}
		}
		tok, err := s.Client.CreateToken(t.Context(), client.NewToken{Name: "without " + string(missing), Scopes: others, TTL: 3600})
		if err != nil {
			t.Fatal(err)
		}
		without[string(missing)] = tok.Secret
	}
	values := strings.NewReplacer("{name}", "nobody", "{id}", "01a1fcc0-0000-7000-8000-000000000000", "{index}", "0",
		"{sha256}", strings.Repeat("0", 64), "{path}", "entries/000")
	for path, ops := range document(c).Paths {
		for method, o := range ops {
			method = strings.ToUpper(method)
			at := values.Replace(path)
			media := ""
			if o.Body != nil {
				for m := range o.Body.Content {
					media = m
				}
			}
			if len(o.Security) == 0 {
				if a := c.call(method, at, "", media, nil); a.status != 200 {
					t.Errorf("%s is public and answers %d", o.ID, a.status)
				}
				continue
			}
			scope := o.Security[0]["token"][0]
			a := c.call(method, at, "", media, []byte("{}"))
			c.refused(a, 401, problem.Unauthorized)
			if a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: a 401 without WWW-Authenticate", o.ID)
			}
			c.refused(c.call(method, at, "fsl_nonsense", media, []byte("{}")), 401, problem.Unauthorized)
			if p := c.refused(c.call(method, at, without[scope], media, []byte("{}")), 403, problem.Forbidden); !strings.Contains(p.Detail+p.Why, scope) {
				t.Errorf("%s: the refusal does not name the scope %s: %+v", o.ID, scope, p)
			}
			if a := c.call(method, at, c.token, media, []byte("{}")); bytes.Contains(a.body, []byte("there is nothing at "+method)) {
				t.Errorf("%s %s is in the document and not there", method, path)
			}
		}
	}
}

// A request that is none is answered by a problem document with a code, what
// was seen, and nothing of the inside; nothing is recorded.
func TestMalformedRequestsAreProblems(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Options{})
	c := newCaller(t, s)
	const js = "application/json"
	digest := strings.Repeat("a", 64)
	for _, r := range []struct {
		name, method, path, media, body string
		status                          int
		code                            problem.Code
	}{
		{"no such path", "GET", "/api/v1/nothing", "", "", 404, problem.NotFound},
		{"no such method", "DELETE", "/api/v1/keys", "", "", 405, problem.BadMethod},
		{"a method of a path with a name", "POST", "/api/v1/keys/k", "", "", 405, problem.BadMethod},
		{"a method that HTTP does not know", "BREW", "/healthz", "", "", 405, problem.BadMethod},
		{"a method of a tile", "PUT", "/log/checkpoint", "", "x", 405, problem.BadMethod},
		{"a method of no path", "DELETE", "/api/v1/nothing", "", "", 404, problem.NotFound},
		{"a path with dots", "GET", "/api/v1/releases/..%2f..%2fkeys", "", "", 404, problem.NotFound},
		{"no JSON", "POST", "/api/v1/requests", js, "{", 400, problem.BadRequest},
		{"no body", "POST", "/api/v1/requests", js, "", 400, problem.BadRequest},
		{"a list", "POST", "/api/v1/requests", js, "[]", 422, problem.BadRequest},
		{"an unknown member", "POST", "/api/v1/requests", js, `{"profil":"x"}`, 422, problem.BadRequest},
		{"a wrong type", "POST", "/api/v1/keys", js, `{"name":7,"purpose":"firmware","environment":"test"}`, 422, problem.BadRequest},
		{"a wrong enum", "POST", "/api/v1/keys", js, `{"name":"k","purpose":"log","environment":"test"}`, 422, problem.BadRequest},
		{"a deep document", "POST", "/api/v1/requests", js, strings.Repeat("[", 100000), 400, problem.BadRequest},
		{"a body above the limit", "POST", "/api/v1/requests", js, `{"profile":"` + strings.Repeat("x", 3<<20) + `"}`, 413, problem.TooLarge},
		{"a part above the limit", "PATCH", "/api/v1/uploads/" + digest + "?size=99999999&offset=0", "application/octet-stream", strings.Repeat("x", api.MaxChunk+1), 413, problem.TooLarge},
		{"a part of just the limit", "PATCH", "/api/v1/uploads/" + digest + "?size=99999999&offset=5", "application/octet-stream", strings.Repeat("x", api.MaxChunk), 409, problem.BlobOffset},
		{"an offset that is not where the bytes end", "PATCH", "/api/v1/uploads/" + digest + "?size=10&offset=5", "application/octet-stream", "abc", 409, problem.BlobOffset},
		{"a digest that is none", "PATCH", "/api/v1/uploads/zz?size=10&offset=0", "application/octet-stream", "abc", 422, problem.BadRequest},
		{"a negative offset", "PATCH", "/api/v1/uploads/" + digest + "?size=10&offset=-1", "application/octet-stream", "abc", 422, problem.BadRequest},
		{"a size that no disk has", "POST", "/api/v1/uploads", js, `{"sha256":"` + digest + `","size":9223372036854775807}`, 422, problem.BlobSize},
		{"a wait that is none", "GET", "/api/v1/requests/x?wait=soon", "", "", 400, problem.BadRequest},
		{"a wait below zero", "GET", "/api/v1/requests/x?wait=-5s", "", "", 400, problem.BadRequest},
		{"a page of nothing", "GET", "/api/v1/requests?limit=0", "", "", 422, problem.BadRequest},
		{"a page of all", "GET", "/api/v1/releases?limit=501", "", "", 422, problem.BadRequest},
		{"a limit that is a word", "GET", "/api/v1/releases?limit=many", "", "", 422, problem.BadRequest},
		{"a state that is none", "GET", "/api/v1/requests?state=done", "", "", 422, problem.BadRequest},
		{"a policy that is none", "PUT", "/api/v1/policy", "application/yaml", "apiVersion: x", 422, problem.PolicyMalformed},
		{"a token for ever", "POST", "/api/v1/tokens", js, `{"name":"t","scopes":["log:read"],"ttl":9000000000000000000}`, 400, problem.BadRequest},
		{"a leaf that is not there", "GET", "/api/v1/log/leaves/123456789/proof", "", "", 404, problem.NotFound},
		{"a tile that is not there", "GET", "/log/tile/0/x123/456", "", "", 404, problem.NotFound},
		{"a tile that is none", "GET", "/log/tile/../../etc", "", "", 404, problem.NotFound},
		{"an image that nobody uploaded", "POST", "/api/v1/requests", js, `{"profile":"p","version":"1.0.0","security_counter":1,"hardware_ids":["b"],"input":{"sha256":"` + digest + `","size":5}}`, 409, problem.UploadMissing},
	} {
		a := c.call(r.method, r.path, c.token, r.media, []byte(r.body))
		t.Run(r.name, func(t *testing.T) {
			cc := *c
			cc.t = t
			cc.refused(a, r.status, r.code)
			if allow := a.header.Get("Allow"); (allow != "") != (r.status == 405) || strings.Contains(allow, r.method) {
				t.Errorf("a %s answered %d with Allow: %q", r.method, r.status, allow)
			}
		})
	}
	if p, err := s.Client.Requests(t.Context(), client.RequestQuery{Limit: 10}); err != nil || len(p.Items) != 0 {
		t.Errorf("something was recorded: %v %v", p.Items, err)
	}
}

// signer makes a workspace that signs raw test images with profile p.
func signer(t *testing.T, o servertest.Options) *servertest.Server {
	t.Helper()
	s := servertest.New(t, o)
	s.Key("k", "p256", "test", "p", "raw")
	s.Policy(servertest.Profile("p", "p", "test", "raw", "k"))
	return s
}

func requestBody(t *testing.T, version string, content string) []byte {
	t.Helper()
	b, err := json.Marshal(servertest.Request("p", version, 1, []byte(content)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The same Idempotency-Key and body give the same request; another body is
// refused; and ?wait= gives the request when it rests, not before.
func TestRequestsAreMadeOnceAndWaitedFor(t *testing.T) {
	t.Parallel()
	s := signer(t, servertest.Options{})
	c := newCaller(t, s)
	post := func(body []byte, key string) answer {
		return c.call("POST", "/api/v1/requests?wait=1m", c.token, "application/json", body, "Idempotency-Key", key)
	}
	decode := func(a answer) (r client.Request) {
		t.Helper()
		if a.status != 201 && a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if err := json.Unmarshal(a.body, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := decode(post(requestBody(t, "1.0.0", "image one"), "build-1"))
	if first.State != "released" {
		t.Errorf("after ?wait=1m it is %s", first.State)
	}
	again := decode(post(requestBody(t, "1.0.0", "image one"), "build-1"))
	if again.ID != first.ID || len(s.Uses("firmware")) != 1 {
		t.Errorf("the second call made %s beside %s; the key was used %d times", again.ID, first.ID, len(s.Uses("firmware")))
	}
	c.refused(post(requestBody(t, "1.1.0", "image two"), "build-1"), 409, problem.IdempotencyUsed)
	c.refused(post(requestBody(t, "1.1.0", "image two"), strings.Repeat("k", 256)), 422, problem.BadRequest)
	// A request that rests is answered at once, however long somebody would wait.
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	if r, err := s.Client.Request(ctx, first.ID, 2*time.Minute); err != nil || r.State != "released" {
		t.Errorf("%v %v", r.State, err)
	}
}

// Lists come in pages that neither repeat nor leave out.
func TestPagesCoverTheList(t *testing.T) {
	t.Parallel()
	s := signer(t, servertest.Options{})
	want := map[string]bool{}
	for i := range 7 {
		r, err := s.Client.Sign(t.Context(), servertest.Request("p", fmt.Sprintf("1.0.%d", i), 1, fmt.Appendf(nil, "image %d", i)), "", time.Minute)
		if err != nil || r.State != "released" {
			t.Fatalf("%+v %v", r.Problem, err)
		}
		want[r.ID] = true
	}
	var requests, releases []string
	for before, n := "", 0; n == 0 || before != ""; n++ {
		p, err := s.Client.Requests(t.Context(), client.RequestQuery{Before: before, Limit: 3})
		if err != nil || len(p.Items) > 3 {
			t.Fatal(len(p.Items), err)
		}
		for _, r := range p.Items {
			requests = append(requests, r.ID)
		}
		before = p.Next
	}
	for before, n := "", 0; n == 0 || before != ""; n++ {
		p, err := s.Client.Releases(t.Context(), "p", before, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range p.Items {
			releases = append(releases, r.Request)
		}
		before = p.Next
	}
	for name, got := range map[string][]string{"requests": requests, "releases": releases} {
		seen := map[string]bool{}
		for _, id := range got {
			if !want[id] || seen[id] {
				t.Errorf("%s: %s is there twice or was never made", name, id)
			}
			seen[id] = true
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d of %d in pages", name, len(got), len(want))
		}
	}
	// The journal, oldest first, each entry once.
	var last int64
	for after, n := int64(0), 0; ; n++ {
		p, err := s.Client.Events(t.Context(), after, 4)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Items {
			if e.Seq <= last {
				t.Fatalf("entry %d after %d", e.Seq, last)
			}
			last = e.Seq
		}
		if p.Next == "" {
			break
		}
		if _, err := fmt.Sscan(p.Next, &after); err != nil {
			t.Fatal(err)
		}
	}
	if last < 7 {
		t.Errorf("the journal ends at %d", last)
	}
}

// tileReader reads the log over HTTP with the Go module log's client, which
// knows nothing of this program.
type tileReader struct{ c *caller }

func (r tileReader) Height() int                     { return 8 }
func (r tileReader) SaveTiles([]tlog.Tile, [][]byte) {}
func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, t := range tiles {
		a := r.c.get("/log/" + strings.Replace(t.Path(), "tile/8/", "tile/", 1))
		if a.status != 200 {
			return nil, fmt.Errorf("%s: %d %s", t.Path(), a.status, a.body)
		}
		out = append(out, a.body)
	}
	return out, nil
}

// Somebody who trusts only the log's key reads all of it over HTTP: the
// checkpoint is signed, the tiles hash to it, and the entries to the tiles.
func TestAnIndependentReaderFollowsTheLog(t *testing.T) {
	t.Parallel()
	s := signer(t, servertest.Options{})
	for i := range 60 { // more than one full tile of entries
		if _, err := s.Client.CreateToken(t.Context(), client.NewToken{Name: fmt.Sprint(i), Scopes: []string{"log:read"}, TTL: 600}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		if r, err := s.Client.Sign(t.Context(), servertest.Request("p", fmt.Sprintf("1.0.%d", i), 1, []byte("image")), "", time.Minute); err != nil || r.State != "released" {
			t.Fatalf("%+v %v", r.Problem, err)
		}
	}
	c := newCaller(t, s)
	st, err := s.Client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(st.LogVKey)
	if err != nil {
		t.Fatal(err)
	}
	cp := c.get("/log/checkpoint")
	n, err := note.Open(cp.body, note.VerifierList(v))
	if err != nil {
		t.Fatalf("the checkpoint is not signed by the log: %v", err)
	}
	lines := strings.Split(n.Text, "\n")
	if lines[0] != st.Origin {
		t.Errorf("origin %q, want %q", lines[0], st.Origin)
	}
	var tree tlog.Tree
	if _, err := fmt.Sscan(lines[1], &tree.N); err != nil {
		t.Fatal(err)
	}
	if tree.Hash, err = tlog.ParseHash(lines[2]); err != nil {
		t.Fatal(err)
	}
	if tree.N <= 256 {
		t.Fatalf("the log has %d entries; the test wants more than a tile", tree.N)
	}
	hashes := tlog.TileHashReader(tree, tileReader{c})
	for at := int64(0); at < tree.N; {
		path, width := fmt.Sprintf("/log/tile/entries/%03d", at/256), min(256, tree.N-at)
		if width < 256 {
			path += fmt.Sprintf(".p/%d", width)
		}
		a := c.get(path)
		if a.status != 200 {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		b := a.body
		for range width {
			if len(b) < 2 || len(b) < 2+int(b[0])<<8+int(b[1]) {
				t.Fatalf("%s is cut within entry %d", path, at)
			}
			size := int(b[0])<<8 + int(b[1])
			want, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, at)})
			if err != nil {
				t.Fatalf("entry %d: %v", at, err)
			}
			if got := tlog.RecordHash(b[2 : 2+size]); got != want[0] {
				t.Fatalf("entry %d does not have the hash of the tree: %s", at, b[2:2+size])
			}
			b = b[2+size:]
			at++
		}
		if len(b) != 0 {
			t.Fatalf("%s has %d bytes too many", path, len(b))
		}
	}
}

// M1 and M2 can be computed from /metrics: a released and a denied request
// each move their own series, and the names are Prometheus's kind of names.
func TestMetricsMoveWhenSomethingIsSigned(t *testing.T) {
	t.Parallel()
	s := signer(t, servertest.Options{})
	c := newCaller(t, s)
	series := func() map[string]string {
		a := c.call("GET", "/metrics", "", "", nil)
		if a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		out := map[string]string{}
		for l := range strings.Lines(string(a.body)) {
			if name, value, ok := strings.Cut(strings.TrimSpace(l), " "); ok && !strings.HasPrefix(l, "#") {
				out[name] = value
			}
		}
		return out
	}
	const released, denied, count = `firmseal_sign_requests_total{result="released"}`, `firmseal_sign_requests_total{result="denied"}`, "firmseal_sign_latency_seconds_count"
	before := series()
	if before[released] != "0" || before[denied] != "0" || before[count] != "0" {
		t.Errorf("a series is not there before its first event: %v %v %v", before[released], before[denied], before[count])
	}
	n := servertest.Request("p", "1.0.0", 1, []byte("image"))
	n.BuildFinished = time.Now().Add(-5 * time.Second).UnixMicro()
	if r, err := s.Client.Sign(t.Context(), n, "", time.Minute); err != nil || r.State != "released" {
		t.Fatalf("%+v %v", r, err)
	}
	if r, err := s.Client.Sign(t.Context(), servertest.Request("p", "0.9.0", 1, []byte("older")), "", time.Minute); err != nil || r.State != "denied" {
		t.Fatalf("%+v %v", r, err)
	}
	after := series()
	if after[released] != "1" || after[denied] != "1" || after[count] != "1" {
		t.Errorf("released %s, denied %s, latencies %s", after[released], after[denied], after[count])
	}
	if sum := after["firmseal_sign_latency_seconds_sum"]; !regexp.MustCompile(`^[5-9]|^[1-9]\d`).MatchString(sum) {
		t.Errorf("the latency from the build's end is %s s, not above 5", sum)
	}
	if after["firmseal_key_wait_seconds_count"] == "0" {
		t.Error("the wait for the key was not observed")
	}
	problems, err := promlint.New(bytes.NewReader(c.call("GET", "/metrics", "", "", nil).body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "firmseal_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// A bug in a handler costs one request: the caller gets a problem without the
// inside, the log gets it, and the next request is served.
func TestPanicCostsOneRequest(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	h := api.New(api.Options{Metrics: telemetry.New(), Logger: telemetry.NewLogger(&log, telemetry.JSON, slog.LevelError)}) // without a service each handler that needs one fails
	ask := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(auth.With(t.Context(), auth.Local("tester")), "GET", path, nil))
		return w
	}
	w := ask("/api/v1/keys")
	c := &caller{t: t}
	p := c.refused(answer{w.Code, w.Header(), w.Body.Bytes()}, 500, problem.Internal)
	if !strings.Contains(log.String(), "panic in a handler") || !strings.Contains(log.String(), p.RequestID) {
		t.Errorf("the log does not tell of it under its id: %s", log.String())
	}
	if w := ask("/openapi.json"); w.Code != 200 {
		t.Errorf("the next request gets %d", w.Code)
	}
}

// An upload that was cut off continues where the server's bytes end, also when
// it does not know that; somebody else's part is not taken for ours.
func TestUploadContinues(t *testing.T) {
	t.Parallel()
	s := signer(t, servertest.Options{})
	c := newCaller(t, s)
	file := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	digest := fmt.Sprintf("%x", sha256.Sum256(file))
	start := fmt.Appendf(nil, `{"sha256":%q,"size":%d}`, digest, len(file))
	begin := func() (u client.Upload) {
		t.Helper()
		a := c.call("POST", "/api/v1/uploads", c.token, "application/json", start)
		if err := json.Unmarshal(a.body, &u); err != nil || a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return u
	}
	part := func(from, to int) answer {
		return c.call("PATCH", fmt.Sprintf("/api/v1/uploads/%s?size=%d&offset=%d", digest, len(file), from), c.token, "application/octet-stream", file[from:to])
	}
	if u := begin(); u.Offset != 0 || u.Complete {
		t.Fatalf("%+v", u)
	}
	if a := part(0, 100_000); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	c.refused(part(0, 100_000), 409, problem.BlobOffset)
	c.refused(part(200_000, 300_000), 409, problem.BlobOffset)
	if u := begin(); u.Offset != 100_000 || u.Complete {
		t.Fatalf("after 100000 bytes: %+v", u)
	}
	hc := &client.Client{BaseURL: c.base, Token: c.token, HTTP: c.http}
	var told []int64
	if err := hc.Upload(t.Context(), bytes.NewReader(file), digest, int64(len(file)), func(n int64) { told = append(told, n) }); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0] != int64(len(file)) {
		t.Errorf("progress was %v", told)
	}
	if u := begin(); !u.Complete {
		t.Errorf("%+v", u)
	}
	// What is whole is not sent again.
	if err := hc.Upload(t.Context(), nil, digest, int64(len(file)), nil); err != nil {
		t.Errorf("a complete file is read again: %v", err)
	}
	// Bytes that do not have their digest are thrown away.
	other := strings.Repeat("b", 64)
	a := c.call("POST", "/api/v1/uploads", c.token, "application/json", fmt.Appendf(nil, `{"sha256":%q,"size":3}`, other))
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	c.refused(c.call("PATCH", "/api/v1/uploads/"+other+"?size=3&offset=0", c.token, "application/octet-stream", []byte("abc")), 422, problem.BlobDigest)
}
