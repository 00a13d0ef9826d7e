package tlog

import (
	"sync"

	"github.com/firmseal/firmseal/internal/db"
)

// recent remembers the last leaves: their indices for Wait, and on SQLite, where
// this process has written all of them, also their rows. A row that is read
// from the database and is byte for byte the one that was written needs no
// other check of its form; one that is not is checked as any other.
type recent struct {
	mu  sync.Mutex
	m   map[string]*row
	old map[string]*row

	// put and seen are the highest index of each type that this process has
	// written, and that a Find of the whole type has come to.
	put, seen map[string]int64
}

// recentMax is the size of each of two generations. A signing request has four
// leaves and is looked at until its end; 8 MiB hold a thousand of them.
const recentMax = 4096

// add remembers r, whose index is set. Of equal leaves the first counts. The
// caller holds mu.
func (c *recent) add(r *row) {
	if c.put == nil {
		c.put, c.seen = make(map[string]int64), make(map[string]int64)
	}
	c.put[r.typ] = r.idx
	if _, ok := c.m[r.id]; ok {
		return
	}
	if _, ok := c.old[r.id]; ok {
		return
	}
	if c.m == nil || len(c.m) >= recentMax {
		c.old, c.m = c.m, make(map[string]*row, recentMax)
	}
	c.m[r.id] = r
}

func (c *recent) get(id string) *row {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.m[id]; ok {
		return r
	}
	return c.old[id]
}

func (c *recent) index(id string) (int64, bool) {
	if r := c.get(id); r != nil {
		return r.idx, true
	}
	return 0, false
}

// entry checks a row that was read from the database.
func (c *recent) entry(r *row) (Entry, error) {
	if known := c.get(r.id); known != nil && known.leaf != nil && known.same(r) {
		return Entry{known.idx, known.id, known.data, *known.leaf}, nil
	}
	leaf, err := r.check()
	if err != nil {
		return Entry{}, err
	}
	return Entry{r.idx, r.id, r.data, *leaf}, nil
}

// none says that there is no leaf of a type from an index on. On SQLite only:
// elsewhere another process may have written one.
func (l *Log) none(typ string, from int64) bool {
	if l.db.Engine() != db.SQLite {
		return false
	}
	l.recent.mu.Lock()
	defer l.recent.mu.Unlock()
	seen, ok := l.recent.seen[typ]
	put, some := l.recent.put[typ]
	return ok && seen < from && (!some || put < from)
}

// found takes down that last is the highest index of a type that a reader saw.
// What was committed after it began to read has been put, or will be before its
// Update returns.
func (l *Log) found(typ string, last int64) {
	if l.db.Engine() != db.SQLite {
		return
	}
	l.recent.mu.Lock()
	defer l.recent.mu.Unlock()
	if l.recent.seen == nil {
		l.recent.put, l.recent.seen = make(map[string]int64), make(map[string]int64)
	}
	if was, ok := l.recent.seen[typ]; !ok || was < last {
		l.recent.seen[typ] = last
	}
}
