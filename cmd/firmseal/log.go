package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/server"
)

type logCmd struct {
	List    logListCmd    `cmd:"" help:"List log entries: the last ones, or those from an index on."`
	Prove   logProveCmd   `cmd:"" help:"Write the proof that an entry is in the log."`
	Verify  logVerifyCmd  `cmd:"" help:"Verify the whole log, from its first entry."`
	Recover logRecoverCmd `cmd:"" help:"Take the log as it is when its second place was lost. Read docs/SPEC-LOG.md first."`
}

type logListCmd struct {
	Type    string `help:"Only of this type, as sign.attempt." placeholder:"TYPE"`
	Request string `help:"Only of this request." placeholder:"ID"`
	From    *int64 `help:"First entry to look at; default: the last ones, or the first with a filter." placeholder:"N"`
	Limit   int    `help:"How many." default:"50"`
}

func (c *logListCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		p, err := cl.Leaves(a.ctx, client.LeafQuery{Type: c.Type, Request: c.Request, From: c.From, Limit: c.Limit})
		if err != nil {
			return err
		}
		return a.show("LeafList", p, func(w io.Writer) {
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "ENTRY\tTYPE\tTIME\tACTOR\tABOUT")
				for _, l := range p.Items {
					var v struct {
						Type, Actor, Request, Subject, Result, Decision, Code string
						Time                                                  int64
						Attempt                                               int
					}
					if err := json.Unmarshal(l.Leaf, &v); err != nil {
						fmt.Fprintf(w, "%d\tunreadable\t\t\t%v\n", l.Index, err)
						continue
					}
					about := strings.TrimSpace(strings.Join([]string{v.Subject, v.Request, v.Decision, v.Result, v.Code}, " "))
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", l.Index, v.Type, when(v.Time), v.Actor, strings.Join(strings.Fields(about), " "))
				}
			})
		})
	})
}

// proven is what log prove prints.
type proven struct {
	Index int64  `json:"index"`
	File  string `json:"file,omitempty"`
	Proof string `json:"proof"`
}

type logProveCmd struct {
	Index int64  `arg:"" help:"Entry."`
	Out   string `name:"out" help:"File to write; - for standard output." default:"-" placeholder:"FILE"`
}

func (c *logProveCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		b, err := cl.LeafProof(a.ctx, c.Index)
		if err != nil {
			return err
		}
		out := proven{Index: c.Index, Proof: string(b)}
		if c.Out != "-" {
			out.File = c.Out
			if err := writeOutput(c.Out, bytesOf(b)); err != nil {
				return err
			}
		}
		return a.show("LogProof", out, func(w io.Writer) {
			if c.Out == "-" {
				fmt.Fprintf(w, "%s", b)
				return
			}
			fmt.Fprintf(w, "ok    %s: entry %d\n", c.Out, c.Index)
		})
	})
}

type logVerifyCmd struct{}

func (c *logVerifyCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		r, err := cl.CheckLog(a.ctx)
		if err != nil {
			return err
		}
		return a.show("LogCheck", r, func(w io.Writer) {
			fmt.Fprintf(w, "ok    %d entries, root %s; entries, tiles, checkpoint and second place agree\n", r.Size, r.Root)
		})
	})
}

type logRecoverCmd struct {
	Yes bool `help:"Do not ask."`
}

func (c *logRecoverCmd) Run(a *app) error {
	dir, err := a.workspaceDir()
	if err != nil {
		return err
	}
	if err := a.confirm(c.Yes, "recover", "take the log in the database as whole, though nothing outside it can confirm that no entry was lost"); err != nil {
		return err
	}
	r, err := server.RecoverLog(a.ctx, a.options(dir, slog.New(slog.DiscardHandler)), a.localIdentity().Actor)
	if err != nil {
		return err
	}
	return a.show("LogCheck", client.LogCheck{Size: r.Size, Root: r.Root.String(), OK: true}, func(w io.Writer) {
		fmt.Fprintf(w, "ok    the second place is set anew at %d entries, and the log says so\n", r.Size)
	})
}
