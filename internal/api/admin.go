package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/signing"
	"github.com/firmseal/firmseal/internal/tlog"
)

func (s *server) keys() {
	type ByName struct {
		Name string `path:"name" doc:"key name"`
	}
	register(s, op("keys-list", http.MethodGet, "/api/v1/keys", string(auth.KeyRead), "List keys", 200),
		func(ctx context.Context, _ *struct{}) (*list[client.Key], error) {
			ks, err := s.Signing.Keys(ctx, me(ctx).Project)
			if err != nil {
				return nil, err
			}
			return all(ks, keyOut), nil
		})
	register(s, op("keys-create", http.MethodPost, "/api/v1/keys", string(auth.KeyWrite), "Create a key", 201),
		func(ctx context.Context, in *body[client.NewKey]) (*body[client.Key], error) {
			n := in.Body
			if n.Backend == "" {
				n.Backend = "soft"
			}
			k, err := s.Signing.CreateKey(ctx, me(ctx), n.Backend, keys.Spec{Name: n.Name, Type: alg.KeyType(n.Type), Binding: keys.Binding{
				Purpose: keys.Purpose(n.Purpose), Environment: keys.Environment(n.Environment), Product: n.Product, Format: n.Format,
			}})
			if err != nil {
				return nil, err
			}
			return ok(keyOut(k)), nil
		})
	register(s, op("keys-get", http.MethodGet, "/api/v1/keys/{name}", string(auth.KeyRead), "Show a key", 200),
		func(ctx context.Context, in *ByName) (*body[client.Key], error) {
			k, err := s.Signing.Key(ctx, me(ctx).Project, in.Name)
			if err != nil {
				return nil, err
			}
			return ok(keyOut(k)), nil
		})
	register(s, op("keys-retire", http.MethodPost, "/api/v1/keys/{name}/retire", string(auth.KeyWrite), "Retire a key for good", 200),
		func(ctx context.Context, in *ByName) (*body[client.Key], error) {
			k, err := s.Signing.RetireKey(ctx, me(ctx), in.Name)
			if err != nil {
				return nil, err
			}
			return ok(keyOut(k)), nil
		})
	register(s, op("keys-trust", http.MethodGet, "/api/v1/keys/{name}/trust", string(auth.KeyRead), "Export what a device must hold to accept this key", 200),
		func(ctx context.Context, in *struct {
			ByName
			Options string `query:"options" doc:"the format's options, as JSON"`
		},
		) (*list[client.Artifact], error) {
			as, err := s.Signing.ExportTrust(ctx, me(ctx).Project, in.Name, image.Options(in.Options))
			if err != nil {
				return nil, err
			}
			return all(as, func(a image.Artifact) client.Artifact { return client.Artifact(a) }), nil
		})
}

func keyOut(k signing.KeyRecord) client.Key {
	return client.Key{
		Name: k.Name, ID: k.ID(), URI: k.URI, Type: string(k.Type), SPKI: k.SPKI, Purpose: string(k.Binding.Purpose),
		Environment: string(k.Binding.Environment), Product: k.Binding.Product, Format: k.Binding.Format, State: k.State(),
		Created: k.Created, CreatedBy: k.CreatedBy, Retired: k.Retired, RetiredBy: k.RetiredBy,
	}
}

func (s *server) policy() {
	register(s, op("policy-get", http.MethodGet, "/api/v1/policy", string(auth.PolicyRead), "Show the policy in force", 200),
		func(ctx context.Context, _ *struct{}) (*body[client.Policy], error) {
			p, err := s.Signing.Policy(ctx, me(ctx).Project)
			if err != nil {
				return nil, err
			}
			return ok(policyOut(p)), nil
		})
	register(s, op("policy-apply", http.MethodPut, "/api/v1/policy", string(auth.PolicyWrite), "Put a policy document in force", 200),
		func(ctx context.Context, in *struct {
			RawBody []byte `contentType:"application/yaml"`
		},
		) (*body[client.Policy], error) {
			p, err := s.Signing.ApplyPolicy(ctx, me(ctx), in.RawBody)
			if err != nil {
				return nil, err
			}
			return ok(policyOut(p)), nil
		})
	register(s, op("policy-history", http.MethodGet, "/api/v1/policy/history", string(auth.PolicyRead), "List all policy documents, newest first", 200),
		func(ctx context.Context, _ *struct{}) (*list[client.Policy], error) {
			ps, err := s.Signing.PolicyHistory(ctx, me(ctx).Project)
			if err != nil {
				return nil, err
			}
			return all(ps, policyOut), nil
		})
}

func policyOut(p signing.PolicyVersion) client.Policy {
	return client.Policy{Seq: p.Seq, Digest: p.Digest, Document: string(p.Document), Applied: p.Applied, AppliedBy: p.AppliedBy}
}

