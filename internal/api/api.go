// Package api is the HTTP API: one handler that the network server and the
// in-process client both call.
//
// Every operation is declared in one table-like file a noun (requests.go,
// keys.go, …) with its scope; an operation without a scope or an explicit
// public mark does not register. The types are those of package client.
//
// # Who calls
//
// Over the network the caller is the bearer token's identity. In the process
// (the CLI on a workspace) the identity is already in the context; no network
// request can put it there.
//
// # Refusals
//
// Handlers return errors; one place (problems.go) turns them into RFC 9457
// documents. The cause inside an error goes to the log under the request's id
// and never to the caller.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/signing"
	"github.com/firmseal/firmseal/internal/telemetry"
	"github.com/firmseal/firmseal/internal/tlog"
)

// Options are what the API serves.
type Options struct {
	DB        *db.DB
	Signing   *signing.Service
	Blobs     func(project string) (blob.Store, error)
	Log       *tlog.Log
	Metrics   *telemetry.Metrics
	Logger    *slog.Logger
	Workspace string // id
	Version   string // of the program
}

const (
	// maxBody bounds a JSON body: an inline image of 1 MiB in base64 and its
	// metadata.
	maxBody = 2 << 20
	// MaxChunk bounds one upload call, in bytes.
	MaxChunk = 8 << 20
	// maxWait bounds ?wait=; proxies cut longer ones.
	maxWait = 2 * time.Minute
)

type server struct {
	Options
	api   huma.API
	mux   *http.ServeMux
	pace  pace
	parts chan struct{} // one for each part of an upload in memory
}

// New gives the handler.
func New(o Options) http.Handler {
	mux := http.NewServeMux()
	s := &server{Options: o, mux: mux, pace: pace{bodyStall, bodyRate}, parts: make(chan struct{}, maxParts)}
	s.api = humago.New(mux, config(o.Version))
	s.api.UseMiddleware(s.identify)
	s.uploads()
	s.requests()
	s.releases()
	s.keys()
	s.policy()
	s.tokens()
	s.log()
	s.status()
	mux.HandleFunc("/", s.notFound)
	// huma describes its own error form; nothing answers with it.
	for _, unused := range []string{"ErrorModel", "ErrorDetail"} {
		delete(s.api.OpenAPI().Components.Schemas.Map(), unused)
	}
	return s.outer(mux)
}

func config(version string) huma.Config {
	c := huma.DefaultConfig("Firmseal", version)
	c.Info.Description = "Signs firmware under policy, logs it first, and verifies it before it leaves. Times are µs since 1970, UTC; digests are lower-case hex SHA-256."
	c.OpenAPIPath = "/openapi"
	c.DocsPath = "" // no third party's script on our origin
	c.SchemasPath = ""
	c.CreateHooks = nil // no $schema members in answers
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.Servers = []*huma.Server{{URL: "/"}}
	for _, t := range []struct{ name, text string }{
		{"uploads", "images on their way in"},
		{"requests", "signing requests"},
		{"releases", "what was signed and sealed"},
		{"keys", "keys; never a private half"},
		{"policy", "what may be signed"},
		{"tokens", "who may call"},
		{"log", "the transparency log"},
		{"trustroot", "what devices believe"},
		{"events", "the journal"},
		{"status", "health for people"},
		{"health", "health for load balancers"},
		{"metrics", "numbers for Prometheus"},
	} {
		c.Tags = append(c.Tags, &huma.Tag{Name: t.name, Description: t.text})
	}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "an API token: firmseal token create"},
	}
	c.Transformers = append(c.Transformers, humaProblems)
	return c
}

// public marks an operation that needs no token.
const public = ""

// op declares an operation. Its id is "noun-verb"; scope is one of auth's, or
// public.
func op(id, method, path, scope, summary string, status int) huma.Operation {
	o := huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, DefaultStatus: status, MaxBodyBytes: maxBody,
		Tags: []string{strings.SplitN(id, "-", 2)[0]}, Errors: []int{400, 403, 404, 409, 413, 422, 503},
		BodyReadTimeout: -1, // pace bounds bodies; huma would cut each after five seconds
	}
	if method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch {
		o.Errors = append(o.Errors, http.StatusRequestTimeout)
	}
	if scope == public {
		o.Security = []map[string][]string{}
		o.Metadata = map[string]any{"public": true}
	} else {
		o.Security = []map[string][]string{{"token": {scope}}}
		o.Errors = append([]int{401}, o.Errors...)
	}
	return o
}

