package api

import (
	"context"
	"net/http"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/signing"
)

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
	register(s, op("requests-resume", http.MethodPost, "/api/v1/requests/{id}/resume", string(auth.RequestDecide), "Let an unknown request use its key once more", 200),
		func(ctx context.Context, in *byID) (*body[client.Request], error) {
			v, err := s.Signing.Resume(ctx, me(ctx), in.ID)
			if err != nil {
				return nil, err
			}
			return ok(request(ctx, v)), nil
		})
	register(s, op("requests-cancel", http.MethodPost, "/api/v1/requests/{id}/cancel", string(auth.RequestDecide), "End a request that is not final", 200),
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
