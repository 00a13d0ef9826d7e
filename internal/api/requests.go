package api

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
	"github.com/firmseal/firmseal/internal/signing"
)

type body[T any] struct{ Body T }

func ok[T any](v T) *body[T] { return &body[T]{v} }

type list[T any] struct{ Body client.Page[T] }

// page gives up to limit items and the cursor of the next page.
func page[T, U any](in []T, limit int, id func(T) string, f func(T) U) *list[U] {
	out := &list[U]{}
	out.Body.Items = make([]U, 0, len(in))
	for _, v := range in {
		out.Body.Items = append(out.Body.Items, f(v))
	}
	if limit > 0 && len(in) == limit {
		out.Body.Next = id(in[len(in)-1])
	}
	return out
}

func all[T, U any](in []T, f func(T) U) *list[U] {
	return page(in, 0, func(T) string { return "" }, f)
}

// Paging is the query of a list.
type Paging struct {
	Before string `query:"before" doc:"the next of the previous page"`
	Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"items a page"`
}

type Waiting struct {
	Wait string `query:"wait" doc:"wait up to this long for the request to rest, as 30s; at most 2m"`
}

func (w Waiting) duration() (time.Duration, error) {
	if w.Wait == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(w.Wait)
	if err != nil || d < 0 {
		return 0, problem.New(problem.BadRequest, "wait=%q is not a duration", w.Wait).WithHint("write it as 30s")
	}
	return min(d, maxWait), nil
}

func (s *server) uploads() {
	register(s, op("uploads-begin", http.MethodPost, "/api/v1/uploads", string(auth.UploadWrite), "Begin or continue an upload", 200),
		func(ctx context.Context, in *body[client.UploadStart]) (*body[client.Upload], error) {
			st, err := s.Blobs(me(ctx).Project)
			if err != nil {
				return nil, err
			}
			u, err := st.Begin(ctx, blob.Digest(in.Body.SHA256), in.Body.Size)
			if err != nil {
				return nil, err
			}
			return ok(upload(u)), nil
		})
	o := op("uploads-append", http.MethodPatch, "/api/v1/uploads/{sha256}", string(auth.UploadWrite), "Append bytes to an upload", 200)
	o.MaxBodyBytes = MaxChunk
	register(s, o, func(ctx context.Context, in *struct {
		SHA256  string `path:"sha256" pattern:"^[0-9a-f]{64}$" doc:"digest of the whole file"`
		Size    int64  `query:"size" required:"true" minimum:"1" doc:"bytes of the whole file"`
		Offset  int64  `query:"offset" required:"true" minimum:"0" doc:"where these bytes begin; the upload's offset"`
		RawBody []byte `contentType:"application/octet-stream"`
	},
	) (*body[client.Upload], error) {
		st, err := s.Blobs(me(ctx).Project)
		if err != nil {
			return nil, err
		}
		u, err := st.Append(ctx, blob.Digest(in.SHA256), in.Size, in.Offset, in.RawBody)
		if err != nil {
			return nil, err
		}
		return ok(upload(u)), nil
	})
}

func upload(u blob.Upload) client.Upload {
	return client.Upload{SHA256: string(u.Digest), Size: u.Size, Offset: u.Offset, Complete: u.Complete}
}

func (s *server) requests() {
	register(s, op("requests-create", http.MethodPost, "/api/v1/requests", string(auth.RequestWrite), "Ask for a signature", 201),
		func(ctx context.Context, in *struct {
			Waiting
			IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" doc:"the same key and body give the same request"`
			Body           client.NewRequest
		},
		) (*body[client.Request], error) {
			wait, err := in.duration()
			if err != nil {
				return nil, err
			}
			v, err := s.Signing.Submit(ctx, me(ctx), submission(in.Body), in.IdempotencyKey)
			if err != nil {
				return nil, err
			}
			return s.awaited(ctx, v, wait)
		})
	register(s, op("requests-list", http.MethodGet, "/api/v1/requests", string(auth.RequestRead), "List signing requests, newest first", 200),
		func(ctx context.Context, in *struct {
			Paging
			State   string `query:"state" enum:"queued,signing,sealing,released,denied,failed,unknown" doc:"only those in this state"`
			BuildID string `query:"build_id" maxLength:"200" doc:"only those of this build"`
		},
		) (*list[client.Request], error) {
			vs, err := s.Signing.List(ctx, me(ctx).Project, signing.Filter{State: signing.State(in.State), BuildID: in.BuildID, Before: in.Before, Limit: in.Limit})
			if err != nil {
				return nil, err
			}
			return page(vs, in.Limit, func(v signing.View) string { return v.ID }, func(v signing.View) client.Request { return request(ctx, v) }), nil
		})
	register(s, op("requests-get", http.MethodGet, "/api/v1/requests/{id}", string(auth.RequestRead), "Show a signing request", 200),
		func(ctx context.Context, in *struct {
			Waiting
			ID string `path:"id" doc:"request id"`
		},
		) (*body[client.Request], error) {
			wait, err := in.duration()
			if err != nil {
				return nil, err
			}
			v, err := s.Signing.Get(ctx, me(ctx).Project, in.ID)
			if err != nil {
				return nil, err
			}
			return s.awaited(ctx, v, wait)
		})
	type byID struct {
		ID string `path:"id" doc:"request id"`
	}
	register(s, op("requests-resume", http.MethodPost, "/api/v1/requests/{id}/resume", string(auth.RequestWrite), "Let an unknown request use its key once more", 200),
		func(ctx context.Context, in *byID) (*body[client.Request], error) {
			v, err := s.Signing.Resume(ctx, me(ctx), in.ID)
			if err != nil {
				return nil, err
			}
			return ok(request(ctx, v)), nil
		})
	register(s, op("requests-cancel", http.MethodPost, "/api/v1/requests/{id}/cancel", string(auth.RequestWrite), "End an unknown request", 200),
		func(ctx context.Context, in *byID) (*body[client.Request], error) {
			v, err := s.Signing.Cancel(ctx, me(ctx), in.ID)
			if err != nil {
				return nil, err
			}
			return ok(request(ctx, v)), nil
		})
}

