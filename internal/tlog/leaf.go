package tlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/problem"
)

// maxLeaf bounds a leaf's bytes, below the 65,535 that an entry bundle can hold.
// Most have some hundred bytes. The largest are attempts: one announces every
// signature that a key makes in a round, and a FIT has one for each of its up to
// 256 configurations.
const maxLeaf = 48 << 10

// canonical is the RFC 8785 encoding of a leaf: members sorted by name, no
// white space, the shortest escapes.
func canonical(l *firmseal.Leaf) ([]byte, error) {
	e := encoder{b: make([]byte, 0, 512)}
	e.open('{')
	e.str("actor", l.Actor, true)
	e.num("attempt", int64(l.Attempt), false)
	e.yes("bytes_unseen", l.Unseen)
	e.str("code", string(l.Code), false)
	e.str("decision", l.Decision, false)
	e.str("input", l.Input, false)
	if len(l.Inputs) > 0 {
		e.name("inputs")
		e.open('[')
		for i := range l.Inputs {
			e.comma()
			e.open('{')
			e.str("alg", l.Inputs[i].Alg, true)
			e.str("kind", l.Inputs[i].Kind, true)
			e.str("sha256", l.Inputs[i].SHA256, true)
			e.str("slot", l.Inputs[i].Slot, true)
			e.close('}')
		}
		e.close(']')
	}
	e.str("key", l.Key, false)
	e.str("output", l.Output, false)
	e.str("policy", l.Policy, false)
	e.str("record", l.Record, false)
	e.str("request", l.Request, false)
	e.str("result", l.Result, false)
	e.yes("resumed", l.Resumed)
	e.str("rule", l.Rule, false)
	e.str("seal_key", l.SealKey, false)
	e.str("session", l.Session, false)
	e.str("statement", l.Statement, false)
	e.str("subject", l.Subject, false)
	e.num("time", l.Time, true)
	e.str("type", l.Type, true)
	e.num("v", int64(l.V), true)
	e.close('}')
	bad := problem.New(problem.LogLeaf, "a %s leaf cannot be logged", l.Type)
	switch {
	case e.bad != "":
		return nil, bad.Seen("%s", e.bad)
	case l.Type == "":
		return nil, bad.Seen("it has no type")
	case len(e.b) > maxLeaf:
		return nil, bad.Seen("it has %d bytes, more than %d", len(e.b), maxLeaf).
			WithHint("a leaf holds ids and digests; long texts stay in the record")
	}
	return e.b, nil
}

// encoder writes RFC 8785. The members' order is the caller's care, and a test
// compares it with a general implementation for every field of a leaf.
type encoder struct {
	b   []byte
	bad string
}

func (e *encoder) open(c byte)  { e.b = append(e.b, c) }
func (e *encoder) close(c byte) { e.b = append(e.b, c) }

func (e *encoder) comma() {
	if c := e.b[len(e.b)-1]; c != '{' && c != '[' {
		e.b = append(e.b, ',')
	}
}

func (e *encoder) name(n string) {
	e.comma()
	e.b = append(e.b, '"')
	e.b = append(e.b, n...)
	e.b = append(e.b, '"', ':')
}

func (e *encoder) num(name string, n int64, always bool) {
	if n == 0 && !always {
		return
	}
	if n >= 1<<53 || n <= -1<<53 {
		e.bad = name + " is not below 2^53"
	}
	e.name(name)
	e.b = strconv.AppendInt(e.b, n, 10)
}

func (e *encoder) yes(name string, v bool) {
	if v {
		e.name(name)
		e.b = append(e.b, "true"...)
	}
}

func (e *encoder) str(name, s string, always bool) {
	if s == "" && !always {
		return
	}
	if !utf8.ValidString(s) {
		e.bad = name + " is not UTF-8"
		return
	}
	e.name(name)
	e.b = append(e.b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			e.b = append(e.b, '\\', c)
		case c >= 0x20:
			e.b = append(e.b, c)
		case c == '\b':
			e.b = append(e.b, '\\', 'b')
		case c == '\t':
			e.b = append(e.b, '\\', 't')
		case c == '\n':
			e.b = append(e.b, '\\', 'n')
		case c == '\f':
			e.b = append(e.b, '\\', 'f')
		case c == '\r':
			e.b = append(e.b, '\\', 'r')
		default:
			const digits = "0123456789abcdef"
			e.b = append(e.b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	e.b = append(e.b, '"')
}

// leafID names a leaf: its time and the first half of its hash, in hex. So an
// id says which bytes it belongs to, and rows keep the order of time in the
// index. Two equal leaves have one id and prove the same.
func leafID(time int64, h tlog.Hash) string {
	var b [8 + 16]byte
	binary.BigEndian.PutUint64(b[:], uint64(time))
	copy(b[8:], h[:16])
	return hex.EncodeToString(b[:])
}

// row is a leaf as the table has it.
type row struct {
	idx                   int64
	id, typ, request, key string
	data                  []byte
	hash                  tlog.Hash      // of data
	leaf                  *firmseal.Leaf // what data says; nil until it was read
}

func newRow(l *firmseal.Leaf) (*row, error) {
	data, err := canonical(l)
	if err != nil {
		return nil, err
	}
	own := *l
	own.Inputs = slices.Clone(l.Inputs)
	r := &row{typ: l.Type, request: l.Request, key: l.Key, data: data, hash: tlog.RecordHash(data), leaf: &own}
	r.id = leafID(l.Time, r.hash)
	return r, nil
}

// check compares the columns with the bytes. It hashes the bytes.
func (r *row) check() (*firmseal.Leaf, error) {
	r.hash = tlog.RecordHash(r.data)
	l := new(firmseal.Leaf)
	if err := json.Unmarshal(r.data, l); err != nil {
		return nil, altered("leaf %d cannot be read", r.idx).Because(err)
	}
	if id := leafID(l.Time, r.hash); id != r.id {
		return nil, altered("leaf %d was changed", r.idx).Seen("its bytes make id %s, its row says %.48q", id, r.id)
	}
	if l.Type != r.typ || l.Request != r.request || l.Key != r.key {
		return nil, altered("the row of leaf %d was changed", r.idx).
			Seen("type, request or key are not what the leaf says")
	}
	r.leaf = l
	return l, nil
}

// same compares all that the table has of two leaves.
func (r *row) same(o *row) bool {
	return r.idx == o.idx && r.id == o.id && r.typ == o.typ && r.request == o.request && r.key == o.key && bytes.Equal(r.data, o.data)
}
