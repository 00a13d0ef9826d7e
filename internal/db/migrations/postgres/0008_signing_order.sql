-- +goose Up
-- What puts the policies of a project, and what rests on them, in an order: a
-- row for each project, and one without a name for the numbers of all policies.
CREATE TABLE signing_policy_head (
	project TEXT NOT NULL PRIMARY KEY,
	applied BIGINT NOT NULL
);
INSERT INTO signing_policy_head(project, applied) SELECT project, MAX(seq) FROM signing_policy GROUP BY project;

-- The leaf by which a person let the request go on after this attempt.
ALTER TABLE signing_attempt ADD COLUMN resume TEXT NOT NULL DEFAULT '';
