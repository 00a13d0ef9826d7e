package tlog

import (
	"context"
	"encoding/binary"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

// Handler serves the log as C2SP tlog-tiles: /checkpoint, /tile/LEVEL/N[.p/W]
// and /tile/entries/N[.p/W]. Mount it with http.StripPrefix.
//
// It serves what the published checkpoint covers, and partial tiles of every
// width up to that. Hashes and entries are compared with the published tree
// before they leave.
func (l *Log) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the log is read with GET", http.StatusMethodNotAllowed)
			return
		}
		body, typ, err := l.serve(r.Context(), strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			p := problem.Of(err)
			if p.Code == problem.Internal {
				l.logger.ErrorContext(r.Context(), "serving the log", "path", r.URL.Path, "err", err)
			}
			w.Header().Set("Cache-Control", "no-store")
			http.Error(w, p.Error(), problem.Status(p))
			return
		}
		h := w.Header()
		h.Set("Content-Type", typ)
		h.Set("Content-Length", strconv.Itoa(len(body)))
		h.Set("X-Content-Type-Options", "nosniff")
		if r.URL.Path == "/checkpoint" || r.URL.Path == "checkpoint" {
			h.Set("Cache-Control", "no-store")
		} else {
			// The tree only grows: what is at this address is there for ever.
			h.Set("Cache-Control", "public, max-age=31536000, immutable")
		}
		w.Write(body) //nolint:errcheck // the client went away
	})
}

func (l *Log) serve(ctx context.Context, path string) (body []byte, typ string, err error) {
	p, err := l.published()
	if err != nil {
		return nil, "", err
	}
	if path == "checkpoint" {
		return p.checkpoint, "text/plain; charset=utf-8", nil
	}
	t, ok := parseTilePath(path)
	if !ok {
		return nil, "", problem.New(problem.NotFound, "the log has no such path")
	}
	// The first node that the tile does not have.
	end := t.n*tileWidth + int64(t.width)
	if end > p.tree.size>>(t.level*tileHeight) {
		return nil, "", problem.New(problem.NotFound, "the log has no such tile yet").Seen("its size is %d", p.tree.size)
	}
	hashes := make([]tlog.Hash, t.width)
	for i := range hashes {
		if hashes[i], err = l.node(ctx, p.tree, t.level*tileHeight, t.n*tileWidth+int64(i)); err != nil {
			return nil, "", err
		}
	}
	if t.entries {
		body, err = l.entries(ctx, t.n*tileWidth, hashes)
	} else {
		for i := range hashes {
			body = append(body, hashes[i][:]...)
		}
	}
	return body, "application/octet-stream", err
}

// entries reads leaves and compares them with their hashes in the tree.
func (l *Log) entries(ctx context.Context, from int64, hashes []tlog.Hash) ([]byte, error) {
	var body []byte
	n := 0
	err := l.db.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(`SELECT idx, data FROM log_leaf WHERE idx >= $1 AND idx < $2 ORDER BY idx`, from, from+int64(len(hashes)))
		if err != nil {
			return err
		}
		for ; rows.Next(); n++ {
			var idx int64
			var data []byte
			if err := rows.Scan(&idx, &data); err != nil {
				return err
			}
			if idx != from+int64(n) || len(data) > 1<<16-1 || tlog.RecordHash(data) != hashes[n] {
				return altered("leaf %d is not the one that was logged", from+int64(n))
			}
			body = binary.BigEndian.AppendUint16(body, uint16(len(data)))
			body = append(body, data...)
		}
		return rows.Err()
	})
	if err == nil && n != len(hashes) {
		err = missing(0, from+int64(n))
	}
	return body, err
}

// tilePath is the address of a tile or an entry bundle.
type tilePath struct {
	entries bool
	level   int
	n       int64
	width   int // 1 to 256
}

// groupsMax bounds N to 15 digits, so that no shift of it overflows.
const groupsMax = 5

// parseTilePath reads tile/LEVEL/N[.p/W] and takes only the one spelling that
// each tile has.
func parseTilePath(s string) (t tilePath, ok bool) {
	if len(s) > 64 {
		return t, false
	}
	parts := strings.Split(s, "/")
	if len(parts) < 3 || parts[0] != "tile" {
		return t, false
	}
	if parts[1] == "entries" {
		t.entries = true
	} else if t.level, ok = number(parts[1], 2); !ok || t.level > 63/tileHeight {
		return t, false
	}
	parts = parts[2:]
	t.width = tileWidth
	if k := len(parts); k > 1 && strings.HasSuffix(parts[k-2], ".p") {
		if t.width, ok = number(parts[k-1], 3); !ok || t.width < 1 || t.width >= tileWidth {
			return t, false
		}
		parts = parts[:k-1]
		parts[k-2] = strings.TrimSuffix(parts[k-2], ".p")
	}
	if len(parts) > groupsMax {
		return t, false
	}
	for i, g := range parts {
		if i < len(parts)-1 {
			if !strings.HasPrefix(g, "x") || i == 0 && g == "x000" {
				return t, false
			}
			g = g[1:]
		}
		if len(g) != 3 {
			return t, false
		}
		for _, c := range []byte(g) {
			if c < '0' || c > '9' {
				return t, false
			}
			t.n = t.n*10 + int64(c-'0')
		}
	}
	return t, true
}

// number reads a decimal of at most so many digits, without leading zeros.
func number(s string, digits int) (int, bool) {
	if s == "" || len(s) > digits || s != "0" && s[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// String is the inverse of parseTilePath.
func (t tilePath) String() string {
	n := ""
	for rest, last := t.n, true; last || rest > 0; rest /= 1000 {
		g := strconv.FormatInt(1000+rest%1000, 10)[1:]
		if last {
			n = g
		} else {
			n = "x" + g + "/" + n
		}
		last = false
	}
	s := "tile/" + strconv.Itoa(t.level) + "/" + n
	if t.entries {
		s = "tile/entries/" + n
	}
	if t.width < tileWidth {
		s += ".p/" + strconv.Itoa(t.width)
	}
	return s
}
