package firmseal

import "fmt"

// Error is the one error of this package that reaches a person: what, why and
// the next thing to do. Every refusal of Verify is a *Error.
type Error struct {
	Code Code
	What string // one sentence that names the object
	Why  string // the values seen
	Next string // the next thing to do
}

func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.What
	if e.Why != "" {
		s += ": " + e.Why
	}
	return s
}

func refuse(code Code, format string, a ...any) *Error {
	return &Error{Code: code, What: fmt.Sprintf(format, a...)}
}

func (e *Error) seen(format string, a ...any) *Error {
	e.Why = fmt.Sprintf(format, a...)
	return e
}

func (e *Error) next(format string, a ...any) *Error {
	e.Next = fmt.Sprintf(format, a...)
	return e
}
