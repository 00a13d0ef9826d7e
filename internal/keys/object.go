package keys

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// encoding/json folds the case of member names and keeps the last of two equal
// ones. A gate that read a request or a statement that way could be shown one
// thing while a reader of the log sees another. members therefore splits
// exactly: names by their bytes, none twice. Leaves are read by the root package,
// which is as strict.

// maxMembers bounds the members of one object that a gate reads.
const maxMembers = 1024

// A member is one name and value of an object. The value is a part of the
// input, not a copy.
type member struct {
	name  string
	value []byte
}

// An object is what members found.
type object []member

var (
	errNotObject  = errors.New("not a JSON object in UTF-8")
	errDuplicate  = errors.New("a member occurs twice")
	errManyFields = errors.New("too many members")
)

// members splits a JSON object. It refuses invalid JSON, invalid UTF-8, a
// member that occurs twice, and anything after the object.
func members(text []byte) (object, error) {
	if !utf8.Valid(text) || !json.Valid(text) {
		return nil, errNotObject
	}
	return split(text)
}

// split is members for text that is known to be valid JSON.
func split(text []byte) (object, error) {
	i := space(text, 0)
	if i >= len(text) || text[i] != '{' {
		return nil, errNotObject
	}
	out := make(object, 0, 24)
	i = space(text, i+1)
	for text[i] != '}' {
		if text[i] == ',' {
			i = space(text, i+1)
		}
		end := skip(text, i)
		name, err := unquote(text[i:end])
		if err != nil {
			return nil, errNotObject
		}
		for _, m := range out {
			if m.name == name {
				return nil, errDuplicate
			}
		}
		if len(out) == maxMembers {
			return nil, errManyFields
		}
		i = space(text, end)
		i = space(text, i+1) // the colon
		end = skip(text, i)
		out = append(out, member{name, text[i:end]})
		i = space(text, end)
	}
	return out, nil
}

// get is the raw value of a member, or nil.
func (o object) get(name string) []byte {
	for _, m := range o {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

// str is the string value of a member; an absent member, or one that is not a
// string, is not ok.
func (o object) str(name string) (string, bool) {
	v := o.get(name)
	if len(v) < 2 || v[0] != '"' {
		return "", false
	}
	s, err := unquote(v)
	return s, err == nil
}

func unquote(lit []byte) (string, error) {
	if len(lit) >= 2 && lit[0] == '"' && bytes.IndexByte(lit, '\\') < 0 {
		return string(lit[1 : len(lit)-1]), nil
	}
	var s string
	err := json.Unmarshal(lit, &s)
	return s, err
}

func space(text []byte, i int) int {
	for i < len(text) && (text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r') {
		i++
	}
	return i
}

// skip gives the end of the value that starts at i of valid JSON.
func skip(text []byte, i int) int {
	depth := 0
	for i < len(text) {
		switch text[i] {
		case '"':
			for i++; text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
			i++
			if depth == 0 {
				return i
			}
		case '{', '[':
			depth++
			i++
		case '}', ']':
			if depth == 0 {
				return i // the end of what holds a number or literal
			}
			depth--
			i++
			if depth == 0 {
				return i
			}
		case ',', ':', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i
			}
			i++
		default:
			i++
		}
	}
	return i
}
