-- +goose Up
CREATE TABLE job (
	id       TEXT NOT NULL PRIMARY KEY,
	kind     TEXT NOT NULL,
	key      TEXT NOT NULL,
	payload  BYTEA NOT NULL,
	state    TEXT NOT NULL CHECK (state IN ('ready', 'leased', 'dead')),
	attempt  BIGINT NOT NULL,
	run_at   BIGINT NOT NULL,
	lease    TEXT NOT NULL,
	again    BIGINT NOT NULL,
	error    TEXT NOT NULL,
	created  BIGINT NOT NULL,
	updated  BIGINT NOT NULL
);
CREATE UNIQUE INDEX job_key ON job(kind, key) WHERE state <> 'dead';
CREATE INDEX job_due ON job(kind, run_at) WHERE state <> 'dead';
