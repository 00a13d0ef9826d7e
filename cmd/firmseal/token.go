package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/problem"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Create a token; its secret is shown once."`
	List   tokenListCmd   `cmd:"" help:"List tokens."`
	Revoke tokenRevokeCmd `cmd:"" help:"Revoke a token and those that were made with it."`
}

type tokenCreateCmd struct {
	Name   string   `arg:"" help:"What it is for."`
	Scopes []string `name:"scope" help:"What it may do; repeat. See firmseal help scopes." required:"" placeholder:"SCOPE"`
	TTL    lifetime `name:"ttl" help:"How long it is valid, as 30d or 12h, a minute to 366 days; not longer than the token that makes it." default:"30d"`
}

// lifetime is a duration that may be written in days.
type lifetime time.Duration

// UnmarshalText is for kong.
func (l *lifetime) UnmarshalText(text []byte) error {
	s := string(text)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not a number of days", s)
		}
		*l = lifetime(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is not a duration, as 30d or 12h", s)
	}
	*l = lifetime(d)
	return nil
}

func (c *tokenCreateCmd) Run(a *app) error {
	if d := time.Duration(c.TTL); d < auth.MinLifetime || d > auth.MaxLifetime {
		return problem.New(problem.Usage, "a token cannot live for %s", d).
			Seen("it may live from a minute to %d days", int(auth.MaxLifetime.Hours()/24)).WithHint("add --ttl 90d")
	}
	if a.g.Quiet {
		return problem.New(problem.Usage, "a token's secret is shown once, and --quiet would drop it").WithHint("leave --quiet out")
	}
	err := a.withClient(func(cl *client.Client) error {
		t, err := cl.CreateToken(a.ctx, client.NewToken{Name: c.Name, Scopes: c.Scopes, TTL: int64(time.Duration(c.TTL) / time.Second)})
		if err != nil {
			return err
		}
		return a.show("CreatedToken", t, func(w io.Writer) {
			fmt.Fprintln(w, t.Secret)
			a.note("token %s for %s, expires %s; the secret is not shown again", t.ID, strings.Join(t.Scopes, " "), when(t.Expires))
		})
	})
	if problem.Has(err, problem.WorkspaceLocked) {
		p := *problem.Of(err)
		return p.WithHint("stop the server, or use a token with token:write: firmseal token create --server URL")
	}
	return err
}

type tokenListCmd struct{}

func (c *tokenListCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		ts, err := cl.Tokens(a.ctx)
		if err != nil {
			return err
		}
		return a.show("TokenList", client.Page[client.Token]{Items: ts}, func(w io.Writer) {
			if len(ts) == 0 {
				fmt.Fprintln(w, "no tokens yet; make one: firmseal token create NAME --scope SCOPE")
				return
			}
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "TOKEN\tNAME\tSCOPES\tEXPIRES\tREVOKED")
				for _, t := range ts {
					revoked := "-"
					if t.Revoked != 0 {
						revoked = when(t.Revoked)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Name, strings.Join(t.Scopes, " "), when(t.Expires), revoked)
				}
			})
		})
	})
}

type tokenRevokeCmd struct {
	ID string `arg:"" help:"Token id."`
}

func (c *tokenRevokeCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		t, err := cl.RevokeToken(a.ctx, c.ID)
		if err != nil {
			return err
		}
		return a.show("Token", t, func(w io.Writer) { fmt.Fprintf(w, "ok    token %s (%s) is revoked\n", t.ID, t.Name) })
	})
}
