package clarifaihttp_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/clarifaihttp"
)

// TestMain runs more parallel tests at a time than there are processors, for
// they do little but wait. When fuzzing, -parallel is the number of processes.
func TestMain(m *testing.M) {
	flag.Parse()
	parallel, fuzz := flag.Lookup("test.parallel"), flag.Lookup("test.fuzz")
	if parallel.Value.String() == parallel.DefValue && fuzz.Value.String() == "" {
		parallel.Value.Set("8")
	}
	m.Run()
}

const (
	ms   = time.Millisecond
	hold = 1010 * ms // W of the default Throttle
)

var (
	quiet  = slog.New(slog.DiscardHandler)
	errOwn = errors.New("own")
)

// newTransport returns a Transport over f with a Throttle.
func newTransport(th *clarifaihttp.Throttle, f roundTripperFunc) *clarifaihttp.Transport {
	return over(f, th)
}

// over returns a Transport over base with a Throttle, which logs nothing.
func over(base http.RoundTripper, th *clarifaihttp.Throttle, opts ...clarifaihttp.Option) *clarifaihttp.Transport {
	return clarifaihttp.NewTransport(base, append([]clarifaihttp.Option{clarifaihttp.WithThrottle(th), clarifaihttp.WithLogger(quiet)}, opts...)...)
}

// quick is a Throttle whose pauses are short enough for real time.
func quick() *clarifaihttp.Throttle {
	return &clarifaihttp.Throttle{Limit: 1000, Window: ms, Backoff: ms, MaxBackoff: ms, Transit: ms}
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

const (
	okBody        = `{"status":{"code":10000,"description":"Ok"}}`
	throttledBody = `{"status":{"code":"CONN_THROTTLED","description":"Making too many requests","details":"exceeded limit of %d requests per second","req_id":"4d1f"}}`
)

func respond(status int, body string) *http.Response {
	return &http.Response{
		StatusCode:    status,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)),
	}
}

func ok() *http.Response { return respond(http.StatusOK, okBody) }

// throttled is an answer as Clarifai's, with Retry-After if that is not empty.
func throttled(retryAfter string) *http.Response {
	resp := respond(http.StatusTooManyRequests, fmt.Sprintf(throttledBody, 15))
	if retryAfter != "" {
		resp.Header.Set("Retry-After", retryAfter)
	}
	return resp
}

// sent fires the hooks of httptrace as net/http does for a request that is
// written at once.
func sent(req *http.Request) {
	connected(req)
	httptrace.ContextClientTrace(req.Context()).WroteRequest(httptrace.WroteRequestInfo{})
}

// connected fires the hooks of httptrace as net/http does before it writes.
func connected(req *http.Request) {
	trace := httptrace.ContextClientTrace(req.Context())
	trace.GetConn("server:443")
	trace.GotConn(httptrace.GotConnInfo{})
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		// Several goroutines of a bubble that receive from expired timers at the
		// same time crash the race detector of Go 1.26.
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func get(ctx context.Context, t testing.TB) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// A timeline records when things happened, since it was made.
type timeline struct {
	begin time.Time
	mu    sync.Mutex
	at    []time.Duration
}

func newTimeline() *timeline { return &timeline{begin: time.Now()} }

// mark records an event and returns its number, from 0.
func (l *timeline) mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = append(l.at, time.Since(l.begin))
	return len(l.at) - 1
}

// len returns the number of events.
func (l *timeline) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.at)
}

// peak returns the most events in less than a second.
func (l *timeline) peak() (most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Sorted(slices.Values(l.at))
	for i, j := 0, 0; i < len(at); i++ {
		for at[i]-at[j] >= time.Second {
			j++
		}
		most = max(most, i-j+1)
	}
	return most
}

func (l *timeline) check(t *testing.T, what string, want ...time.Duration) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.at)
	if !slices.Equal(l.at, want) {
		t.Errorf("%s at %v, want %v", what, l.at, want)
	}
}

// times returns n times d.
func times(n int, d time.Duration) []time.Duration { return slices.Repeat([]time.Duration{d}, n) }

// all sends n requests at once and returns when all are done.
func all(t *testing.T, rt http.RoundTripper, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			resp, err := rt.RoundTrip(get(t.Context(), t))
			if err != nil {
				t.Error(err)
				return
			}
			if resp.StatusCode != http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
			resp.Body.Close()
		})
	}
	wg.Wait()
}

// body reads and closes a response's body.
func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// cancelable has Request.Cancel canceled by the function that it returns.
func cancelable(req *http.Request) (*http.Request, func()) {
	cancel := make(chan struct{})
	//lint:ignore SA1019 it works as long as net/http has it
	req.Cancel = cancel
	return req, func() { close(cancel) }
}

// cancelAfter has Request.Cancel canceled after d.
func cancelAfter(req *http.Request, d time.Duration) {
	_, cancel := cancelable(req)
	time.AfterFunc(d, cancel)
}

// watchLateness watches how late goroutines run. The function that it returns
// ends that and returns the worst.
func watchLateness() func() time.Duration {
	var late time.Duration
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			due := time.Now().Add(5 * ms)
			select {
			case <-done:
				return
			case <-time.After(5 * ms):
				late = max(late, time.Since(due))
			}
		}
	}()
	return func() time.Duration { close(done); <-ended; return late }
}

// judge returns what t fails with, unless the machine was too busy for a test of
// what holds within transit: a server in this process that is late by the order
// of that counts late what has arrived in time.
func judge(t *testing.T, late, transit time.Duration) func(format string, args ...any) {
	if late > transit/4 {
		return t.Skipf
	}
	return t.Errorf
}

// eventually fails t if wrong goes on to tell what is wrong.
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		s := wrong()
		if s == "" {
			return
		}
		if time.Now().After(end) {
			t.Error(s)
			return
		}
		time.Sleep(5 * ms)
	}
}
