package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestLinesCarryTheIDs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	both := WithCorrelation(WithRequest(ctx, "r1"), "c1")
	for _, tt := range []struct {
		name                     string
		ctx                      context.Context
		wantRequest, wantCorrect any
	}{
		{"none", ctx, nil, nil},
		{"request", WithRequest(ctx, "r1"), "r1", nil},
		{"correlation", WithCorrelation(ctx, "c1"), nil, "c1"},
		{"both", both, "r1", "c1"},
		{"the inner one wins", WithRequest(both, "r2"), "r2", "c1"},
	} {
		var b bytes.Buffer
		NewLogger(&b, JSON, slog.LevelInfo).With("component", "test").InfoContext(tt.ctx, "hello", "n", 1)
		var line map[string]any
		if err := json.Unmarshal(b.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v in %s", tt.name, err, b.Bytes())
		}
		if line["request_id"] != tt.wantRequest || line["correlation_id"] != tt.wantCorrect {
			t.Errorf("%s: %s", tt.name, b.Bytes())
		}
		if line["component"] != "test" || line["n"] != 1.0 || line["msg"] != "hello" {
			t.Errorf("%s: the line's own attributes are lost: %s", tt.name, b.Bytes())
		}
	}
	if Request(both) != "r1" || Correlation(both) != "c1" || Request(ctx) != "" {
		t.Error("the ids cannot be read back")
	}
}

func TestLevelAndTextForm(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	level := new(slog.LevelVar)
	log := NewLogger(&b, Text, level)
	ctx := WithRequest(t.Context(), "r1")
	log.DebugContext(ctx, "quiet")
	if b.Len() != 0 {
		t.Fatalf("a debug line at level info: %s", b.Bytes())
	}
	level.Set(slog.LevelDebug)
	log.WithGroup("g").DebugContext(ctx, "loud", "n", 1)
	if s := b.String(); !strings.Contains(s, "msg=loud") || !strings.Contains(s, "request_id=r1") {
		t.Fatalf("text line: %s", s)
	}
}

// One record may be given to several handlers; an id that we add must not show
// up in the others' lines.
func TestTheRecordIsNotChanged(t *testing.T) {
	t.Parallel()
	h := NewLogger(io.Discard, JSON, slog.LevelInfo).Handler()
	r := slog.NewRecord(time.Unix(1, 0), slog.LevelInfo, "m", 0)
	for range 8 {
		r.AddAttrs(slog.Int("n", 1)) // past the record's inline room
	}
	if err := h.Handle(WithRequest(t.Context(), "r1"), r); err != nil {
		t.Fatal(err)
	}
	r.AddAttrs(slog.Int("last", 1))
	// slog writes a !BUG attribute when it finds the record's room taken.
	if r.NumAttrs() != 9 {
		t.Fatalf("%d attributes, want 9", r.NumAttrs())
	}
}

func TestBugsPanic(t *testing.T) {
	t.Parallel()
	for name, fn := range map[string]func(){
		"log format": func() { NewLogger(io.Discard, "xml", slog.LevelInfo) },
		"result":     func() { New().SignRequest("app.bin") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			fn()
		}()
	}
}

// Prometheus' own linter: names, units, help texts.
func TestMetricsPassTheLinter(t *testing.T) {
	t.Parallel()
	m := New()
	m.SignRequest(Released)
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestMetricsCount(t *testing.T) {
	t.Parallel()
	m := New()
	m.SignRequest(Released)
	m.SignRequest(Released)
	m.SignRequest(Unknown)
	m.SignLatency(59 * time.Second)
	m.SignLatency(61 * time.Second)
	m.SignLatency(-time.Hour) // a builder whose clock runs ahead
	m.KeyWait(3 * time.Millisecond)

	body, header := scrape(t, m)
	if ct := header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") {
		t.Errorf("content type %s", ct)
	}
	for _, want := range []string{
		`firmseal_sign_requests_total{result="released"} 2`,
		`firmseal_sign_requests_total{result="denied"} 0`,
		`firmseal_sign_requests_total{result="rejected"} 0`,
		`firmseal_sign_requests_total{result="failed"} 0`,
		`firmseal_sign_requests_total{result="unknown"} 1`,
		`firmseal_sign_latency_seconds_bucket{le="0.01"} 1`,
		`firmseal_sign_latency_seconds_bucket{le="60"} 2`,
		`firmseal_sign_latency_seconds_count 3`,
		`firmseal_sign_latency_seconds_sum 120`,
		`firmseal_key_wait_seconds_bucket{le="0.0025"} 0`,
		`firmseal_key_wait_seconds_bucket{le="0.005"} 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
}

func TestTwoServersDoNotShare(t *testing.T) {
	t.Parallel()
	a, b := New(), New()
	a.SignRequest(Failed)
	if body, _ := scrape(t, b); !strings.Contains(body, `firmseal_sign_requests_total{result="failed"} 0`) {
		t.Error("the second process counts the first one's requests")
	}
}

// A scrape with holes must not look like a healthy one.
func TestAFailingCollectorFailsTheScrape(t *testing.T) {
	t.Parallel()
	m := New()
	m.Registerer().MustRegister(broken{})
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusInternalServerError {
		t.Errorf("status %d", w.Code)
	}
}

type broken struct{}

func (broken) Describe(c chan<- *prometheus.Desc) {
	c <- prometheus.NewDesc("firmseal_broken", "A collector that fails.", nil, nil)
}

func (broken) Collect(c chan<- prometheus.Metric) {
	d := prometheus.NewDesc("firmseal_broken", "A collector that fails.", nil, nil)
	c <- prometheus.NewInvalidMetric(d, io.ErrUnexpectedEOF)
}

func scrape(t *testing.T, m *Metrics) (string, http.Header) {
	t.Helper()
	s := httptest.NewServer(m.Handler())
	defer s.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("status %d: %s", res.StatusCode, b)
	}
	return string(b), res.Header
}
