package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/problem"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Create a token; its secret is shown once."`
	List   tokenListCmd   `cmd:"" help:"List tokens."`
	Revoke tokenRevokeCmd `cmd:"" help:"Revoke a token and those that were made with it."`
}

type tokenCreateCmd struct {
	Name   string        `arg:"" help:"What it is for."`
	Scopes []string      `name:"scope" help:"What it may do; repeat. See firmseal help scopes." required:"" placeholder:"SCOPE"`
	TTL    time.Duration `name:"ttl" help:"How long it is valid; not longer than the token that makes it." default:"720h"`
}

func (c *tokenCreateCmd) Run(a *app) error {
	if a.g.Quiet {
		return problem.New(problem.Usage, "a token's secret is shown once, and --quiet would drop it").WithHint("leave --quiet out")
	}
	return a.withClient(func(cl *client.Client) error {
		t, err := cl.CreateToken(a.ctx, client.NewToken{Name: c.Name, Scopes: c.Scopes, TTL: int64(c.TTL / time.Second)})
		if err != nil {
			return err
		}
		return a.show("CreatedToken", t, func(w io.Writer) {
			fmt.Fprintln(w, t.Secret)
			a.note("token %s for %s, expires %s; the secret is not shown again", t.ID, strings.Join(t.Scopes, " "), when(t.Expires))
		})
	})
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
