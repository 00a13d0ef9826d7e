// Benchmarks of Firmseal against yardsticks, in one run.
//
// A figure alone says what the machine was doing; a ratio to a yardstick that
// ran in turn with it says something about Firmseal. Each benchmark here runs
// pairs (ours, yardstick, ours, yardstick …) and reports the median ratio, and
// docs/PERFORMANCE.md says what the goals are and where we fall short.
//
//	make bench
//
// Throughput is compared by CPU seconds of the whole process, client and server
// alike, which takes the load generator's share into the yardstick too. Work on
// files is compared as whole processes: the test binary runs itself.
package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	xtlog "golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/mcuboot"
	"github.com/firmseal/firmseal/internal/image/raw"
	"github.com/firmseal/firmseal/internal/tlog"
)

// pairCount is how many pairs a ratio is the median of.
const pairCount = 5

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func spent(f func()) time.Duration {
	runtime.GC()
	before := cpu()
	f()
	return cpu() - before
}

func median[T interface{ ~float64 | ~int64 }](v []T) T {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

// pairs reports the median CPU of ours and of the yardstick for one of n units
// of work, and their ratio.
func pairs(b *testing.B, n int, ours, yardstick func()) {
	b.Helper()
	ours() // warm
	yardstick()
	var ratio, a, y []float64
	for range pairCount {
		o, k := spent(ours), spent(yardstick)
		ratio = append(ratio, float64(o)/float64(k))
		a = append(a, float64(o.Nanoseconds())/float64(n)/1e3)
		y = append(y, float64(k.Nanoseconds())/float64(n)/1e3)
	}
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(a), "µs-cpu/op")
	b.ReportMetric(median(y), "µs-cpu/yardstick")
	b.ReportMetric(median(ratio), "ratio")
}

// each runs f n times from as many goroutines.
func each(n, workers int, f func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				f(i)
			}
		})
	}
	wg.Wait()
}

var version atomic.Int64

// sign asks for one signature of a small image and waits for its release.
func sign(tb testing.TB, c *client.Client, image []byte) {
	n := version.Add(1)
	counter := uint64(n)
	r, err := c.Sign(context.Background(), client.NewRequest{
		Profile: "bench", Version: fmt.Sprintf("1.0.%d", n), SecurityCounter: &counter, HardwareIDs: []string{fmt.Sprintf("board-%d", n)},
		Input: client.Input{Name: "app.bin", Content: image},
	}, "", time.Minute)
	if err != nil {
		tb.Error(err)
		return
	}
	if r.State != "released" {
		tb.Errorf("request %s is %s: %+v", r.ID, r.State, r.Problem)
	}
}

// BenchmarkA1Signature: goal a1. One released signature over TLS (token, policy,
// intent, attempt, sign, verify, outcome, seal, all durable and in the log)
// against the CPU of its unavoidable work.
func BenchmarkA1Signature(b *testing.B) {
	const n, clients = 256, 64
	for _, kt := range []alg.KeyType{alg.P256, alg.P384, alg.RSA3072} {
		b.Run(string(kt), func(b *testing.B) {
			c := signingServer(b, kt)
			img := make([]byte, 500)
			rand.Read(img)
			bare := bareServer(b)
			pairs(b, n,
				func() { each(n, clients, func(int) { sign(b, c, img) }) },
				func() { each(n, clients, func(int) { unavoidable(b, kt, bare, img) }) })
		})
	}
}

