package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/journal"
)

func (s *server) status() {
	metrics := op("metrics-get", http.MethodGet, "/metrics", public, "Numbers for Prometheus", 200)
	metrics.Errors = nil
	metrics.Responses = map[string]*huma.Response{"200": {Description: "the series, as text", Content: map[string]*huma.MediaType{
		"text/plain": {Schema: &huma.Schema{Type: "string"}},
	}}}
	register(s, metrics, through(s.Metrics.Handler()))
	register(s, op("events-list", http.MethodGet, "/api/v1/events", string(auth.AuditRead), "List journal entries, oldest first", 200),
		func(ctx context.Context, in *struct {
			After int64 `query:"after" minimum:"0" doc:"the next of the previous page"`
			Limit int   `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"items a page"`
		},
		) (*list[client.Event], error) {
			var es []journal.Entry
			err := s.DB.View(ctx, func(tx *db.Tx) (err error) {
				es, err = journal.List(tx, journal.Filter{Project: me(ctx).Project, After: in.After, Limit: in.Limit})
				return err
			})
			if err != nil {
				return nil, err
			}
			return page(es, in.Limit, func(e journal.Entry) string { return strconv.FormatInt(e.Seq, 10) }, func(e journal.Entry) client.Event {
				return client.Event{Seq: e.Seq, Time: e.Time, Kind: e.Kind, Actor: e.Actor, Subject: e.Subject, BuildID: e.Request, Data: json.RawMessage(e.Data)}
			}), nil
		})
	register(s, op("status-get", http.MethodGet, "/api/v1/status", string(auth.StatusRead), "Health of the workspace", 200),
		func(ctx context.Context, _ *struct{}) (*body[client.Status], error) {
			st, err := s.Signing.Status(ctx, me(ctx).Project)
			if err != nil {
				return nil, err
			}
			out := client.Status{
				Workspace: s.Workspace, Version: s.Version, Database: string(s.DB.Engine()), Origin: st.Origin, LogSize: st.LogSize,
				LogVKey: st.LogKey, Requests: st.Requests, Releases: st.Releases, Keys: st.Keys, Policy: st.Policy, Ready: st.Ready, Findings: []client.Finding{},
			}
			for _, f := range st.Findings {
				out.Findings = append(out.Findings, client.Finding(f))
			}
			return ok(out), nil
		})
	register(s, op("health-get", http.MethodGet, "/healthz", public, "Whether the server can reach its database", 200),
		func(ctx context.Context, _ *struct{}) (*body[client.Health], error) {
			if err := s.DB.View(ctx, func(tx *db.Tx) error {
				var one int
				return tx.QueryRow(`SELECT 1`).Scan(&one)
			}); err != nil {
				return nil, err
			}
			return ok(client.Health{Status: "ok"}), nil
		})
}