func (s *server) awaited(ctx context.Context, v signing.View, wait time.Duration) (*body[client.Request], error) {
	if wait > 0 && !v.State.Rests() {
		var err error
		wctx, stop := context.WithTimeout(ctx, wait)
		defer stop()
		if v, err = s.Signing.Wait(wctx, v.Project, v.ID); err != nil {
			return nil, err
		}
	}
	return ok(request(ctx, v)), nil
}

func submission(n client.NewRequest) signing.Submission {
	sub := signing.Submission{
		Profile: n.Profile, Version: n.Version, SecurityCounter: n.SecurityCounter, MinimumVersion: n.MinimumVersion,
		HardwareIDs: n.HardwareIDs, Variant: n.Variant, Emergency: n.Emergency, BytesUnseen: n.BytesUnseen, Metadata: n.Metadata,
		BuildID: n.BuildID, BuildFinished: n.BuildFinished, Content: n.Input.Content,
		Input: signing.Input{Name: n.Input.Name, SHA256: n.Input.SHA256, Size: n.Input.Size},
	}
	for _, d := range n.Dependencies {
		sub.Dependencies = append(sub.Dependencies, firmseal.Dependency{Name: d.Product, MinimumVersion: d.MinimumVersion})
	}
	return sub
}

func request(ctx context.Context, v signing.View) client.Request {
	r := client.Request{
		ID: v.ID, State: string(v.State), Project: v.Project, Actor: v.Actor, Profile: v.Profile, Product: v.Product,
		Environment: v.Environment, Format: v.Format, Version: v.Version, SecurityCounter: v.SecurityCounter,
		MinimumVersion: v.MinimumVersion, HardwareIDs: v.HardwareIDs, Variant: v.Variant, Emergency: v.Emergency,
		BytesUnseen: v.BytesUnseen, Metadata: v.Metadata, BuildID: v.BuildID,
		Input: client.File{Name: v.Input.Name, SHA256: v.Input.SHA256, Size: v.Input.Size}, Keys: []client.KeyRef{},
		Digest: v.Digest, Policy: v.Policy, Attempts: []client.Attempt{}, Output: v.Output, Release: v.Release,
		Created: v.Created, Updated: v.Updated,
	}
	if v.Problem != nil {
		d := document(ctx, v.Problem)
		d.RequestID = ""
		r.Problem = &d
	}
	for _, k := range v.Keys {
		r.Keys = append(r.Keys, client.KeyRef{Role: k.Role, Name: k.Name, ID: k.ID})
	}
	for _, a := range v.Attempts {
		r.Attempts = append(r.Attempts, client.Attempt{
			N: a.N, Purpose: string(a.Purpose), KeyID: a.KeyID, State: a.State,
			Resumed: a.Resumed, Opened: a.Opened, Closed: a.Closed, Code: string(a.Code),
		})
	}
	return r
}

