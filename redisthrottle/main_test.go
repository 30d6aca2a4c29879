package redisthrottle_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/redisthrottle"
	"example.com/clarifaihttp/redisthrottle/internal/redisserver"
	"example.com/clarifaihttp/throttletest"
)

const (
	ms = time.Millisecond

	// gone is Limiter's D with the default settings.
	gone = 3*time.Second + 250*ms + 1010*ms
)

// TestMain runs the tests, or one of the processes that they start.
func TestMain(m *testing.M) {
	if s := os.Getenv("REDISTHROTTLE_WORKER"); s != "" {
		var w worker
		if err := json.Unmarshal([]byte(s), &w); err != nil {
			panic(err)
		}
		w.run()
		return
	}
	redis.SetLogger(silentLogger{})
	slog.SetDefault(slog.New(slog.DiscardHandler))
	flag.Parse()
	flag.Set("test.parallel", "8") // they mostly wait
	os.Exit(m.Run())
}

type silentLogger struct{}

func (silentLogger) Printf(context.Context, string, ...any) {}

// A worker is a process that sends requests until its standard input ends.
type worker struct {
	Number   int
	URL      string
	Redis    string // address; "": none
	Workers  int
	Limit    int // Throttle.Limit
	Fallback int
	Backoff  time.Duration // Throttle.Backoff
	Log      bool
}

func (w worker) run() {
	redis.SetLogger(silentLogger{})
	slog.SetDefault(slog.New(slog.DiscardHandler))
	if w.Log {
		slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	// Only answers prove arrivals: so the server's count is exact, however late a
	// busy machine has it read a request.
	throttle := &clarifaihttp.Throttle{Limit: w.Limit, Backoff: w.Backoff, Transit: -1}
	if w.Redis != "" {
		client := redis.NewClient(&redis.Options{Addr: w.Redis})
		throttle.Limiter = dated{redisthrottle.New(client, redisthrottle.Config{Fallback: w.Fallback})}
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.MaxIdleConnsPerHost = w.Workers
	client := &http.Client{Transport: clarifaihttp.NewTransport(dating{base}, clarifaihttp.WithThrottle(throttle))}
	for range w.Workers {
		go func() {
			for {
				ctx := context.WithValue(context.Background(), permitted{}, new(atomic.Int64))
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.URL, nil)
				if err != nil {
					panic(err)
				}
				req.Header.Set("Process", strconv.Itoa(w.Number))
				resp, err := client.Do(req)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					time.Sleep(100 * ms)
					continue
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
	}
	io.Copy(io.Discard, os.Stdin)
}

// permitted is the key of a request's *atomic.Int64: when the Limiter let it go,
// in milliseconds.
type permitted struct{}

// dated notes when its Limiter lets a request go.
type dated struct{ *redisthrottle.Limiter }

func (d dated) Wait(ctx context.Context) error { return d.Limiter.Wait(datedContext{ctx}) }

// datedContext is asked for its error just before each decision. So a process that
// is frozen after one cannot date it later.
type datedContext struct{ context.Context }

func (d datedContext) Err() error {
	if at, ok := d.Value(permitted{}).(*atomic.Int64); ok {
		at.Store(time.Now().UnixMilli())
	}
	return d.Context.Err()
}

// dating tells the server that instant.
type dating struct{ http.RoundTripper }

func (d dating) RoundTrip(req *http.Request) (*http.Response, error) {
	if at := req.Context().Value(permitted{}).(*atomic.Int64).Load(); at > 0 {
		req = req.Clone(req.Context())
		req.Header.Set("Permitted", strconv.FormatInt(at, 10))
	}
	return d.RoundTripper.RoundTrip(req)
}

// start starts w's process. It ends with the test.
func (w worker) start(t *testing.T) *exec.Cmd {
	t.Helper()
	settings, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REDISTHROTTLE_WORKER="+string(settings), "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
	})
	return cmd
}

// An account is a server that counts all requests by each of the algorithms.
type account struct {
	*httptest.Server
	jitter time.Duration // each way: uniform between 0 and this
	frozen time.Duration // from permission to arrival: the process was frozen between
	noise  *noise

	handlers []*throttletest.Handler // the first one answers
	mu       sync.Mutex
	served   map[string]int // per process
	times    []time.Time
}

func newAccount(t *testing.T, jitter, halt time.Duration) *account {
	a := &account{jitter: jitter, frozen: 3 * time.Second, noise: listen(t), served: make(map[string]int)}
	for _, algorithm := range []throttletest.Algorithm{throttletest.SlidingLog, throttletest.FixedWindow, throttletest.TokenBucket, throttletest.GCRA} {
		a.handlers = append(a.handlers, &throttletest.Handler{Algorithm: algorithm, Halt: halt})
	}
	a.handlers[0].Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.served[r.Header.Get("Process")]++
		a.times = append(a.times, time.Now())
		a.mu.Unlock()
		time.Sleep(50 * ms)
		io.WriteString(w, "{}")
	})
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *account) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	time.Sleep(rand.N(a.jitter + 1))
	if at, err := strconv.ParseInt(r.Header.Get("Permitted"), 10, 64); err == nil && time.Since(time.UnixMilli(at)) > a.frozen {
		return // the doc says that such requests come on top
	}
	for _, h := range a.handlers[1:] {
		h.Allow(time.Now())
	}
	a.handlers[0].ServeHTTP(w, r)
	time.Sleep(rand.N(a.jitter + 1))
}

