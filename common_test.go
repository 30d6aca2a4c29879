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

func get(ctx context.Context, t testing.TB) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

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

var errStuck = errors.New("stuck")

// patient returns a context that ends by errStuck after d. It has no deadline,
// for which requests would be refused.
func patient(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithCancelCause(t.Context())
	timer := time.AfterFunc(d, func() { cancel(errStuck) })
	t.Cleanup(func() { timer.Stop(); cancel(nil) })
	return ctx
}

// fetch sends a request and returns the status and body of its answer.
func fetch(ctx context.Context, rt http.RoundTripper, url string, body io.Reader) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return "", err
	}
	if body == nil {
		req.Method = http.MethodGet
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", string(b)), err
}

// An outcomeAfter is what came of a request, after so long.
type outcomeAfter struct {
	text  string
	err   error
	after time.Duration
}

// together sends n GETs at once and returns their fates.
func together(ctx context.Context, rt http.RoundTripper, url string, n int) []outcomeAfter {
	out, begin := make([]outcomeAfter, n), time.Now()
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			text, err := fetch(ctx, rt, url, nil)
			out[i] = outcomeAfter{text, err, time.Since(begin)}
		})
	}
	wg.Wait()
	return out
}

// served checks that all were, within d.
func served(t *testing.T, fates []outcomeAfter, d time.Duration) {
	t.Helper()
	for i, o := range fates {
		if o.err != nil || !strings.HasPrefix(o.text, "200 ") || o.after > d {
			t.Errorf("request %d of %d: %.60q, %v, after %v", i+1, len(fates), o.text, o.err, o.after)
		}
	}
}
