-- +goose Up
CREATE TABLE release_board (
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
CREATE INDEX release_board_counter ON release_board(project, product, environment, hardware_id, security_counter);
