// Package problem is the one error that reaches a person.
//
// Everything in Firmseal that can refuse or fail says so with a *problem.Error:
// what happened (with a stable code), why (the values that were seen), and
// what to do next (a command to paste). The CLI prints the three lines, the
// API encodes them as RFC 9457 problem+json, and both take the exit code and
// HTTP status from the one table in codes.go. The cause, which may name
// internal details, stays inside for errors.Is and the server's log and is
// never shown.
//
// An error that is not a *problem.Error is a fault of ours: it is shown as
// INTERNAL and logged whole.
package problem

import (
	"errors"
	"fmt"
	"strings"

	"github.com/firmseal/firmseal"
)

// Code is a stable name of one cause; see [firmseal.Code].
type Code = firmseal.Code

// Error is what a person reads. Make it with New; it is safe to show.
type Error struct {
	Code Code   // stable, from the table in codes.go
	What string // one sentence, lower case, no full stop, names the object
	Why  string // the values seen, one sentence; may be empty
	Next string // a command to paste, or the one thing to do; may be empty
	err  error  // cause, for the log and errors.Is; never shown
}

// New makes an error of a code. A code that is not in the table is a bug and
// panics in the package's own test, not here.
func New(code Code, format string, a ...any) *Error {
	return &Error{Code: code, What: fmt.Sprintf(format, a...)}
}

// Seen adds the values that led to the refusal.
func (e *Error) Seen(format string, a ...any) *Error {
	e.Why = fmt.Sprintf(format, a...)
	return e
}

// WithHint adds the next thing to do, best a command that can be pasted.
func (e *Error) WithHint(format string, a ...any) *Error {
	e.Next = fmt.Sprintf(format, a...)
	return e
}

// Because keeps the cause for the log and for errors.Is. It is never shown.
func (e *Error) Because(err error) *Error {
	e.err = err
	return e
}

// Error is the what and the why on one line; the code leads, so that a log
// line can be searched by it.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Code, e.What)
	if e.Why != "" {
		b.WriteString(": ")
		b.WriteString(e.Why)
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.err }

// Is reports whether target is a *Error with the same code, so that
// errors.Is(err, problem.New(code, "")) works through wrapping.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Of finds the *Error in err's chain, or makes an INTERNAL one that keeps err
// as its cause. Of(nil) is nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	var p *Error
	if errors.As(err, &p) {
		return p
	}
	var f *firmseal.Error
	if errors.As(err, &f) {
		return (&Error{Code: f.Code, What: f.What, Why: f.Why, Next: f.Next}).Because(err)
	}
	return New(Internal, "something inside Firmseal failed").
		Seen("this is a fault of the program, not of your input").
		WithHint("look for this code in the server's log, and report it").
		Because(err)
}

// Has reports whether err carries code.
func Has(err error, code Code) bool {
	var p *Error
	if errors.As(err, &p) {
		return p.Code == code
	}
	var f *firmseal.Error
	return errors.As(err, &f) && f.Code == code
}
