-- +goose Up
CREATE TABLE signing_key (
	name        TEXT NOT NULL PRIMARY KEY,
	project     TEXT NOT NULL,
	uri         TEXT NOT NULL,
	type        TEXT NOT NULL,
	spki        BLOB NOT NULL,
	purpose     TEXT NOT NULL,
	environment TEXT NOT NULL,
	product     TEXT NOT NULL,
	format      TEXT NOT NULL,
	created     INTEGER NOT NULL,
	created_by  TEXT NOT NULL,
	retired     INTEGER NOT NULL,
	retired_by  TEXT NOT NULL
) STRICT;

CREATE TABLE signing_policy (
	seq        INTEGER NOT NULL PRIMARY KEY,
	project    TEXT NOT NULL,
	digest     BLOB NOT NULL,
	document   BLOB NOT NULL,
	applied    INTEGER NOT NULL,
	applied_by TEXT NOT NULL,
	leaf       TEXT NOT NULL
) STRICT;

CREATE TABLE signing_request (
	id          TEXT NOT NULL PRIMARY KEY,
	project     TEXT NOT NULL,
	actor       TEXT NOT NULL,
	document    BLOB NOT NULL,
	digest      BLOB NOT NULL,
	leaf        TEXT NOT NULL,
	state       TEXT NOT NULL,
	problem     TEXT NOT NULL,
	product     TEXT NOT NULL,
	environment TEXT NOT NULL,
	version     TEXT NOT NULL,
	policy      TEXT NOT NULL,
	build_id    TEXT NOT NULL,
	build_time  INTEGER NOT NULL,
	session     BLOB,
	receipt     TEXT NOT NULL,
	output      TEXT NOT NULL,
	output_size INTEGER NOT NULL,
	statement   BLOB,
	outcome     TEXT NOT NULL,
	release     TEXT NOT NULL,
	created     INTEGER NOT NULL,
	updated     INTEGER NOT NULL
) STRICT;
CREATE INDEX signing_request_list ON signing_request(project, id);

CREATE TABLE signing_ticket (
	request  TEXT NOT NULL PRIMARY KEY,
	nonce    TEXT NOT NULL,
	digest   BLOB NOT NULL,
	policy   TEXT NOT NULL,
	issued   INTEGER NOT NULL,
	redeemed INTEGER NOT NULL
) STRICT;

CREATE TABLE signing_attempt (
	request  TEXT NOT NULL,
	n        INTEGER NOT NULL,
	purpose  TEXT NOT NULL,
	round    INTEGER NOT NULL,
	key_id   TEXT NOT NULL,
	inputs   TEXT NOT NULL,
	leaf     TEXT NOT NULL,
	state    TEXT NOT NULL,
	resumed  INTEGER NOT NULL,
	opened   INTEGER NOT NULL,
	closed   INTEGER NOT NULL,
	code     TEXT NOT NULL,
	PRIMARY KEY (request, n)
) STRICT;

CREATE TABLE signing_idempotency (
	project TEXT NOT NULL,
	actor   TEXT NOT NULL,
	key     TEXT NOT NULL,
	body    BLOB NOT NULL,
	request TEXT NOT NULL,
	created INTEGER NOT NULL,
	PRIMARY KEY (project, actor, key)
) STRICT;
