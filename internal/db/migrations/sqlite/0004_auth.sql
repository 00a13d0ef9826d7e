-- +goose Up
-- API tokens. digest is the SHA-256 of the secret; the secret is nowhere.
CREATE TABLE auth_token (
	id         TEXT NOT NULL PRIMARY KEY,
	project    TEXT NOT NULL,
	name       TEXT NOT NULL,
	digest     BLOB NOT NULL,
	scopes     TEXT NOT NULL,
	created    INTEGER NOT NULL,
	created_by TEXT NOT NULL,
	expires    INTEGER NOT NULL,
	revoked    INTEGER NOT NULL,
	revoked_by TEXT NOT NULL,
	last_used  INTEGER NOT NULL
) STRICT;
CREATE INDEX auth_token_list ON auth_token(project, id);