func (s *server) releases() {
	register(s, op("releases-list", http.MethodGet, "/api/v1/releases", string(auth.ReleaseRead), "List releases, newest first", 200),
		func(ctx context.Context, in *struct {
			Paging
			Product     string `query:"product" doc:"only of this product"`
			Environment string `query:"environment" enum:"test,production" doc:"only of this environment"`
		},
		) (*list[client.Release], error) {
			var rs []release.Release
			err := s.DB.View(ctx, func(tx *db.Tx) (err error) {
				rs, err = release.List(tx, me(ctx).Project, release.Filter{Product: in.Product, Environment: in.Environment, Before: in.Before, Limit: in.Limit})
				return err
			})
			if err != nil {
				return nil, err
			}
			return page(rs, in.Limit, func(r release.Release) string { return r.ID }, releaseOut), nil
		})
	type byID struct {
		ID string `path:"id" doc:"release id, or its request's"`
	}
	get := func(ctx context.Context, id string) (release.Release, error) {
		var r release.Release
		err := s.DB.View(ctx, func(tx *db.Tx) (err error) {
			r, err = release.Get(tx, me(ctx).Project, id)
			return err
		})
		return r, err
	}
	register(s, op("releases-get", http.MethodGet, "/api/v1/releases/{id}", string(auth.ReleaseRead), "Show a release", 200),
		func(ctx context.Context, in *byID) (*body[client.Release], error) {
			r, err := get(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			return ok(releaseOut(r)), nil
		})
	register(s, download("releases-image", "/api/v1/releases/{id}/image", "Download the image that a device installs", "application/octet-stream"),
		func(ctx context.Context, in *byID) (*huma.StreamResponse, error) {
			r, err := get(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			if r.BytesUnseen {
				return nil, problem.New(problem.NotFound, "the image of release %s was never sent here", r.ID).Seen("it was signed by its digest, %s", r.Image.SHA256)
			}
			return s.file(ctx, r.Project, r.Image)
		})
	register(s, download("releases-signature", "/api/v1/releases/{id}/signature", "Download the detached signature file", "application/octet-stream"),
		func(ctx context.Context, in *byID) (*huma.StreamResponse, error) {
			r, err := get(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			if r.Signature == nil {
				return nil, problem.New(problem.NotFound, "release %s has no detached signature", r.ID).Seen("format %s embeds it in the image", r.Format)
			}
			return s.file(ctx, r.Project, *r.Signature)
		})
	register(s, download("releases-seal", "/api/v1/releases/{id}/seal", "Download the seal", "application/json"),
		func(ctx context.Context, in *byID) (*huma.StreamResponse, error) {
			r, err := get(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			return blobOf("application/json", r.Seal), nil
		})
	register(s, download("releases-proof", "/api/v1/releases/{id}/proof", "Download the log proof", "text/plain"),
		func(ctx context.Context, in *byID) (*huma.StreamResponse, error) {
			r, err := get(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			p, err := s.Log.Proof(ctx, r.LeafIndex)
			if err != nil {
				return nil, err
			}
			return blobOf("text/plain; charset=utf-8", p), nil
		})
}

func releaseOut(r release.Release) client.Release {
	out := client.Release{
		ID: r.ID, Request: r.Request, Product: r.Product, Environment: r.Environment, HardwareIDs: r.HardwareIDs, Variant: r.Variant,
		Version: r.Version, SecurityCounter: r.SecurityCounter, Format: r.Format, Emergency: r.Emergency, BytesUnseen: r.BytesUnseen,
		BuildID: r.BuildID, Image: client.File(r.Image), LeafIndex: r.LeafIndex, Created: r.Created,
	}
	if r.Signature != nil {
		f := client.File(*r.Signature)
		out.Signature = &f
	}
	return out
}

// download declares an operation that streams bytes of a media type.
func download(id, path, summary, mediaType string) huma.Operation {
	o := op(id, http.MethodGet, path, string(auth.ReleaseRead), summary, 200)
	o.Responses = map[string]*huma.Response{"200": {Description: "the bytes", Content: map[string]*huma.MediaType{
		mediaType: {Schema: &huma.Schema{Type: "string", Format: "binary"}},
	}}}
	return o
}

func blobOf(mediaType string, b []byte) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", mediaType)
		hc.SetHeader("Content-Length", strconv.Itoa(len(b)))
		// The caller has gone if this fails; there is nobody to tell.
		_, _ = hc.BodyWriter().Write(b)
	}}
}

// file streams a stored file. Its digest is the ETag: a stored file never
// changes.
func (s *server) file(ctx context.Context, project string, f release.File) (*huma.StreamResponse, error) {
	st, err := s.Blobs(project)
	if err != nil {
		return nil, err
	}
	src, err := st.Open(ctx, blob.Digest(f.SHA256))
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer src.Close()
		hc.SetHeader("Content-Type", "application/octet-stream")
		hc.SetHeader("Content-Length", strconv.FormatInt(src.Size(), 10))
		hc.SetHeader("ETag", `"`+f.SHA256+`"`)
		// A short body shows the caller that this failed: the length was told.
		if _, err := io.Copy(hc.BodyWriter(), io.NewSectionReader(src, 0, src.Size())); err != nil {
			s.Logger.WarnContext(ctx, "download broke off", "sha256", f.SHA256, "error", err)
		}
	}}, nil
}
