package main

import (
	_ "embed"
	"fmt"
	"io"
	"strings"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/policy"
	"github.com/firmseal/firmseal/internal/problem"
)

type policyCmd struct {
	Apply   policyApplyCmd   `cmd:"" help:"Put a policy document in force."`
	Show    policyShowCmd    `cmd:"" help:"Show the document in force."`
	History policyHistoryCmd `cmd:"" help:"List all documents, newest first."`
	Lint    policyLintCmd    `cmd:"" help:"Check a document without applying it."`
	Test    policyTestCmd    `cmd:"" help:"Run the tests that a document carries."`
	Example policyExampleCmd `cmd:"" help:"Print an example document."`
}

// maxPolicy is what is read of a file at most; policy.Parse has a limit of its own.
const maxPolicy = 1 << 20

type policyApplyCmd struct {
	File string `arg:"" help:"YAML document; - for standard input."`
}

func (c *policyApplyCmd) Run(a *app) error {
	b, err := a.readInput(c.File, maxPolicy)
	if err != nil {
		return err
	}
	return a.withClient(func(cl *client.Client) error {
		p, err := cl.ApplyPolicy(a.ctx, b)
		if err != nil {
			return err
		}
		return a.show("Policy", p, func(w io.Writer) { fmt.Fprintf(w, "ok    policy %d is in force, %s\n", p.Seq, p.Digest) })
	})
}

type policyShowCmd struct{}

func (c *policyShowCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		p, err := cl.Policy(a.ctx)
		if err != nil {
			return err
		}
		return a.show("Policy", p, func(w io.Writer) {
			fmt.Fprintf(w, "# policy %d, %s, applied %s by %s\n%s", p.Seq, p.Digest, when(p.Applied), p.AppliedBy, p.Document)
		})
	})
}

type policyHistoryCmd struct{}

func (c *policyHistoryCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		ps, err := cl.PolicyHistory(a.ctx)
		if err != nil {
			return err
		}
		return a.show("PolicyList", client.Page[client.Policy]{Items: ps}, func(w io.Writer) {
			if len(ps) == 0 {
				fmt.Fprintln(w, "no policy yet; begin with: firmseal policy example")
				return
			}
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "POLICY\tAPPLIED\tBY\tDIGEST")
				for _, p := range ps {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", p.Seq, when(p.Applied), p.AppliedBy, p.Digest)
				}
			})
		})
	})
}

type policyLintCmd struct {
	File string `arg:"" help:"YAML document; - for standard input."`
}

func (c *policyLintCmd) Run(a *app) error {
	b, err := a.readInput(c.File, maxPolicy)
	if err != nil {
		return err
	}
	doc, err := policy.Parse(b)
	if err != nil {
		return err
	}
	warnings := policy.Lint(doc)
	if warnings == nil {
		warnings = []policy.Warning{}
	}
	return a.show("PolicyLint", map[string]any{"digest": doc.Digest(), "warnings": warnings}, func(w io.Writer) {
		for _, v := range warnings {
			fmt.Fprintf(w, "warn  %s\n", strings.Join(strings.Fields(v.Profile+" "+v.Rule+" "+v.Text), " "))
		}
		fmt.Fprintf(w, "ok    %d profiles, %d warnings, %s\n", len(doc.Profiles()), len(warnings), doc.Digest())
	})
}

type policyTestCmd struct {
	File string `arg:"" help:"YAML document with tests; - for standard input."`
}

func (c *policyTestCmd) Run(a *app) error {
	b, err := a.readInput(c.File, maxPolicy)
	if err != nil {
		return err
	}
	doc, err := policy.Parse(b)
	if err != nil {
		return err
	}
	results := doc.Test()
	if len(results) == 0 {
		return problem.New(problem.Usage, "%s carries no tests", c.File).WithHint("firmseal policy example")
	}
	failed := 0
	for _, r := range results {
		if !r.Pass {
			failed++
		}
	}
	_ = a.show("PolicyTest", map[string]any{"results": results, "failed": failed}, func(w io.Writer) {
		for _, r := range results {
			if r.Pass {
				fmt.Fprintf(w, "ok    %s\n", r.Name)
			} else {
				fmt.Fprintf(w, "FAIL  %s\n      %s\n", r.Name, r.Why)
			}
		}
	})
	if failed > 0 {
		return &exitError{problem.ExitGate}
	}
	return nil
}

type policyExampleCmd struct{}

//go:embed example-policy.yaml
var examplePolicy []byte

func (c *policyExampleCmd) Run(a *app) error {
	return a.show("PolicyExample", map[string]string{"document": string(examplePolicy)}, func(w io.Writer) { fmt.Fprintf(w, "%s", examplePolicy) })
}