// BenchmarkBLatency: goal b. One client, nothing else going on.
func BenchmarkBLatency(b *testing.B) {
	c := signingServer(b, alg.P256)
	img := make([]byte, 500)
	rand.Read(img)
	for range 20 {
		sign(b, c, img)
	}
	var lat, disk, crypt []int64
	dir := b.TempDir()
	bare := bareServer(b)
	for range 300 {
		began := time.Now()
		sign(b, c, img)
		lat = append(lat, int64(time.Since(began)))
		disk = append(disk, int64(fdatasync(b, dir)))
		began = time.Now()
		unavoidable(b, alg.P256, bare, img)
		crypt = append(crypt, int64(time.Since(began)))
	}
	for b.Loop() {
	}
	slices.Sort(lat)
	p50, p99 := lat[len(lat)/2], lat[len(lat)*99/100]
	floor := float64(syncsOnPath)*float64(median(disk)) + float64(median(crypt))
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(p50)/1e6, "ms-p50")
	b.ReportMetric(float64(p99)/1e6, "ms-p99")
	b.ReportMetric(float64(median(disk))/1e3, "µs-fdatasync")
	b.ReportMetric(syncsOnPath, "syncs-on-path")
	b.ReportMetric(float64(p50)/floor, "p50-ratio")
	b.ReportMetric(float64(p99)/floor, "p99-ratio")
}

// syncsOnPath is the number of fsync and fdatasync calls that one signature
// waits for, one after the other, on an idle embedded server; counted with
//
//	strace -f -y -e trace=fsync,fdatasync bench.test -test.bench BLatency
//
// as 1635 of the database's WAL and 1288 of the second place for 320
// signatures. The commits: submit, redeem, attempt, outcome, release. Each of
// the first four is followed by the log's second place. Image and signature are
// small, and are stored by the commits of what names them.
const syncsOnPath = 5 + 4

func fdatasync(tb testing.TB, dir string) time.Duration {
	f, err := os.OpenFile(filepath.Join(dir, "sync"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	began := time.Now()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		tb.Fatal(err)
	}
	if err := syscall.Fdatasync(int(f.Fd())); err != nil {
		tb.Fatal(err)
	}
	return time.Since(began)
}

// unavoidable is the work that a signature cannot do without: the firmware
// key's signature and its verification, the seal key's, and one POST over TLS.
func unavoidable(tb testing.TB, kt alg.KeyType, url *bareClient, img []byte) {
	k := bareKey(kt)
	h := sha256.Sum256(img)
	sig := k.sign(tb, h[:])
	k.verify(tb, h[:], sig)
	ed25519.Sign(sealKey, img)
	url.post(tb, img)
}

var sealKey = func() ed25519.PrivateKey { _, k, _ := ed25519.GenerateKey(nil); return k }()

// BenchmarkC1Detached and BenchmarkC2Embedded: goals c1 to c3. Whole processes
// against `openssl dgst -sha256` of the same file, and peak memory.
func BenchmarkC1Detached(b *testing.B) {
	for _, op := range []string{"raw-sign", "raw-verify"} {
		process(b, op)
	}
}

func BenchmarkC2Embedded(b *testing.B) {
	process(b, "mcuboot-sign")
	imgtool(b)
}

const small, large = 16 << 20, 512 << 20

func process(b *testing.B, op string) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		b.Skip("peer absent: openssl")
	}
	peak := map[int64]float64{}
	for _, size := range []int64{small, large} {
		b.Run(fmt.Sprintf("%s/%dMiB", op, size>>20), func(b *testing.B) {
			file := testFile(b, size)
			var ratio, mem []float64
			for range pairCount {
				o, rss := child(b, op, file)
				y := run(b, openssl, "dgst", "-sha256", file)
				ratio = append(ratio, o.Seconds()/y.Seconds())
				mem = append(mem, rss)
			}
			for b.Loop() {
			}
			peak[size] = median(mem)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(ratio), "ratio-openssl")
			b.ReportMetric(peak[size], "MiB-peak")
			if size == large {
				b.ReportMetric(peak[large]-peak[small], "MiB-growth")
			}
		})
	}
}

