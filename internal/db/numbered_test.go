package db

import (
	"strings"
	"testing"
)

func TestNumbered(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                  "",
		"$":                                 "$",
		"$1":                                "?1",
		"$12,$3":                            "?12,?3",
		"a=$2 WHERE id=$1":                  "a=?2 WHERE id=?1",
		"'$1'$2":                            "'$1'?2",
		"'it''s $1'$2":                      "'it''s $1'?2",
		`"$1" = $1`:                         `"$1" = ?1`,
		"-- $1\n$1":                         "-- $1\n?1",
		"/* $1 ' */$1":                      "/* $1 ' */?1",
		"$name $1":                          "$name ?1",
		"'open $1":                          "'open $1",
		"/* open $1":                        "/* open $1",
		"data->>'$.a' = $1 -- tail without": "data->>'$.a' = ?1 -- tail without",
	} {
		if got := numbered(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzNumbered(f *testing.F) {
	for _, s := range []string{"a=$2 WHERE id=$1", "'it''s $1'$2", "-- $1\n$1", "/* $1 */$1", "'", "$", "/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, q string) {
		got := numbered(q)
		if len(got) != len(q) || strings.ReplaceAll(got, "?", "$") != strings.ReplaceAll(q, "?", "$") {
			t.Fatalf("%q became %q: more than the marks changed", q, got)
		}
		if again := numbered(got); again != got {
			t.Fatalf("%q is turned again into %q", got, again)
		}
	})
}
