package api_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/servertest"
)

// Who may ask for signatures may not therefore decide what becomes of a request
// whose outcome is unknown: that is a person's.
func TestDecisionsAreAPersons(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Options{})
	over := s.HTTP()
	as := func(scopes ...auth.Scope) *client.Client {
		t.Helper()
		n := client.NewToken{Name: "x", TTL: 600}
		for _, sc := range scopes {
			n.Scopes = append(n.Scopes, string(sc))
		}
		tok, err := s.Client.CreateToken(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		return &client.Client{BaseURL: over.BaseURL, HTTP: over.HTTP, Token: tok.Secret}
	}
	builder := as(auth.UploadWrite, auth.RequestWrite, auth.RequestRead, auth.ReleaseRead)
	person := as(auth.RequestDecide)
	const id = "01a1fcc0-0000-7000-8000-000000000000"
	for name, call := range map[string]func(*client.Client) error{
		"resume": func(c *client.Client) error { _, err := c.Resume(t.Context(), id); return err },
		"cancel": func(c *client.Client) error { _, err := c.Cancel(t.Context(), id); return err },
	} {
		var e *client.Error
		if err := call(builder); !errors.As(err, &e) || e.Code != string(problem.Forbidden) || !strings.Contains(e.Why, "request:decide") {
			t.Errorf("%s by a build server: %v", name, err)
		}
		if err := call(person); !errors.As(err, &e) || e.Code != string(problem.NotFound) {
			t.Errorf("%s by a person of a request that is not there: %v", name, err)
		}
	}
}
