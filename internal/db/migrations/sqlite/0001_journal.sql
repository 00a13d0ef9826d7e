-- +goose Up
CREATE TABLE journal (
	seq     INTEGER PRIMARY KEY AUTOINCREMENT,
	time    INTEGER NOT NULL,
	kind    TEXT NOT NULL,
	actor   TEXT NOT NULL,
	project TEXT NOT NULL,
	subject TEXT NOT NULL,
	request TEXT NOT NULL,
	data    TEXT NOT NULL
) STRICT;
CREATE INDEX journal_subject ON journal(subject, seq);
CREATE INDEX journal_request ON journal(request, seq);
