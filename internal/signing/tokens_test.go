package signing_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/servertest"
)

// A revoked token takes those with it that it made, and the log has a leaf for
// each.
func TestRevokeOffspring(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		s := servertest.New(t, o)
		over := s.HTTP() // its token has all scopes, and is the first
		scopes := []string{string(auth.TokenWrite), string(auth.LogRead)}
		make := func(c *client.Client, ttl int64) client.CreatedToken {
			t.Helper()
			tok, err := c.CreateToken(t.Context(), client.NewToken{Name: "x", Scopes: scopes, TTL: ttl})
			if err != nil {
				t.Fatal(err)
			}
			return tok
		}
		as := func(tok client.CreatedToken) *client.Client {
			return &client.Client{BaseURL: over.BaseURL, HTTP: over.HTTP, Token: tok.Secret}
		}
		child := make(over, 1800)
		grand := make(as(child), 600)
		_, err := as(grand).CreateToken(t.Context(), client.NewToken{Name: "x", Scopes: scopes, TTL: 900})
		wantCode(t, err, problem.Forbidden)
		outside := make(s.Client, 7200)

		if got, err := s.Client.RevokeToken(t.Context(), child.ID); err != nil || got.ID != child.ID || got.Revoked == 0 {
			t.Fatalf("revoked %+v, %v", got, err)
		}
		if _, err := s.Client.RevokeToken(t.Context(), child.ID); err != nil {
			t.Error(err)
		}
		for _, dead := range []client.CreatedToken{child, grand} {
			_, err := as(dead).Tokens(t.Context())
			wantCode(t, err, problem.Unauthorized)
		}
		for _, live := range []*client.Client{over, as(outside)} {
			if _, err := live.Tokens(t.Context()); err != nil {
				t.Error(err)
			}
		}
		leaves, err := s.Client.Leaves(t.Context(), client.LeafQuery{Type: firmseal.LeafTokenRevoke})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, l := range leaves.Items {
			var leaf firmseal.Leaf
			if err := json.Unmarshal(l.Leaf, &leaf); err != nil {
				t.Fatal(err)
			}
			if leaf.Record == "" {
				t.Error("a leaf without its record")
			}
			ids = append(ids, leaf.Subject)
		}
		slices.Sort(ids)
		if want := slices.Sorted(slices.Values([]string{child.ID, grand.ID})); !slices.Equal(ids, want) {
			t.Errorf("the log has revocations of %v, want %v", ids, want)
		}
		if c, err := s.Client.CheckLog(t.Context()); err != nil || !c.OK {
			t.Errorf("checking the log: %+v, %v", c, err)
		}
	})
}
