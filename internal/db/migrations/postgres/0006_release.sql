-- +goose Up
CREATE TABLE release_claim (
	project          TEXT NOT NULL,
	product          TEXT NOT NULL,
	environment      TEXT NOT NULL,
	hardware_id      TEXT NOT NULL,
	variant          TEXT NOT NULL,
	version          TEXT NOT NULL,
	security_counter BIGINT NOT NULL,
	request          TEXT NOT NULL,
	PRIMARY KEY (project, product, environment, hardware_id, variant, version)
);
CREATE INDEX release_claim_request ON release_claim(request);
CREATE INDEX release_claim_counter ON release_claim(project, product, environment, hardware_id, security_counter);

CREATE TABLE release_line (
	project     TEXT NOT NULL,
	product     TEXT NOT NULL,
	environment TEXT NOT NULL,
	claims      BIGINT NOT NULL,
	PRIMARY KEY (project, product, environment)
);

CREATE TABLE release (
	id               TEXT NOT NULL PRIMARY KEY,
	project          TEXT NOT NULL,
	request          TEXT NOT NULL UNIQUE,
	product          TEXT NOT NULL,
	environment      TEXT NOT NULL,
	hardware_ids     TEXT NOT NULL,
	variant          TEXT NOT NULL,
	version          TEXT NOT NULL,
	security_counter BIGINT NOT NULL,
	format           TEXT NOT NULL,
	emergency        BIGINT NOT NULL,
	bytes_unseen     BIGINT NOT NULL,
	build_id         TEXT NOT NULL,
	image            TEXT NOT NULL,
	signature        TEXT,
	seal             BYTEA NOT NULL,
	leaf_index       BIGINT NOT NULL,
	created          BIGINT NOT NULL
);
CREATE INDEX release_product ON release(project, product, environment, id);
