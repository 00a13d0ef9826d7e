package firmseal

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
