-- +goose Up

-- idx is the leaf's index. SQLite gives a new row max(idx)+1, so that a
-- savepoint that is rolled back leaves no gap.
CREATE TABLE log_leaf (
	idx     INTEGER PRIMARY KEY CHECK (idx >= 0),
	id      TEXT NOT NULL,
	type    TEXT NOT NULL,
	request TEXT NOT NULL,
	key     TEXT NOT NULL,
	data    BLOB NOT NULL
) STRICT;
CREATE INDEX log_leaf_id ON log_leaf(id, idx);
CREATE INDEX log_leaf_type ON log_leaf(type, idx);
CREATE INDEX log_leaf_request ON log_leaf(request, idx) WHERE request <> '';
CREATE INDEX log_leaf_key ON log_leaf(key, idx) WHERE key <> '';

-- Full tiles only: 256 hashes each.
CREATE TABLE log_tile (
	level INTEGER NOT NULL,
	n     INTEGER NOT NULL,
	data  BLOB NOT NULL,
	PRIMARY KEY (level, n)
) STRICT;

CREATE TABLE log_head (
	one  INTEGER PRIMARY KEY CHECK (one = 1),
	size INTEGER NOT NULL,
	root BLOB NOT NULL
) STRICT;
