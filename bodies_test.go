package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// TestEachBodyIsClosedOnce has a request with a body end in all ways.
func TestEachBodyIsClosedOnce(t *testing.T) {
	type base = func(n int, req *http.Request) (*http.Response, error)
	type until = func(context.Context) (context.Context, context.CancelFunc)
	// sends does what net/http does with a body.
	sends := func(req *http.Request) string {
		b, _ := io.ReadAll(req.Body)
		req.Body.Close()
		return string(b)
	}
	throttles := func(times int) base {
		return func(n int, req *http.Request) (*http.Response, error) {
			switch got := sends(req); {
			case n < times:
				return throttled(""), nil
			case got != content:
				return respond(http.StatusBadRequest, got), nil
			}
			return ok(), nil
		}
	}
	fails := func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return nil, errOwn
	}
	within := func(d time.Duration) until {
		return func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, d) }
	}
	canceled := func(d time.Duration) until {
		return func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			if d == 0 {
				cancel(errOwn)
			}
			timer := time.AfterFunc(d, func() { cancel(errOwn) })
			return ctx, func() { timer.Stop(); cancel(nil) }
		}
	}
	limiter := func(f func() error) clarifaihttp.Option {
		return clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Limiter: limiterFunc(f)})
	}
	getBody := func(f func() (io.ReadCloser, error)) func(*http.Request) {
		return func(req *http.Request) {
			if req.GetBody != nil {
				req.GetBody = f
			}
		}
	}
	for _, tt := range []struct {
		name   string
		base   base
		opt    clarifaihttp.Option
		ctx    until
		cancel time.Duration // until Request.Cancel is closed
		hooks  *httptrace.ClientTrace
		busy   bool // another request holds the only slot
		alter  func(*http.Request)
		want   string // status, error or panic
		lack   string // the same without GetBody, if it is another
	}{
		{name: "success", base: throttles(0), want: "200"},
		{name: "replay", base: throttles(2), want: "200"},
		{name: "no replay", base: throttles(2), opt: clarifaihttp.WithReplayBuffer(0), want: "200", lack: "429"},
		{name: "as long as the buffer", base: throttles(2), opt: clarifaihttp.WithReplayBuffer(len(content)), want: "200"},
		{name: "longer than the buffer", base: throttles(2), opt: clarifaihttp.WithReplayBuffer(len(content) - 1), want: "200", lack: "429"},
		{name: "retries suffice", base: throttles(2), opt: clarifaihttp.WithMaxRetries(2), want: "200"},
		{name: "retries spent", base: throttles(9), opt: clarifaihttp.WithMaxRetries(2), want: "429"},
		{name: "no retries", base: throttles(9), opt: clarifaihttp.WithMaxRetries(0), want: "429"},
		{name: "untouched", base: throttles(9), want: "429",
			opt: clarifaihttp.WithThrottleFunc(func(*http.Request) *clarifaihttp.Throttle { return nil })},

		{name: "canceled before", base: throttles(0), ctx: canceled(0), want: "own"},
		{name: "canceled in line", base: throttles(0), busy: true, ctx: canceled(500 * ms), want: "own"},
		{name: "refused for its deadline", base: throttles(0), busy: true, ctx: within(500 * ms), want: "deadline"},
		{name: "Request.Cancel in line", base: throttles(0), busy: true, cancel: 500 * ms, want: "canceled"},
		{name: "canceled before a retry", base: throttles(2), ctx: canceled(5 * time.Second), want: "own"},
		{name: "retry refused for its deadline", base: throttles(2), ctx: within(5 * time.Second), want: "429"},
		{name: "second retry refused for its deadline", base: throttles(2), ctx: within(20 * time.Second), want: "429"},
		{name: "Request.Cancel before a retry", base: throttles(2), cancel: 5 * time.Second, want: "canceled"},

		{name: "Limiter fails", base: throttles(0), opt: limiter(func() error { return errOwn }), want: "own"},
		{name: "Limiter panics", base: throttles(0), opt: limiter(func() error { panic("own") }), want: "panic"},
		{name: "invalid Throttle", base: throttles(0), want: "panic",
			opt: clarifaihttp.WithThrottleFunc(func(*http.Request) *clarifaihttp.Throttle { return &clarifaihttp.Throttle{Limit: -1} })},
		{name: "logger panics", base: throttles(2), opt: clarifaihttp.WithLogger(slog.New(panicHandler{})), want: "panic"},
		{name: "GetBody panics", want: "panic", lack: "200", base: throttles(2),
			alter: getBody(func() (io.ReadCloser, error) { panic("own") })},
		{name: "GetBody fails", want: "429", lack: "200", base: throttles(2),
			alter: getBody(func() (io.ReadCloser, error) { return nil, errOwn })},
		{name: "GetBody returns nothing", want: "429", lack: "200", base: throttles(2),
			alter: getBody(func() (io.ReadCloser, error) { return nil, nil })},

		{name: "base fails", want: "own", base: func(_ int, req *http.Request) (*http.Response, error) { return fails(req) }},
		{name: "base fails amid the body", want: "own", base: func(_ int, req *http.Request) (*http.Response, error) {
			req.Body.Read(make([]byte, 4))
			req.Body.Close() // net/http closes twice at times
			return fails(req)
		}},
		{name: "base fails at a retry", want: "own", base: func(n int, req *http.Request) (*http.Response, error) {
			if n == 0 {
				return throttles(1)(n, req)
			}
			return fails(req)
		}},
		{name: "base does not close", want: "own", base: func(int, *http.Request) (*http.Response, error) { return nil, errOwn }},
		{name: "base returns nothing", want: "nil *Response", base: func(int, *http.Request) (*http.Response, error) { return nil, nil }},
		{name: "base panics amid the body", want: "panic", base: func(_ int, req *http.Request) (*http.Response, error) {
			req.Body.Read(make([]byte, 4))
			panic("own")
		}},
		{name: "GetConn panics", want: "panic", base: func(_ int, req *http.Request) (*http.Response, error) { connected(req); return ok(), nil },
			hooks: &httptrace.ClientTrace{GetConn: func(string) { panic("own") }}},
		{name: "GotConn panics", want: "panic", base: func(_ int, req *http.Request) (*http.Response, error) { connected(req); return ok(), nil },
			hooks: &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { panic("own") }}},

		{name: "throttled while the upload goes on", want: "200", base: func(n int, req *http.Request) (*http.Response, error) {
			if n == 0 {
				req.Body.Read(make([]byte, 4))
				time.AfterFunc(100*ms, func() {
					req.Body.Read(make([]byte, 4))
					req.Body.Close()
				})
				return throttled(""), nil
			}
			return throttles(0)(n, req)
		}},
		{name: "answered while the upload goes on", want: "200", base: func(_ int, req *http.Request) (*http.Response, error) {
			req.Body.Read(make([]byte, 4))
			time.AfterFunc(time.Minute, func() { sends(req) })
			return ok(), nil
		}},
		{name: "throttled while the upload stalls", want: "200", lack: "429", base: func(n int, req *http.Request) (*http.Response, error) {
			if n == 0 {
				req.Body.Read(make([]byte, 4))
				time.AfterFunc(time.Minute, func() { req.Body.Close() })
				return throttled(""), nil
			}
			return throttles(0)(n, req)
		}},
		{name: "throttled while the second upload stalls", want: "200", base: func(n int, req *http.Request) (*http.Response, error) {
			if n == 1 { // all is kept
				req.Body.Read(make([]byte, 4))
				time.AfterFunc(time.Minute, func() { req.Body.Close() })
				return throttled(""), nil
			}
			return throttles(1)(n, req)
		}},
		{name: "throttled although the body failed", want: "200", lack: "429", base: throttles(1), alter: func(req *http.Request) {
			b := req.Body.(*countedBody)
			b.Reader = io.MultiReader(io.LimitReader(b.Reader, 5), iotest.ErrReader(errOwn))
		}},
	} {
		for _, kind := range []string{"GetBody", "known length", "unknown length"} {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					bodies := &registry{t: t}
					n := 0
					base := roundTripperFunc(func(req *http.Request) (*http.Response, error) {
						if req.Body == nil {
							return ok(), nil
						}
						n++
						resp, err := tt.base(n-1, req)
						if resp != nil {
							resp.Body = bodies.add("response", resp.Body)
						}
						return resp, err
					})
					th := new(clarifaihttp.Throttle)
					if tt.busy {
						th.Limit = 1
					}
					var opts []clarifaihttp.Option
					if tt.opt != nil {
						opts = append(opts, tt.opt)
					}
					rt := over(base, th, opts...)
					if tt.busy {
						all(t, rt, 1)
					}

					ctx, stop := t.Context(), context.CancelFunc(func() {})
					if tt.ctx != nil {
						ctx, stop = tt.ctx(ctx)
					}
					if tt.hooks != nil {
						ctx = httptrace.WithClientTrace(ctx, tt.hooks)
					}
					req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://server/", bodies.add("request", strings.NewReader(content)))
					if kind != "unknown length" {
						req.ContentLength = int64(len(content))
					}
					if kind == "GetBody" {
						req.GetBody = func() (io.ReadCloser, error) { return bodies.add("request", strings.NewReader(content)), nil }
					}
					if tt.cancel != 0 {
						cancelAfter(req, tt.cancel)
					}
					if tt.alter != nil {
						tt.alter(req)
					}
					want := tt.want
					if kind != "GetBody" && tt.lack != "" {
						want = tt.lack
					}
					if got := ending(rt, req); !strings.Contains(got, want) {
						t.Errorf("got %s, want %s", got, want)
					}
					stop()
					time.Sleep(time.Hour) // uploads end, slots are free
					bodies.check()
					if s := th.Stats(); s.Held != 0 || s.Waiting != 0 {
						t.Errorf("left behind: %+v", s)
					}
				})
			})
		}
	}
}

