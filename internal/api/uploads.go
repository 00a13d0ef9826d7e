package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/blob"
)

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
	o.MaxBodyBytes = MaxChunk + 1 // huma refuses a body that has just as many
	o.Middlewares = huma.Middlewares{s.part}
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
