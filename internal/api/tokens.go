package api

import (
	"context"
	"net/http"
	"time"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
)

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
	register(s, op("tokens-revoke", http.MethodPost, "/api/v1/tokens/{id}/revoke", string(auth.TokenWrite), "Revoke an API token and those that were made with it", 200),
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