// register adds an operation whose handler's errors become problem documents.
func register[I, O any](s *server, o huma.Operation, h func(context.Context, *I) (*O, error)) {
	if len(o.Security) == 0 && o.Metadata["public"] != true {
		panic("operation " + o.OperationID + " has no scope")
	}
	s.refusals(&o)
	huma.Register(s.api, o, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, s.refuse(ctx, err)
		}
		return out, nil
	})
}

// refusals describes the problem documents of an operation. huma would describe
// them in a form of its own.
func (s *server) refusals(o *huma.Operation) {
	schema := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[client.Problem](), true, "Problem")
	if o.Responses == nil {
		o.Responses = map[string]*huma.Response{}
	}
	for _, status := range append(o.Errors, http.StatusInternalServerError) {
		o.Responses[strconv.Itoa(status)] = &huma.Response{
			Description: http.StatusText(status),
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: schema}},
		}
	}
	o.Errors = nil
}

// identify finds out who calls and whether the operation's scope is theirs.
func (s *server) identify(hc huma.Context, next func(huma.Context)) {
	ctx := hc.Context()
	scopes := hc.Operation().Security
	if len(scopes) == 0 {
		next(hc)
		return
	}
	who, ok := auth.From(ctx)
	if !ok {
		var err error
		if who, err = auth.Authenticate(ctx, s.DB, bearer(hc.Header("Authorization"))); err != nil {
			s.write(hc, err)
			return
		}
		ctx = auth.With(ctx, who)
	}
	for _, scope := range scopes[0]["token"] {
		if err := who.Require(auth.Scope(scope)); err != nil {
			s.write(hc, err)
			return
		}
	}
	next(huma.WithContext(hc, ctx))
}

func bearer(h string) string {
	scheme, token, _ := strings.Cut(h, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// me is the caller; identify has put it there.
func me(ctx context.Context) auth.Identity {
	who, ok := auth.From(ctx)
	if !ok {
		panic("an operation with a scope runs without an identity")
	}
	return who
}

// outer gives each HTTP request its id, holds its body to the pace, and stops a
// handler's panic from ending the process: a bug costs one request.
func (s *server) outer(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := db.NewID()
		ctx := telemetry.WithRequest(r.Context(), id)
		if c := r.Header.Get("X-Correlation-ID"); c != "" && len(c) <= 200 {
			ctx = telemetry.WithCorrelation(ctx, c)
		}
		w.Header().Set("X-Request-ID", id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		t := &tracked{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.Logger.ErrorContext(ctx, "panic in a handler", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if t.wrote {
				// Half an answer is out. Cutting the connection is the only way left
				// to say that it is not whole.
				panic(http.ErrAbortHandler)
			}
			writeProblem(w, document(ctx, problem.New(problem.Internal, "something inside Firmseal failed")))
		}()
		r = r.WithContext(ctx)
		s.pace.limit(w, r)
		h.ServeHTTP(t, r)
	})
}

// tracked knows whether an answer has begun.
type tracked struct {
	http.ResponseWriter
	wrote bool
}

func (t *tracked) WriteHeader(status int) {
	t.wrote = true
	t.ResponseWriter.WriteHeader(status)
}

func (t *tracked) Write(b []byte) (int, error) {
	t.wrote = true
	return t.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (t *tracked) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	if allowed := s.methods(r); len(allowed) > 0 {
		list := strings.Join(allowed, ", ")
		w.Header().Set("Allow", list)
		writeProblem(w, document(r.Context(), problem.New(problem.BadMethod, "%s cannot be done to %s", r.Method, r.URL.Path).Seen("it takes %s", list)))
		return
	}
	writeProblem(w, document(r.Context(), problem.New(problem.NotFound, "there is nothing at %s %s", r.Method, r.URL.Path).
		Seen("the paths are in /openapi.json")))
}

// methods gives those that the request's path would take. The mux itself cannot
// say: what it does not know it gives to notFound.
func (s *server) methods(r *http.Request) []string {
	var out []string
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = m
		if _, pattern := s.mux.Handler(other); pattern != "/" {
			out = append(out, m)
		}
	}
	return out
}
