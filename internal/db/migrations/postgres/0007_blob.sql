-- +goose Up
-- Small files by the SHA-256 of their bytes; large ones are in the blob store's
-- folder or bucket.
CREATE TABLE blob_small (
	project TEXT NOT NULL,
	digest  BYTEA NOT NULL CHECK (length(digest) = 32),
	data    BYTEA NOT NULL,
	created BIGINT NOT NULL,
	PRIMARY KEY (project, digest)
);
