-- +goose Up
-- Small files by the SHA-256 of their bytes; large ones are in the blob store's
-- folder or bucket. The rows stay in the order in which they were written, and
-- only their index is spread.
CREATE TABLE blob_small (
	project TEXT NOT NULL,
	digest  BLOB NOT NULL CHECK (length(digest) = 32),
	data    BLOB NOT NULL,
	created INTEGER NOT NULL,
	PRIMARY KEY (project, digest)
) STRICT;
