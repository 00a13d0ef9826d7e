#!/usr/bin/env bash
# Runs every fuzz target for FUZZTIME (20s unless set), one after the other. A
# finding is kept by Go in the package's testdata/fuzz: commit it with the fix,
# and it is a seed from then on. Arguments are packages; ./... when there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-20s}
[ $# -gt 0 ] || set -- ./...

# `go test -list` prints a package's targets, then its "ok" line.
targets=$(go test -list '^Fuzz' "$@" | awk '
	/^Fuzz/ { names[n++] = $1 }
	$1 == "ok" || $1 == "?" { for (i = 0; i < n; i++) print $2, names[i]; n = 0 }')
[ -n "$targets" ] || {
	echo "fuzz: no target found in $*" >&2
	exit 1
}
while read -r pkg name; do
	echo "fuzz: $name in $pkg for $time"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$pkg" </dev/null
done <<<"$targets"
echo "fuzz: $(wc -l <<<"$targets") targets, no finding"
