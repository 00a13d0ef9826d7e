-- +goose Up
CREATE TABLE signing_key (
	name        TEXT NOT NULL PRIMARY KEY,
	project     TEXT NOT NULL,
	uri         TEXT NOT NULL,
	type        TEXT NOT NULL,
	spki        BYTEA NOT NULL,
	purpose     TEXT NOT NULL,
	environment TEXT NOT NULL,
	product     TEXT NOT NULL,
	format      TEXT NOT NULL,
	created     BIGINT NOT NULL,
	created_by  TEXT NOT NULL,
	retired     BIGINT NOT NULL,
	retired_by  TEXT NOT NULL
);

CREATE TABLE signing_policy (
	seq        BIGINT NOT NULL PRIMARY KEY,
	project    TEXT NOT NULL,
	digest     BYTEA NOT NULL,
	document   BYTEA NOT NULL,
	applied    BIGINT NOT NULL,
	applied_by TEXT NOT NULL,
	leaf       TEXT NOT NULL
);

CREATE TABLE signing_request (
	id          TEXT NOT NULL PRIMARY KEY,
	project     TEXT NOT NULL,
	actor       TEXT NOT NULL,
	document    BYTEA NOT NULL,
	digest      BYTEA NOT NULL,
	leaf        TEXT NOT NULL,
	state       TEXT NOT NULL,
	problem     TEXT NOT NULL,
	product     TEXT NOT NULL,
	environment TEXT NOT NULL,
	version     TEXT NOT NULL,
	policy      TEXT NOT NULL,
	build_id    TEXT NOT NULL,
	build_time  BIGINT NOT NULL,
	session     BYTEA,
	receipt     TEXT NOT NULL,
	output      TEXT NOT NULL,
	output_size BIGINT NOT NULL,
	statement   BYTEA,
	outcome     TEXT NOT NULL,
	release     TEXT NOT NULL,
	created     BIGINT NOT NULL,
	updated     BIGINT NOT NULL
);
CREATE INDEX signing_request_list ON signing_request(project, id);

CREATE TABLE signing_ticket (
	request  TEXT NOT NULL PRIMARY KEY,
	nonce    TEXT NOT NULL,
	digest   BYTEA NOT NULL,
	policy   TEXT NOT NULL,
	issued   BIGINT NOT NULL,
	redeemed BIGINT NOT NULL
);

CREATE TABLE signing_attempt (
	request  TEXT NOT NULL,
	n        BIGINT NOT NULL,
	purpose  TEXT NOT NULL,
	round    BIGINT NOT NULL,
	key_id   TEXT NOT NULL,
	inputs   TEXT NOT NULL,
	leaf     TEXT NOT NULL,
	state    TEXT NOT NULL,
	resumed  BIGINT NOT NULL,
	opened   BIGINT NOT NULL,
	closed   BIGINT NOT NULL,
	code     TEXT NOT NULL,
	PRIMARY KEY (request, n)
);

CREATE TABLE signing_idempotency (
	project TEXT NOT NULL,
	actor   TEXT NOT NULL,
	key     TEXT NOT NULL,
	body    BYTEA NOT NULL,
	request TEXT NOT NULL,
	created BIGINT NOT NULL,
	PRIMARY KEY (project, actor, key)
);
