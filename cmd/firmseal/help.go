package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

type helpCmd struct {
	Topic []string `arg:"" optional:"" help:"A code, codes, exit-codes, scopes, or format NAME."`
}

var exitCodes = []struct {
	Code    int    `json:"code"`
	Meaning string `json:"meaning"`
}{
	{problem.ExitOK, "ok"},
	{problem.ExitError, "error"},
	{problem.ExitUsage, "wrong usage"},
	{problem.ExitRefused, "verification says no"},
	{problem.ExitForbidden, "not logged in, or not allowed"},
	{problem.ExitPolicy, "policy denied"},
	{problem.ExitPending, "approval pending"},
	{problem.ExitNotFound, "not found"},
	{problem.ExitGate, "a gate or precondition is not met"},
	{problem.ExitTemporary, "temporary (key backend, network): retry"},
	{problem.ExitInterrupt, "interrupted"},
}

type codeHelp struct {
	Code  string `json:"code"`
	Title string `json:"title"`
	Exit  int    `json:"exit"`
	HTTP  int    `json:"http_status"`
	Help  string `json:"help"`
}

func (c *helpCmd) Run(a *app) error {
	topic := strings.Join(c.Topic, " ")
	switch {
	case topic == "":
		return problem.New(problem.Usage, "help on what?").Seen("a code, codes, exit-codes, scopes, format NAME").WithHint("firmseal --help lists the commands")
	case topic == "exit-codes":
		return a.show("ExitCodes", map[string]any{"items": exitCodes}, func(w io.Writer) {
			for _, e := range exitCodes {
				fmt.Fprintf(w, "%4d  %s\n", e.Code, e.Meaning)
			}
		})
	case topic == "codes":
		var all []codeHelp
		for _, e := range problem.All() {
			all = append(all, codeHelp{string(e.Code), e.Title, e.Exit, e.Status, e.Help})
		}
		return a.show("Codes", map[string]any{"items": all}, func(w io.Writer) {
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "CODE\tMEANING\tEXIT\tHTTP")
				for _, e := range all {
					fmt.Fprintf(w, "%s\t%s\t%d\t%d\n", e.Code, e.Title, e.Exit, e.HTTP)
				}
			})
		})
	case topic == "scopes":
		return a.show("Scopes", map[string]any{"items": auth.Scopes()}, func(w io.Writer) {
			table(w, func(w io.Writer) {
				for _, s := range auth.Scopes() {
					fmt.Fprintf(w, "%s\tallows to %s\n", s, s.Allows())
				}
			})
		})
	case len(c.Topic) == 2 && c.Topic[0] == "format":
		return a.helpFormat(c.Topic[1])
	}
	e, ok := problem.Lookup(problem.Code(strings.ToUpper(topic)))
	if !ok {
		return problem.New(problem.NotFound, "there is no help on %q", topic).WithHint("firmseal help codes")
	}
	h := codeHelp{string(e.Code), e.Title, e.Exit, e.Status, e.Help}
	return a.show("Code", h, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s\n%s\nexit %d, HTTP %d\n", h.Code, h.Title, h.Help, h.Exit, h.HTTP)
	})
}

// helpFormat prints what a format says of its own options.
func (a *app) helpFormat(name string) error {
	f, err := formats().ByName(name)
	if err != nil {
		return err
	}
	d, ok := f.(image.Describer)
	if !ok {
		return problem.New(problem.NotFound, "format %s takes no options", name)
	}
	h := d.Help()
	return a.show("Format", h, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s\n", name, h.Summary)
		for _, g := range []struct {
			title string
			list  []image.OptionHelp
		}{{"options (sign)", h.Options}, {"target options (verify)", h.Target}, {"trust options (key trust)", h.Trust}} {
			if len(g.list) == 0 {
				continue
			}
			fmt.Fprintf(w, "\n%s\n", g.title)
			table(w, func(w io.Writer) {
				for _, o := range g.list {
					fmt.Fprintf(w, "  %s\t%s\t%s\n", o.Name, o.Type, o.Text)
				}
			})
		}
	})
}
