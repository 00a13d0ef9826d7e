// Package bench measures Firmseal against yardsticks in one run: make bench.
//
// All of it is in the tests of this folder; docs/PERFORMANCE.md has the goals
// and the figures.
package bench
