package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/problem"
)

// app is what a command runs with.
type app struct {
	ctx    context.Context
	g      *globals
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	hooks  hooks

	command string // as it is typed, without its arguments

	// log is what the service in this process says about its faults. It is shown
	// with an INTERNAL error only: every other one tells a person the same.
	log bytes.Buffer

	// passphrase asks once for the soft keys' passphrase.
	passphrase func() (string, error)
}

// finish prints err, if any, and gives the exit code.
func (a *app) finish(err error) int {
	if err == nil {
		return problem.ExitOK
	}
	var silent *exitError
	if errors.As(err, &silent) {
		return silent.code
	}
	p := toProblem(err)
	if p.Next == "" && a.command != "" && (exitOf(p.Code) == problem.ExitUsage || p.Code == string(problem.ImageUnknownFormat)) {
		p.Next = a.command + " --help"
	}
	if !a.g.Quiet {
		if a.g.Output == "json" {
			a.json("Error", p)
		} else {
			fmt.Fprintf(a.stderr, "firmseal: %s\t%s\n", p.Detail, p.Code)
			if p.Why != "" {
				fmt.Fprintf(a.stderr, "why   %s\n", strings.ReplaceAll(p.Why, "\n", "\n      "))
			}
			if p.Next != "" {
				fmt.Fprintf(a.stderr, "next  %s\n", p.Next)
			}
			// The cause of a fault is in the log: a server's own, or this process's.
			var ce *client.Error
			if p.Code == string(problem.Internal) && !errors.As(err, &ce) {
				fmt.Fprintf(a.stderr, "cause %v\n", errors.Unwrap(problem.Of(err)))
			}
			if p.Code == string(problem.Internal) {
				_, _ = a.stderr.Write(a.log.Bytes()) // there is nowhere else to say it
			}
		}
	}
	return exitOf(p.Code)
}

// exitError ends a command that has printed its result already.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

func exitOf(code string) int {
	if e, ok := problem.Lookup(problem.Code(code)); ok {
		return e.Exit
	}
	return problem.ExitError
}

// toProblem gives any error the one form that is shown.
func toProblem(err error) client.Problem {
	var ce *client.Error
	if errors.As(err, &ce) {
		return ce.Problem
	}
	p := problem.Of(err)
	e, _ := problem.Lookup(p.Code)
	return client.Problem{
		Type: "urn:firmseal:problem:" + string(p.Code), Title: e.Title, Status: e.Status, Detail: p.What, Code: string(p.Code),
		Why: p.Why, Next: p.Next, Retryable: e.Exit == problem.ExitTemporary,
	}
}

// json prints a document of the CLI: apiVersion, kind and v's members.
func (a *app) json(kind string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	head, _ := json.Marshal(map[string]string{"apiVersion": client.APIVersion, "kind": kind})
	if len(b) > 2 && b[0] == '{' {
		b = append(append(head[:len(head)-1], ','), b[1:]...)
	} else {
		b = head
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		panic(err)
	}
	fmt.Fprintln(a.stdout, out.String())
}

// show prints v as JSON, or lets text print it for people.
func (a *app) show(kind string, v any, text func(w io.Writer)) error {
	switch {
	case a.g.Quiet:
	case a.g.Output == "json":
		a.json(kind, v)
	default:
		text(a.stdout)
	}
	return nil
}

// note tells a person something beside the data.
func (a *app) note(format string, v ...any) {
	if !a.g.Quiet {
		fmt.Fprintf(a.stderr, format+"\n", v...)
	}
}
