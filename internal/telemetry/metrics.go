package telemetry

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Result is how a request to sign ended. The values tell whose fault a failure
// is: the success rate that people are woken for is Released over Released,
// Failed and Unknown.
type Result string

const (
	Released Result = "released" // signed, verified, sealed, stored
	Denied   Result = "denied"   // policy or an approver said no
	Rejected Result = "rejected" // the builder's side: an unreadable image, wrong options, a missing permission
	Failed   Result = "failed"   // our side: the key, the log, the storage, or our own verification
	Unknown  Result = "unknown"  // a crash left an attempt open; a person must resume it
)

// Results lists all: the whole set of values of the label.
func Results() []Result { return []Result{Released, Denied, Rejected, Failed, Unknown} }

// signTarget is the objective of M2. It is a bucket bound, so that the share
// of signatures that met it can be read exactly.
const signTarget = 60 * time.Second

// Metrics holds the numbers of one process. Its methods are safe for concurrent
// use.
type Metrics struct {
	registry *prometheus.Registry
	signs    map[Result]prometheus.Counter // filled by New, then only read
	latency  prometheus.Histogram
	keyWait  prometheus.Histogram
}

// New makes Metrics with every series at zero: a result that never happened is
// a 0 in a graph, not a gap.
func New() *Metrics {
	signs := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "firmseal_sign_requests_total",
		Help: "Requests to sign that ended, by result. denied and rejected are the asker's side; failed and unknown are Firmseal's.",
	}, []string{"result"})
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		signs:    make(map[Result]prometheus.Counter),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "firmseal_sign_latency_seconds",
			Help:    "Time from the end of the build to the stored, verified and sealed signature. The objective is 60 s.",
			Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, signTarget.Seconds(), 120, 300, 900, 3600},
		}),
		keyWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "firmseal_key_wait_seconds",
			Help:    "Time that one use of a key took at its backend (file, HSM, KMS), queueing there included.",
			Buckets: []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
		}),
	}
	for _, r := range Results() {
		m.signs[r] = signs.WithLabelValues(string(r))
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		signs, m.latency, m.keyWait,
	)
	return m
}

// SignRequest counts a request to sign once, when it reached its end. A request
// that was unknown and is resumed ends a second time. A Result that is not in
// Results is a bug and panics: a label never grows with what it is given.
func (m *Metrics) SignRequest(r Result) {
	c, ok := m.signs[r]
	if !ok {
		panic("telemetry: no such result " + string(r))
	}
	c.Inc()
}

// SignLatency observes one released signature: the time from the end of the
// build, as the builder says it, to the stored signature. The builder's clock
// is foreign input; where it runs ahead, d is negative and counts as no time.
func (m *Metrics) SignLatency(d time.Duration) { m.latency.Observe(max(0, d).Seconds()) }

// KeyWait observes how long a key's backend took for one signature, right or
// failed.
func (m *Metrics) KeyWait(d time.Duration) { m.keyWait.Observe(d.Seconds()) }

// Registerer lets another package add its own collectors to this process's.
func (m *Metrics) Registerer() prometheus.Registerer { return m.registry }

// Handler serves the metrics for GET /metrics in Prometheus' and OpenMetrics'
// text forms. A collector that fails makes the answer a 500: a scrape with
// holes would read as a healthy one.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling:     promhttp.HTTPErrorOnError,
		EnableOpenMetrics: true,
	})
}
