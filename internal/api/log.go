package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/tlog"
)

func (s *server) log() {
	register(s, op("log-leaves", http.MethodGet, "/api/v1/log/leaves", string(auth.LogRead), "List log entries in the log's order", 200),
		func(ctx context.Context, in *struct {
			Type    string `query:"type" doc:"only of this type, as sign.attempt"`
			Request string `query:"request" doc:"only of this request"`
			From    int64  `query:"from" minimum:"-1" default:"-1" doc:"first index, or the next of the previous page; -1: the last entries, or from the first with a filter"`
			Limit   int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"items a page"`
		},
		) (*list[client.Leaf], error) {
			q := tlog.Query{Type: in.Type, Request: in.Request, From: in.From, Limit: in.Limit}
			if q.From < 0 {
				q.From = 0
				if in.Type == "" && in.Request == "" {
					q.From = max(0, s.Log.Size()-int64(in.Limit))
				}
			}
			es, err := s.Log.Find(ctx, q)
			if err != nil {
				return nil, err
			}
			return page(es, in.Limit, func(e tlog.Entry) string { return strconv.FormatInt(e.Index+1, 10) }, leafOut), nil
		})
	proof := download("log-proof", "/api/v1/log/leaves/{index}/proof", "Prove that an entry is in the log", "text/plain")
	proof.Security = []map[string][]string{{"token": {string(auth.LogRead)}}}
	register(s, proof, func(ctx context.Context, in *struct {
		Index int64 `path:"index" minimum:"0" doc:"place in the log"`
	},
	) (*huma.StreamResponse, error) {
		p, err := s.Log.Proof(ctx, in.Index)
		if err != nil {
			return nil, err
		}
		return blobOf("text/plain; charset=utf-8", p), nil
	})
	register(s, op("log-check", http.MethodPost, "/api/v1/log/check", string(auth.AuditRead), "Verify the log from its first entry", 200),
		func(ctx context.Context, _ *struct{}) (*body[client.LogCheck], error) {
			r, err := s.Log.Fsck(ctx)
			if err != nil {
				return nil, err
			}
			return ok(client.LogCheck{Size: r.Size, Root: r.Root.String(), OK: true}), nil
		})
	s.tiles()
	root := download("trustroot-get", "/api/v1/trustroot", "The trust root file: what a device needs to check a seal", "application/json")
	register(s, root, func(ctx context.Context, _ *struct{}) (*huma.StreamResponse, error) {
		b, err := s.Signing.TrustRoot(ctx, me(ctx).Project)
		if err != nil {
			return nil, err
		}
		return blobOf("application/json", b), nil
	})
}

// tiles serves the log to independent readers, in the form of C2SP.
func (s *server) tiles() {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.StripPrefix("/log", s.Log.Handler()).ServeHTTP(&asProblem{ResponseWriter: w, r: r}, r)
	})
	checkpoint := download("log-checkpoint", "/log/checkpoint", "The newest signed checkpoint (C2SP tlog-checkpoint)", "text/plain")
	checkpoint.Security = []map[string][]string{{"token": {string(auth.LogRead)}}}
	register(s, checkpoint, through(h))

	// A tile's path has slashes, which OpenAPI cannot say and the router can: the
	// document has one parameter, the router the rest of the path.
	tile := download("log-tile", "/log/tile/{path...}", "A tile or entry bundle (C2SP tlog-tiles)", "application/octet-stream")
	tile.Security = checkpoint.Security
	tile.Hidden = true
	register(s, tile, through(h))
	shown := tile
	s.refusals(&shown)
	shown.Path, shown.Hidden = "/log/tile/{path}", false
	shown.Description = "The path is LEVEL/N, LEVEL/N.p/WIDTH, entries/N or entries/N.p/WIDTH, as c2sp.org/tlog-tiles writes them; its slashes stay as they are."
	shown.Parameters = []*huma.Param{{Name: "path", In: "path", Required: true, Description: "as 0/000 or entries/000.p/6", Schema: &huma.Schema{Type: "string"}}}
	s.api.OpenAPI().AddOperation(&shown)
}

// through lets an http.Handler answer an operation.
func through(h http.Handler) func(context.Context, *struct{}) (*huma.StreamResponse, error) {
	return func(context.Context, *struct{}) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			h.ServeHTTP(w, r)
		}}, nil
	}
}

// asProblem turns a handler's plain refusal into a problem document.
type asProblem struct {
	http.ResponseWriter
	r       *http.Request
	refused bool
}

func (a *asProblem) WriteHeader(status int) {
	if status < 400 {
		a.ResponseWriter.WriteHeader(status)
		return
	}
	a.refused = true
	p := problem.New(problem.Unavailable, "the log cannot be read now")
	if status == http.StatusNotFound {
		p = problem.New(problem.NotFound, "there is nothing at %s", a.r.URL.Path).Seen("the log may not have grown that far; the checkpoint has its size")
	}
	writeProblem(a.ResponseWriter, document(a.r.Context(), p))
}

func (a *asProblem) Write(b []byte) (int, error) {
	if a.refused {
		return len(b), nil // the plain text of what was just said
	}
	return a.ResponseWriter.Write(b)
}

func leafOut(e tlog.Entry) client.Leaf {
	return client.Leaf{Index: e.Index, Leaf: json.RawMessage(e.Data)}
}