// ending sends req and returns the status, and what is wrong with the body, or
// the error or the panic.
func ending(rt http.RoundTripper, req *http.Request) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprint("panic: ", p)
		}
	}()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	want := okBody
	if resp.StatusCode == http.StatusTooManyRequests {
		want = fmt.Sprintf(throttledBody, 15)
	}
	if err != nil || string(b) != want {
		return fmt.Sprintf("status %d with %q, %v", -resp.StatusCode, b, err)
	}
	return fmt.Sprint("status ", resp.StatusCode)
}

type panicHandler struct{ slog.Handler }

func (panicHandler) Enabled(context.Context, slog.Level) bool  { return true }
func (panicHandler) Handle(context.Context, slog.Record) error { panic("own") }

// A pattern is n bytes, each of which depends on where it is.
type pattern struct{ at, n int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.n {
		return 0, io.EOF
	}
	n := copy(b[:min(int64(len(b)), p.n-p.at)], patternPages[p.at%(int64(len(patternPages))/2):])
	p.at += int64(n)
	return n, nil
}

var patternPages = func() []byte {
	page := make([]byte, 32003) // no power of two, so that a page that is left out shows
	for i := range page {
		page[i] = byte(i*i) ^ byte(i>>7)
	}
	return append(page, page...)
}()