// total returns how many requests were served.
func (a *account) total() int { return a.handlers[0].Stats().Served }

// each returns a copy of the counts per process.
func (a *account) each() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.served)
}

// rate measures the requests per second over d, in whole rounds of 15: tokens
// may go round in a bunch.
func (a *account) rate(d time.Duration) float64 {
	n := a.total()
	time.Sleep(d)
	a.mu.Lock()
	defer a.mu.Unlock()
	rounds := (len(a.times) - n - 1) / 15
	if rounds < 1 {
		return float64(len(a.times)-n) / d.Seconds()
	}
	return float64(rounds*15) / a.times[n+rounds*15].Sub(a.times[n]).Seconds()
}

// A noise tells how busy the machine is: a busy one proves nothing about speed.
type noise struct{ late atomic.Int64 }

func listen(t testing.TB) *noise {
	var n noise
	go func() {
		for t.Context().Err() == nil {
			begin := time.Now()
			time.Sleep(5 * ms)
			n.late.Store(max(n.late.Load(), int64(time.Since(begin)-5*ms)))
		}
	}()
	return &n
}

// slow fails the test, unless the machine was too busy to tell.
func (n *noise) slow(t testing.TB, format string, args ...any) {
	t.Helper()
	n.fail(t, 40*ms, format, args...)
}

// exact fails the test for what is true of an idle machine alone, if it was one.
func (n *noise) exact(t testing.TB, format string, args ...any) {
	t.Helper()
	n.fail(t, 5*ms, format, args...)
}

// fail fails the test if no goroutine woke up later than most.
func (n *noise) fail(t testing.TB, most time.Duration, format string, args ...any) {
	t.Helper()
	if late := time.Duration(n.late.Load()); late > most {
		t.Logf(format+", but goroutines woke up to %v late", append(args, late)...)
		return
	}
	t.Errorf(format, args...)
}

// await waits until another n requests have been served.
func (a *account) await(t *testing.T, n int, within time.Duration) {
	t.Helper()
	n += a.total()
	for end := time.Now().Add(within); a.total() < n; time.Sleep(5 * ms) {
		if time.Now().After(end) {
			t.Fatalf("no %d requests within %v", n, within)
		}
	}
}

// check fails the test if the limit was exceeded, as any algorithm counts. A
// request counts at an instant before its answer, and the processes take nothing
// but answers for arrivals. So a slow machine cannot fail it.
func (a *account) check(t *testing.T) {
	t.Helper()
	if s := a.handlers[0].Stats(); s.Peak > 15 {
		t.Errorf("%d requests in one second", s.Peak)
	}
	for i, h := range a.handlers {
		if s := h.Stats(); s.Throttled > 0 {
			t.Errorf("algorithm %d: %+v", i, s)
		}
	}
}

func startRedis(t *testing.T, options ...string) *redisserver.Server {
	t.Helper()
	s, err := redisserver.Start(options...)
	if err == redisserver.ErrMissing {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func connect(t *testing.T, addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { c.Close() })
	return c
}
