// Package telemetry is what the people who run Firmseal see of it: log lines
// and metrics.
//
// # Logs
//
// A server logs JSON to standard output, where a collector reads it; a command
// logs text to standard error, out of the way of its result. Both are made by
// NewLogger. The id of the HTTP request and the correlation id of the signing
// request travel in the context and are put on every line that is logged with
// it, so that one grep tells the story of one request. Nothing here knows or
// prints a key.
//
// # Metrics
//
// Metrics are numbers for alerts, not a second log: units are base units, and
// a label has a fixed, short list of values. A product, key, device or request
// never becomes a label; those are in the log. A process has one Metrics, made
// in main and handed down; there is no global registry, so two servers in one
// test do not share counts.
package telemetry

import (
	"context"
	"io"
	"log/slog"
)

// Format is how log lines are written.
type Format string

const (
	JSON Format = "json" // one object a line, for collectors
	Text Format = "text" // key=value, for people
)

// NewLogger makes a logger that writes to w. Lines below level are dropped.
// Every line that is logged with a context carries the ids that WithRequest
// and WithCorrelation put there. A Format that is neither JSON nor Text is a
// bug and panics: configuration is checked before it comes here.
func NewLogger(w io.Writer, f Format, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	switch f {
	case JSON:
		return slog.New(handler{slog.NewJSONHandler(w, o)})
	case Text:
		return slog.New(handler{slog.NewTextHandler(w, o)})
	}
	panic("telemetry: unknown log format " + string(f))
}

// The keys of the two ids in a log line.
const (
	requestKey     = "request_id"
	correlationKey = "correlation_id"
)

// ids travel in a context as one immutable value: adding one copies.
type ids struct{ request, correlation string }

type idsKey struct{}

// WithRequest returns a context whose log lines carry the id of one HTTP
// request, as the response's X-Request-Id has it.
func WithRequest(ctx context.Context, id string) context.Context {
	v := of(ctx)
	v.request = id
	return context.WithValue(ctx, idsKey{}, v)
}

// WithCorrelation returns a context whose log lines carry the id of the work
// that this is part of: a signing request keeps it over HTTP requests, jobs
// and restarts.
func WithCorrelation(ctx context.Context, id string) context.Context {
	v := of(ctx)
	v.correlation = id
	return context.WithValue(ctx, idsKey{}, v)
}

// Request is the id that WithRequest put into ctx, or empty.
func Request(ctx context.Context) string { return of(ctx).request }

// Correlation is the id that WithCorrelation put into ctx, or empty.
func Correlation(ctx context.Context) string { return of(ctx).correlation }

func of(ctx context.Context) ids {
	v, _ := ctx.Value(idsKey{}).(ids)
	return v
}

// handler adds the context's ids. Once WithGroup opened a group they land
// inside it, as slog puts every attribute of a record there.
type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	v := of(ctx)
	if v != (ids{}) {
		// The record's attributes are shared with other handlers it was
		// given to; Clone keeps our addition out of theirs.
		r = r.Clone()
	}
	if v.request != "" {
		r.AddAttrs(slog.String(requestKey, v.request))
	}
	if v.correlation != "" {
		r.AddAttrs(slog.String(correlationKey, v.correlation))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(a []slog.Attr) slog.Handler { return handler{h.Handler.WithAttrs(a)} }

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
