-- +goose Up
CREATE TABLE job (
	id       TEXT NOT NULL PRIMARY KEY,
	kind     TEXT NOT NULL,
	key      TEXT NOT NULL,
	payload  BLOB NOT NULL,
	state    TEXT NOT NULL CHECK (state IN ('ready', 'leased', 'dead')),
	attempt  INTEGER NOT NULL,
	run_at   INTEGER NOT NULL,
	lease    TEXT NOT NULL,
	again    INTEGER NOT NULL,
	error    TEXT NOT NULL,
	created  INTEGER NOT NULL,
	updated  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX job_key ON job(kind, key) WHERE state <> 'dead';
CREATE INDEX job_due ON job(kind, run_at) WHERE state <> 'dead';
