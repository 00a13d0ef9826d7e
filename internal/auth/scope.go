package auth

import (
	"slices"
	"strings"

	"github.com/firmseal/firmseal/internal/problem"
)

// Scope is one thing that a token may do.
type Scope string

// The scopes. What each allows is in the table below, and nowhere else.
const (
	UploadWrite  Scope = "upload:write"
	RequestWrite Scope = "request:write"
	// RequestDecide is for people: a build server that may let its own unknown
	// requests go on would use a key as often as it likes to try.
	RequestDecide Scope = "request:decide"
	RequestRead   Scope = "request:read"
	ReleaseRead   Scope = "release:read"
	KeyRead       Scope = "key:read"
	KeyWrite      Scope = "key:write"
	PolicyRead    Scope = "policy:read"
	PolicyWrite   Scope = "policy:write"
	LogRead       Scope = "log:read"
	TokenWrite    Scope = "token:write"
	AuditRead     Scope = "audit:read"
	StatusRead    Scope = "status:read"
)

var scopes = []struct {
	scope  Scope
	allows string
}{
	{UploadWrite, "upload images"},
	{RequestWrite, "ask for signatures"},
	{RequestDecide, "decide as a person about a request with an unknown outcome: resume or cancel it"},
	{RequestRead, "see signing requests and what was decided about them"},
	{ReleaseRead, "see and download releases, seals and proofs"},
	{KeyRead, "see keys and export what devices must hold; never a private key"},
	{KeyWrite, "create and retire keys"},
	{PolicyRead, "see policies"},
	{PolicyWrite, "put a policy in force"},
	{LogRead, "read the entries of the log"},
	{TokenWrite, "list, create and revoke tokens of the project, with no more scopes and no longer life than its own"},
	{AuditRead, "read the journal and check the whole log"},
	{StatusRead, "see the health of the workspace"},
}

// Scopes lists all scopes, in the order of the table.
func Scopes() []Scope {
	out := make([]Scope, len(scopes))
	for i, s := range scopes {
		out[i] = s.scope
	}
	return out
}

// Allows says in a few words what a scope allows; it completes "allows to …".
func (s Scope) Allows() string {
	for _, x := range scopes {
		if x.scope == s {
			return x.allows
		}
	}
	return "do nothing"
}

// ParseScopes checks scopes and gives them sorted and without repetition. An
// unknown scope, or none at all, is refused.
func ParseScopes[S ~string](in []S) ([]Scope, error) {
	all := Scopes()
	out := make([]Scope, 0, len(all))
	for _, s := range in {
		if !slices.Contains(all, Scope(s)) {
			return nil, problem.New(problem.BadRequest, "there is no scope %.64q", string(s)).Seen("scopes: %s", joinScopes(all)).
				WithHint("firmseal help scopes")
		}
		if !slices.Contains(out, Scope(s)) {
			out = append(out, Scope(s))
		}
	}
	if len(out) == 0 {
		return nil, problem.New(problem.BadRequest, "a token needs at least one scope").Seen("scopes: %s", joinScopes(all))
	}
	slices.Sort(out)
	return out, nil
}

func joinScopes(list []Scope) string {
	s := make([]string, len(list))
	for i, x := range list {
		s[i] = string(x)
	}
	return strings.Join(s, " ")
}
