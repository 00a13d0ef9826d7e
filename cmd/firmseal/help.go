package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

type helpCmd struct {
	Topic []string `arg:"" optional:"" help:"A code, codes, exit-codes, scopes, or format NAME."`
}

type exitCode struct {
	Code    int    `json:"code"`
	Meaning string `json:"meaning"`
}

var exitCodes = []exitCode{
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

func (c *helpCmd) Run(a *app, kc *kong.Context) error {
	topic := strings.Join(c.Topic, " ")
	if n := commandNamed(kc.Model.Node, c.Topic); n != nil {
		return a.helpCommand(n)
	}
	switch {
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

// commandNamed finds the command that words name; no words name the program.
func commandNamed(n *kong.Node, words []string) *kong.Node {
	for _, w := range words {
		i := slices.IndexFunc(n.Children, func(c *kong.Node) bool { return c.Name == w })
		if i < 0 {
			return nil
		}
		n = n.Children[i]
	}
	return n
}

// helpCommand prints what --help of a command prints; as JSON, the commands
// below it.
func (a *app) helpCommand(n *kong.Node) error {
	if a.g.Quiet {
		return nil
	}
	if a.g.Output == "json" {
		type command struct {
			Command string `json:"command"`
			Help    string `json:"help"`
		}
		var list []command
		for _, l := range n.Leaves(true) {
			list = append(list, command{l.FullPath(), l.Help})
		}
		if len(list) == 0 {
			list = append(list, command{n.FullPath(), n.Help})
		}
		return a.show("CommandList", map[string]any{"items": list}, nil)
	}
	words := strings.Fields(n.FullPath())[1:]
	if code := Main(append(words, "--help"), nil, a.stdout, a.stderr, a.hooks); code != 0 {
		return &exitError{code}
	}
	return nil
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
	h := image.Describe(d)
	return a.show("Format", h, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s\n", name, h.Summary)
		types := make([]string, len(h.KeyTypes))
		for i, t := range h.KeyTypes {
			types[i] = string(t)
		}
		fmt.Fprintf(w, "keys: %s\n", strings.Join(types, ", "))
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
