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
type Result int

const (
	Released Result = iota // signed, verified, sealed, stored
	Denied                 // policy or an approver said no
	Rejected               // the builder's side: an unreadable image, wrong options, a missing permission
	Failed                 // our side: the key, the log, the storage, or our own verification
	Unknown                // a crash left an attempt open; a person must resume it
)

// resultLabels holds the label value of each Result.
var resultLabels = [...]string{"released", "denied", "rejected", "failed", "unknown"}

func (r Result) String() string { return resultLabels[r] }

// signTarget is the objective of M2. It is a bucket bound, so that the share
// of signatures that met it can be read exactly.
const signTarget = 60 * time.Second

// Metrics holds the numbers of one process. Its methods are safe for concurrent
// use.
type Metrics struct {
	registry *prometheus.Registry
	signs    [len(resultLabels)]prometheus.Counter
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
	for i, label := range resultLabels {
		m.signs[i] = signs.WithLabelValues(label)
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		signs, m.latency, m.keyWait,
	)
	return m
}

// Ended counts a request to sign once, when it reached its end. A request that
// was unknown and is resumed ends a second time.
func (m *Metrics) Ended(r Result) { m.signs[r].Inc() }

// Stored observes the latency of one released signature. built is when the
// builder says that its build finished, so it is foreign input: the zero time
// (not said) is not observed, and one after stored, by a clock that runs ahead,
// counts as no time at all.
func (m *Metrics) Stored(built, stored time.Time) {
	if built.IsZero() {
		return
	}
	m.latency.Observe(max(0, stored.Sub(built).Seconds()))
}

// KeyUsed observes how long a key's backend took for one signature, right or
// failed.
func (m *Metrics) KeyUsed(d time.Duration) { m.keyWait.Observe(d.Seconds()) }

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