// TestWholeOrNothing has bodies of all sizes throttled before, while and after
// the server reads them. It must never take one for whole that is not.
func TestWholeOrNothing(t *testing.T) {
	t.Parallel()
	const buffer = 1 << 20 // the default
	for _, proto := range []string{plainHTTP1, http2} {
		for _, read := range []string{"nothing", "half", "all"} {
			for _, size := range []int64{0, 1, 4096, 64 << 10, buffer, buffer + 1, 64 << 20} {
				for _, kind := range []string{"GetBody", "known", "unknown"} {
					if size > 2*buffer && (kind != "GetBody" || read == "half" || read == "all" && proto == http2) {
						continue // takes long, and is handed back as a byte more than the buffer is
					}
					t.Run(fmt.Sprintf("%s/%s read/%d bytes/%s", proto, read, size, kind), func(t *testing.T) {
						t.Parallel()
						testWholeOrNothing(t, proto, read, size, kind, kind == "GetBody" || size <= buffer)
					})
				}
			}
		}
	}
}

func testWholeOrNothing(t *testing.T, proto, read string, size int64, kind string, replayable bool) {
	want := crc32.NewIEEE()
	io.Copy(want, &pattern{n: size})
	var mu sync.Mutex
	requests := 0
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests++
		first := requests == 1
		mu.Unlock()
		var n int64
		var err error
		sum := crc32.NewIEEE()
		switch {
		case !first || read == "all":
			n, err = io.Copy(sum, r.Body)
		case read == "half":
			n, err = io.CopyN(sum, r.Body, size/2)
			if err == nil && n < size {
				err = errors.New("not read further")
			}
		default:
			err = errors.New("not read")
		}
		if err == nil && (n != size || sum.Sum32() != want.Sum32()) {
			t.Errorf("the server took %d bytes of %d for whole, or others", n, size)
		}
		if err != nil && !first {
			t.Errorf("the server got %d bytes of %d, and %v", n, size, err)
		}
		if first {
			writeThrottled(w)
		}
	}))
	startServer(srv, proto)
	defer srv.Close()

	bodies := &registry{t: t}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL, bodies.add("request", &pattern{n: size}))
	if kind != "unknown" {
		req.ContentLength = size
	}
	if kind == "GetBody" {
		req.GetBody = func() (io.ReadCloser, error) { return bodies.add("request", &pattern{n: size}), nil }
	}
	lateness := watchLateness()
	resp, err := over(srv.Client().Transport, quick()).RoundTrip(req)
	late := lateness()
	if err != nil {
		t.Fatal(err)
	}
	wantStatus, wantBody := http.StatusOK, ""
	// One that is too long is handed back, unless as much as fits was read and
	// the rest can be.
	if !replayable && (kind != "unknown" || read == "all" || resp.StatusCode != http.StatusOK) {
		wantStatus, wantBody = http.StatusTooManyRequests, fmt.Sprintf(throttledBody, 15)
	}
	if got := body(t, resp); resp.StatusCode != wantStatus || got != wantBody {
		// Too long an upload of the first attempt has it handed back, too.
		judge(t, late, time.Second)("status %d, %q; want %d", resp.StatusCode, got, wantStatus)
	}
	bodies.checkSoon()
}

// TestWritesAsTheBaseDoes counts the writes to the connection: net/http sends a
// body in memory together with the header.
func TestWritesAsTheBaseDoes(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(echo))
	defer srv.Close()
	writes := func(over func(http.RoundTripper) http.RoundTripper) (n int32) {
		var count atomic.Int32
		base := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return &countingConn{conn, &count}, err
		}}
		defer base.CloseIdleConnections()
		resp, err := (&http.Client{Transport: over(base)}).Post(srv.URL, "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, resp); got != "hello" {
			t.Errorf("got %q", got)
		}
		return count.Load()
	}
	bare := writes(func(base http.RoundTripper) http.RoundTripper { return base })
	ours := writes(func(base http.RoundTripper) http.RoundTripper { return clarifaihttp.NewTransport(base) })
	if bare != ours {
		t.Errorf("%d writes, %d by the base alone", ours, bare)
	}
}

type countingConn struct {
	net.Conn
	writes *atomic.Int32
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}
