-- +goose Up

CREATE TABLE log_leaf (
	idx     BIGINT PRIMARY KEY CHECK (idx >= 0),
	id      TEXT NOT NULL,
	type    TEXT NOT NULL,
	request TEXT NOT NULL,
	key     TEXT NOT NULL,
	data    BYTEA NOT NULL
);
CREATE INDEX log_leaf_id ON log_leaf(id, idx);
CREATE INDEX log_leaf_type ON log_leaf(type, idx);
CREATE INDEX log_leaf_request ON log_leaf(request, idx) WHERE request <> '';
CREATE INDEX log_leaf_key ON log_leaf(key, idx) WHERE key <> '';

-- Leaves that are committed and have no index yet. Gaps in seq mean nothing.
CREATE TABLE log_pending (
	seq     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	id      TEXT NOT NULL,
	type    TEXT NOT NULL,
	request TEXT NOT NULL,
	key     TEXT NOT NULL,
	data    BYTEA NOT NULL
);
CREATE INDEX log_pending_id ON log_pending(id);

-- Full tiles only: 256 hashes each.
CREATE TABLE log_tile (
	level BIGINT NOT NULL,
	n     BIGINT NOT NULL,
	data  BYTEA NOT NULL,
	PRIMARY KEY (level, n)
);

CREATE TABLE log_head (
	one  BIGINT PRIMARY KEY CHECK (one = 1),
	size BIGINT NOT NULL,
	root BYTEA NOT NULL
);