func (s *server) tokens() {
	register(s, op("tokens-list", http.MethodGet, "/api/v1/tokens", string(auth.TokenWrite), "List API tokens", 200),
		func(ctx context.Context, _ *struct{}) (*list[client.Token], error) {
			var ts []auth.Token
			err := s.DB.View(ctx, func(tx *db.Tx) (err error) {
				ts, err = auth.List(tx, me(ctx).Project)
				return err
			})
			if err != nil {
				return nil, err
			}
			return all(ts, tokenOut), nil
		})
	register(s, op("tokens-create", http.MethodPost, "/api/v1/tokens", string(auth.TokenWrite), "Create an API token; its secret is shown once", 201),
		func(ctx context.Context, in *body[client.NewToken]) (*body[client.CreatedToken], error) {
			secret, t, err := s.Signing.CreateToken(ctx, me(ctx), in.Body.Name, in.Body.Scopes, time.Duration(in.Body.TTL)*time.Second)
			if err != nil {
				return nil, err
			}
			return ok(client.CreatedToken{Token: tokenOut(t), Secret: secret}), nil
		})
	register(s, op("tokens-revoke", http.MethodPost, "/api/v1/tokens/{id}/revoke", string(auth.TokenWrite), "Revoke an API token", 200),
		func(ctx context.Context, in *struct {
			ID string `path:"id" doc:"token id"`
		},
		) (*body[client.Token], error) {
			t, err := s.Signing.RevokeToken(ctx, me(ctx), in.ID)
			if err != nil {
				return nil, err
			}
			return ok(tokenOut(t)), nil
		})
}

func tokenOut(t auth.Token) client.Token {
	out := client.Token{ID: t.ID, Name: t.Name, Project: t.Project, Created: t.Created, Expires: t.Expires, Revoked: t.Revoked, Scopes: []string{}}
	for _, sc := range t.Scopes {
		out.Scopes = append(out.Scopes, string(sc))
	}
	return out
}

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

func (s *server) status() {
	metrics := op("metrics-get", http.MethodGet, "/metrics", public, "Numbers for Prometheus", 200)
	metrics.Errors = nil
	metrics.Responses = map[string]*huma.Response{"200": {Description: "the series, as text", Content: map[string]*huma.MediaType{
		"text/plain": {Schema: &huma.Schema{Type: "string"}},
	}}}
	register(s, metrics, through(s.Metrics.Handler()))
	register(s, op("events-list", http.MethodGet, "/api/v1/events", string(auth.AuditRead), "List journal entries, oldest first", 200),
		func(ctx context.Context, in *struct {
			After int64 `query:"after" minimum:"0" doc:"the next of the previous page"`
			Limit int   `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"items a page"`
		},
		) (*list[client.Event], error) {
			var es []journal.Entry
			err := s.DB.View(ctx, func(tx *db.Tx) (err error) {
				es, err = journal.List(tx, journal.Filter{Project: me(ctx).Project, After: in.After, Limit: in.Limit})
				return err
			})
			if err != nil {
				return nil, err
			}
			return page(es, in.Limit, func(e journal.Entry) string { return strconv.FormatInt(e.Seq, 10) }, func(e journal.Entry) client.Event {
				return client.Event{Seq: e.Seq, Time: e.Time, Kind: e.Kind, Actor: e.Actor, Subject: e.Subject, BuildID: e.Request, Data: json.RawMessage(e.Data)}
			}), nil
		})
	register(s, op("status-get", http.MethodGet, "/api/v1/status", string(auth.StatusRead), "Health of the workspace", 200),
		func(ctx context.Context, _ *struct{}) (*body[client.Status], error) {
			st, err := s.Signing.Status(ctx, me(ctx).Project)
			if err != nil {
				return nil, err
			}
			out := client.Status{
				Workspace: s.Workspace, Version: s.Version, Database: string(s.DB.Engine()), Origin: st.Origin, LogSize: st.LogSize,
				LogVKey: st.LogKey, Requests: st.Requests, Releases: st.Releases, Keys: st.Keys, Policy: st.Policy, Ready: st.Ready, Findings: []client.Finding{},
			}
			for _, f := range st.Findings {
				out.Findings = append(out.Findings, client.Finding(f))
			}
			return ok(out), nil
		})
	register(s, op("health-get", http.MethodGet, "/healthz", public, "Whether the server can reach its database", 200),
		func(ctx context.Context, _ *struct{}) (*body[client.Health], error) {
			if err := s.DB.View(ctx, func(tx *db.Tx) error {
				var one int
				return tx.QueryRow(`SELECT 1`).Scan(&one)
			}); err != nil {
				return nil, err
			}
			return ok(client.Health{Status: "ok"}), nil
		})
}

func leafOut(e tlog.Entry) client.Leaf {
	return client.Leaf{Index: e.Index, Leaf: json.RawMessage(e.Data)}
}
