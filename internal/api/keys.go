package api

import (
	"context"
	"net/http"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/signing"
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