// imgtool is c2's other half: how much faster than the reference tool.
func imgtool(b *testing.B) {
	tool, err := exec.LookPath("imgtool")
	if err != nil {
		tool = filepath.Join("..", ".peers", "bin", "imgtool")
		if _, err := os.Stat(tool); err != nil {
			b.Log("peer absent: imgtool")
			return
		}
	}
	for _, size := range []int64{small, large} {
		b.Run(fmt.Sprintf("imgtool/%dMiB", size>>20), func(b *testing.B) {
			file := testFile(b, size)
			key, out := filepath.Join(b.TempDir(), "k.pem"), filepath.Join(b.TempDir(), "out.bin")
			run(b, tool, "keygen", "-t", "ecdsa-p256", "-k", key)
			var ratio []float64
			for range 3 {
				o, _ := child(b, "mcuboot-sign", file)
				y := run(b, tool, "sign", "-k", key, "--header-size", "0x20", "--pad-header", "--slot-size", "0x40000000", "--align", "8", "--version", "1.0.0", "--overwrite-only", file, out)
				ratio = append(ratio, y.Seconds()/o.Seconds())
				os.Remove(out)
			}
			for b.Loop() {
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(ratio), "times-faster")
		})
	}
}

func testFile(tb testing.TB, size int64) string {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("firmseal-bench-%d-%d.bin", os.Getpid(), size))
	if st, err := os.Stat(path); err == nil && st.Size() == size {
		return path
	}
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for range size >> 20 {
		rand.Read(block)
		if _, err := f.Write(block); err != nil {
			tb.Fatal(err)
		}
	}
	files = append(files, path)
	return path
}

// files are what TestMain removes.
var files []string

func TestMain(m *testing.M) {
	if op := os.Getenv("FIRMSEAL_BENCH_CHILD"); op != "" {
		work(op, os.Getenv("FIRMSEAL_BENCH_FILE"))
		peakMemory()
		return
	}
	code := m.Run()
	for _, f := range files {
		os.Remove(f)
	}
	os.Exit(code)
}

// peakMemory prints the child's own peak. The rusage that its parent gets would
// be at least what the parent had when it forked.
func peakMemory() {
	status, err := os.ReadFile("/proc/self/status")
	check(err)
	_, rest, ok := strings.Cut(string(status), "VmHWM:")
	if !ok {
		check(fmt.Errorf("no VmHWM in /proc/self/status"))
	}
	fmt.Println(strings.Fields(rest)[0])
}

func run(tb testing.TB, name string, args ...string) time.Duration {
	d, _ := timed(tb, exec.Command(name, args...))
	return d
}

// child gives the time of one operation as a process, and its peak in MiB.
func child(tb testing.TB, op, file string) (time.Duration, float64) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FIRMSEAL_BENCH_CHILD="+op, "FIRMSEAL_BENCH_FILE="+file)
	d, out := timed(tb, cmd)
	kib, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		tb.Fatalf("the child says %q of its memory", out)
	}
	return d, float64(kib) / 1024
}

func timed(tb testing.TB, cmd *exec.Cmd) (time.Duration, string) {
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	if err := cmd.Run(); err != nil {
		tb.Fatalf("%v: %v\n%s", cmd.Args, err, errs.String())
	}
	return time.Since(began), out.String()
}

// work is what the child process does: one format operation on a file, with a
// key of its own.
func work(op, path string) {
	f, err := os.Open(path)
	check(err)
	defer f.Close()
	st, err := f.Stat()
	check(err)
	src := fileSource{f, st.Size()}
	ctx := context.Background()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	spki := marshalSPKI(&k.PublicKey)
	pub := []image.PublicMaterial{{Role: "image", Name: "bench", SPKI: spki}}
	var form image.Format = raw.New()
	var opts image.Options
	if strings.HasPrefix(op, "mcuboot") {
		form, opts = mcuboot.New(), image.Options(`{"header-size":32,"pad-header":true,"slot-size":1073741824,"align":8,"overwrite-only":true,"version":"1.0.0","security-counter":1}`)
	}
	if op == "raw-verify" {
		h := sha256.New() // a signature over other bytes: the verifier reads the file all the same
		sig, err := ecdsa.SignASN1(rand.Reader, k, h.Sum(nil))
		check(err)
		_, err = form.Verify(ctx, src, image.Trust{Keys: []image.TrustedKey{{SPKI: spki}}, Detached: sig}, image.Profile{})
		check(err)
		return
	}
	s, err := form.Plan(ctx, src, opts, pub)
	check(err)
	reqs, _, err := s.Next(ctx, nil)
	check(err)
	var sigs []image.Signature
	for _, r := range reqs {
		sig, err := ecdsa.SignASN1(rand.Reader, k, r.Input)
		check(err)
		sigs = append(sigs, image.Signature{Slot: r.Slot, Value: sig})
	}
	_, _, err = s.Next(ctx, sigs)
	check(err)
	out, err := os.CreateTemp("", "firmseal-bench-out-*")
	check(err)
	defer os.Remove(out.Name())
	_, err = s.Embed(ctx, out)
	check(err)
	check(out.Close())
}

