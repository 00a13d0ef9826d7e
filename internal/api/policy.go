package api

import (
	"context"
	"net/http"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/signing"
)

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
