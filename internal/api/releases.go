package api

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/blob"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/release"
)

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
