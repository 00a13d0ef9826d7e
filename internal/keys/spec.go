package keys

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/problem"
)

// maxName is the longest name of a key.
const maxName = 63

// maxBound is the longest product or format that a key can be bound to.
const maxBound = 200

// ValidName says whether s can name a key: [a-z0-9][a-z0-9._-]{0,62}. Such a
// name is also a file name, a PKCS #11 label and a path segment of a URL
// everywhere.
func ValidName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// Validate refuses a Spec that no backend may fulfil: a bad name, an unknown
// type or purpose, a binding that says too little or too much, and a type that
// the purpose cannot use.
func (s Spec) Validate() error {
	if !ValidName(s.Name) {
		return problem.New(problem.KeyMalformed, "%q cannot name a key", shorten(s.Name)).
			Seen("a name has 1 to %d of a-z 0-9 . _ - and begins with a letter or digit", maxName)
	}
	known := false
	for _, t := range alg.KeyTypes() {
		known = known || t == s.Type
	}
	if !known {
		return problem.New(problem.AlgUnsupported, "key %s: unknown key type %q", s.Name, shorten(string(s.Type))).
			Seen("types: %s", joinTypes(alg.KeyTypes()))
	}
	b := s.Binding
	if b.Environment != Test && b.Environment != Production {
		return problem.New(problem.KeyBinding, "key %s: environment %q is neither test nor production", s.Name, shorten(string(b.Environment)))
	}
	switch b.Purpose {
	case Firmware:
		if !validBound(b.Product) || !validBound(b.Format) {
			return problem.New(problem.KeyBinding, "key %s: a firmware key is bound to one product and one format", s.Name).
				Seen("product %q, format %q", shorten(b.Product), shorten(b.Format)).
				WithHint("add --product and --format")
		}
	case Seal, Log:
		if b.Product != "" || b.Format != "" {
			return problem.New(problem.KeyBinding, "key %s: a %s key is bound to no product or format", s.Name, b.Purpose).
				Seen("product %q, format %q", shorten(b.Product), shorten(b.Format))
		}
		if types := b.Purpose.Types(); !hasType(types, s.Type) {
			return problem.New(problem.AlgUnsupported, "key %s: a %s key cannot be %s", s.Name, b.Purpose, s.Type).
				Seen("types for it: %s", joinTypes(types))
		}
	default:
		return problem.New(problem.KeyBinding, "key %s: unknown purpose %q", s.Name, shorten(string(b.Purpose))).
			Seen("purposes: %s, %s, %s", Firmware, Seal, Log)
	}
	return nil
}

// Types lists the key types that a purpose can use, the default first: a
// checkpoint is an Ed25519 note, a seal is small and has no RSA, and firmware
// takes what the device's verifier can.
func (p Purpose) Types() []alg.KeyType {
	switch p {
	case Log:
		return []alg.KeyType{alg.Ed25519}
	case Seal:
		return []alg.KeyType{alg.Ed25519, alg.P256, alg.P384}
	}
	return alg.KeyTypes()
}

func hasType(list []alg.KeyType, t alg.KeyType) bool {
	for _, x := range list {
		if x == t {
			return true
		}
	}
	return false
}

func joinTypes(list []alg.KeyType) string {
	s := make([]string, len(list))
	for i, t := range list {
		s[i] = string(t)
	}
	return strings.Join(s, ", ")
}

func validBound(s string) bool {
	if s == "" || len(s) > maxBound || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

// shorten keeps input that may be long out of messages.
func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
