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
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

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
	api huma.API
}

// New gives the handler.
func New(o Options) http.Handler {
	mux := http.NewServeMux()
	s := &server{Options: o}
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
	mux.Handle("GET /metrics", o.Metrics.Handler())
	mux.HandleFunc("/", s.notFound)
	return s.outer(mux)
}

func config(version string) huma.Config {
	c := huma.DefaultConfig("Firmseal", version)
	c.Info.Description = "Signs firmware under policy, logs it first, and verifies it before it leaves. Times are µs since 1970, UTC; digests are lower-case hex SHA-256."
	c.OpenAPIPath = "/openapi"
	c.DocsPath = "" // no third party's script on our origin
	c.SchemasPath = ""
	c.CreateHooks = nil // no $schema members in answers
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
		Tags: []string{strings.SplitN(id, "-", 2)[0]}, Errors: []int{400, 403, 404, 409, 422, 503},
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
	huma.Register(s.api, o, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, s.refuse(ctx, err)
		}
		return out, nil
	})
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

// outer gives each HTTP request its id and stops a handler's panic from ending
// the process: a bug costs one request.
func (s *server) outer(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := db.NewID()
		ctx := telemetry.WithRequest(r.Context(), id)
		if c := r.Header.Get("X-Correlation-ID"); c != "" && len(c) <= 200 {
			ctx = telemetry.WithCorrelation(ctx, c)
		}
		w.Header().Set("X-Request-ID", id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.Logger.ErrorContext(ctx, "panic in a handler", "path", r.URL.Path, "panic", p)
			writeProblem(w, document(ctx, problem.New(problem.Internal, "something inside Firmseal failed")))
		}()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	writeProblem(w, document(r.Context(), problem.New(problem.NotFound, "there is nothing at %s %s", r.Method, r.URL.Path).
		Seen("the paths are in /openapi.json")))
}
