package firmseal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds the nesting of any document that this package reads. The
// deepest of ours has 5 levels.
const maxDepth = 16

// maxInteger is the largest number that every JSON reader keeps exact.
const maxInteger = 1<<53 - 1

// parseJSON reads one JSON object in such a way that no two readers can see two
// different things in it: valid UTF-8, no unpaired surrogates, no duplicate
// members at any level, no trailing data, bounded depth. Member names are
// compared as they are; encoding/json's own decoding into structs would also
// take "Product" for "product".
//
// The caller has bounded len(data).
func parseJSON(data []byte) (map[string]any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("it is not valid UTF-8")
	}
	if !json.Valid(data) {
		return nil, errors.New("it is not one JSON value")
	}
	if err := pairedSurrogates(data); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := parseValue(d, 1)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("there is data after the JSON value")
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("it is not a JSON object")
	}
	return m, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, errors.New("it is not valid JSON")
	}
	open, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	}
	if open == '[' {
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	m := map[string]any{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, errors.New("it is not valid JSON")
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("a member has no name")
		}
		if _, ok := m[name]; ok {
			return nil, fmt.Errorf("the member %q is there twice", clip(name))
		}
		if m[name], err = parseValue(d, depth+1); err != nil {
			return nil, err
		}
	}
	_, err = d.Token()
	return m, err
}

// pairedSurrogates refuses \ud800 and its like without a partner, which every
// decoder replaces in a way of its own. data is valid JSON, so a backslash can
// only be inside a string.
func pairedSurrogates(data []byte) error {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		i++
		if data[i] != 'u' {
			continue
		}
		u := hex4(data[i+1:])
		i += 4
		if u < 0xd800 || u > 0xdfff {
			continue
		}
		if u < 0xdc00 && i+6 < len(data) && data[i+1] == '\\' && data[i+2] == 'u' {
			if low := hex4(data[i+3:]); low >= 0xdc00 && low <= 0xdfff {
				i += 6
				continue
			}
		}
		return errors.New("a string has half of a surrogate pair")
	}
	return nil
}

func hex4(b []byte) int {
	n, err := strconv.ParseUint(string(b[:4]), 16, 32)
	if err != nil {
		return 0 // cannot be: the JSON is valid
	}
	return int(n)
}

// members reads the known members of a parsed object. The first fault stays in
// *err, which all objects of one document share; the values after it are zero.
type members struct {
	m    map[string]any
	path string // "predicate.", for messages
	err  *error
}

func (o members) fail(name, format string, a ...any) {
	if *o.err == nil {
		*o.err = fmt.Errorf("%s%s %s", o.path, name, fmt.Sprintf(format, a...))
	}
}

func (o members) has(name string) bool { _, ok := o.m[name]; return ok }

func (o members) str(name string) string {
	s, ok := o.m[name].(string)
	if !ok {
		o.fail(name, "is not a string, or missing")
	}
	return s
}

func (o members) optStr(name string) string {
	if !o.has(name) {
		return ""
	}
	return o.str(name)
}

func (o members) boolean(name string) bool {
	b, ok := o.m[name].(bool)
	if !ok {
		o.fail(name, "is not true or false, or missing")
	}
	return b
}

func (o members) optBool(name string) bool { return o.has(name) && o.boolean(name) }

// integer takes decimal digits only: 1.0 and 1e3 are the same number to some
// readers and no integer to others.
func (o members) integer(name string) uint64 {
	n, ok := o.m[name].(json.Number)
	if !ok {
		o.fail(name, "is not a number, or missing")
		return 0
	}
	u, err := strconv.ParseUint(string(n), 10, 64)
	if err != nil || u > maxInteger {
		o.fail(name, "is not an integer between 0 and 2^53-1")
		return 0
	}
	return u
}

// number is an integer that fits into an int of 32 bits, as devices have.
func (o members) number(name string) int {
	n := o.integer(name)
	if n > math.MaxInt32 {
		o.fail(name, "is larger than 2^31-1")
		return 0
	}
	return int(n)
}

func (o members) base64(name string) []byte {
	b, err := decodeBase64(o.str(name))
	if err != nil {
		o.fail(name, "is not padded standard base64")
	}
	return b
}

// names gives the members' names in a fixed order, so that the same document
// always has the same first fault.
func (o members) names() []string { return slices.Sorted(maps.Keys(o.m)) }

// only refuses members that are not named.
func (o members) only(known ...string) {
	for _, name := range o.names() {
		if !slices.Contains(known, name) {
			o.fail(clip(name), "is not known here")
		}
	}
}

func (o members) object(name string) members {
	m, ok := o.m[name].(map[string]any)
	if !ok {
		o.fail(name, "is not an object, or missing")
	}
	return members{m, o.path + name + ".", o.err}
}

func (o members) list(name string, most int) []any {
	l, ok := o.m[name].([]any)
	if !ok {
		o.fail(name, "is not an array, or missing")
		return nil
	}
	if len(l) > most {
		o.fail(name, "has %d entries, more than %d", len(l), most)
		return nil
	}
	return l
}

func (o members) objects(name string, most int) []members {
	var out []members
	for i, v := range o.list(name, most) {
		m, ok := v.(map[string]any)
		if !ok {
			o.fail(name, "has an entry that is not an object")
			return nil
		}
		out = append(out, members{m, fmt.Sprintf("%s%s[%d].", o.path, name, i), o.err})
	}
	return out
}

func (o members) strs(name string, most int) []string {
	var out []string
	for _, v := range o.list(name, most) {
		s, ok := v.(string)
		if !ok {
			o.fail(name, "has an entry that is not a string")
			return nil
		}
		out = append(out, s)
	}
	return out
}

// decodeBase64 takes one encoding for one value: padded, standard alphabet, no
// line breaks, no stray bits.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line breaks in base64")
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

// encodeJSON is the one way this package writes JSON: compact, and without the
// escapes for HTML.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// clip keeps foreign text in a message short.
func clip(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}