type fileSource struct {
	*os.File
	size int64
}

func (f fileSource) Size() int64 { return f.size }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// BenchmarkHLog: goal h. Durable appends (record, leaf, tiles, head in one
// commit; second place; signed checkpoint; waited for) against an in-memory log
// of the same leaves, and an inclusion proof with its own verification.
func BenchmarkHLog(b *testing.B) {
	const n = 4096
	for _, callers := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("append/%d", callers), func(b *testing.B) {
			l, d := openLog(b)
			pairs(b, n, func() {
				each(n, callers, func(i int) { appendLeaf(b, l, d, i) })
			}, func() {
				var m memoryLog
				each(n, callers, func(i int) { m.append(b, i) })
			})
		})
	}
	b.Run("proof", func(b *testing.B) {
		l, d := openLog(b)
		each(n, 256, func(i int) { appendLeaf(b, l, d, i) })
		i := int64(0)
		for b.Loop() {
			if _, err := l.Proof(b.Context(), i%n); err != nil {
				b.Fatal(err)
			}
			i += 97
		}
	})
}

func leafOf(i int) firmseal.Leaf {
	return firmseal.Leaf{Type: firmseal.LeafAttempt, Actor: "token:bench", Request: db.NewID(), Record: strings.Repeat("ab", 32), Key: strings.Repeat("cd", 32), Attempt: i%2 + 1}
}

func appendLeaf(tb testing.TB, l *tlog.Log, d *db.DB, i int) {
	var p tlog.Pending
	err := d.Update(context.Background(), func(tx *db.Tx) (err error) {
		p, err = l.Append(tx, leafOf(i))
		return err
	})
	if err == nil {
		_, err = l.Wait(context.Background(), p)
	}
	if err != nil {
		tb.Error(err)
	}
}

// memoryLog is the bare minimum of a log: the hashes, a root and a signature
// for each batch that was waiting.
type memoryLog struct {
	mu     sync.Mutex
	hashes []xtlog.Hash
	n      int64
}

func (m *memoryLog) ReadHashes(idx []int64) ([]xtlog.Hash, error) {
	out := make([]xtlog.Hash, len(idx))
	for i, x := range idx {
		out[i] = m.hashes[x]
	}
	return out, nil
}

func (m *memoryLog) append(tb testing.TB, i int) {
	leaf := leafOf(i)
	data := encodeLeaf(tb, leaf)
	m.mu.Lock()
	defer m.mu.Unlock()
	hs, err := xtlog.StoredHashes(m.n, data, m)
	if err != nil {
		tb.Error(err)
		return
	}
	m.hashes = append(m.hashes, hs...)
	m.n++
}

type bareClient struct {
	url string
	c   *http.Client
}

func bareServer(tb testing.TB) *bareClient {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 4096)
		for {
			if _, err := r.Body.Read(buf); err != nil {
				break
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(buf[:300])
	}))
	tb.Cleanup(s.Close)
	c := s.Client()
	c.Transport.(*http.Transport).MaxIdleConnsPerHost = 256
	return &bareClient{s.URL, c}
}
