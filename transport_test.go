package clarifaihttp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// throttles is a server that throttles the first n requests with Retry-After: 0
// and echoes the bodies of the others.
func throttles(t *testing.T, n int32) (srv *httptest.Server, requests *atomic.Int32) {
	requests = new(atomic.Int32)
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if requests.Add(1) <= n {
			writeThrottled(w)
			return
		}
		w.Write(b)
	}))
	t.Cleanup(srv.Close)
	return srv, requests
}

// TestConnectionIsUsedAgain has throttles free their connections.
func TestConnectionIsUsedAgain(t *testing.T) {
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(nil)
	var requests atomic.Int32
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) <= 3 {
			w.WriteHeader(http.StatusTooManyRequests)
			w.Write(bytes.Repeat([]byte("slow down "), 2000)) // more than is looked at, less than is drained
		}
	})
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	rt := over(srv.Client().Transport, quick())
	resp, err := (&http.Client{Transport: rt}).Get(srv.URL)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for %d attempts, want 1", n, requests.Load())
	}
}

// TestVirtualTime has the real net/http on both sides of a pause that takes no
// time.
func TestVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := new(throttletest.Handler)
		server := throttletest.NewServer(handler)
		defer server.Close()
		handler.HaltFor(0)

		client := server.Client()
		client.Transport = clarifaihttp.NewTransport(client.Transport, clarifaihttp.WithLogger(quiet))
		begin := time.Now()
		resp, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		if body(t, resp); resp.StatusCode != 200 || time.Since(begin) != 15*time.Second {
			t.Errorf("status %d after %v, want 200 after 15s", resp.StatusCode, time.Since(begin))
		}
	})
}

func TestThrottleBodyIsKeptInMemory(t *testing.T) {
	// The retry is refused, so that the throttle is handed back out of memory.
	for _, tt := range []struct {
		name string
		body io.Reader
		want int
		err  error
	}{
		{"whole", strings.NewReader(strings.Repeat("x", 64<<10)), 64 << 10, nil},
		{"too long", strings.NewReader(strings.Repeat("x", 64<<10+1)), 64 << 10, io.ErrUnexpectedEOF},
		{"broken", io.MultiReader(strings.NewReader("xyz"), iotest.ErrReader(io.ErrClosedPipe)), 3, io.ErrClosedPipe},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				starts := newTimeline()
				rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
					if starts.mark() == 1 { // extends the pause
						time.Sleep(5 * time.Second)
						return throttled(""), nil
					}
					time.Sleep(ms)
					return &http.Response{StatusCode: 429, Header: http.Header{}, Body: io.NopCloser(tt.body), ContentLength: -1}, nil
				})
				ctx, cancel := context.WithTimeout(t.Context(), 17*time.Second)
				defer cancel()
				var wg sync.WaitGroup
				wg.Go(func() {
					resp, err := rt.RoundTrip(get(ctx, t))
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					if len(b) != tt.want || err != tt.err {
						t.Errorf("%d bytes, %v; want %d, %v", len(b), err, tt.want, tt.err)
					}
				})
				synctest.Wait()
				wg.Go(func() { rt.RoundTrip(get(ctx, t)) })
				wg.Wait()
			})
		})
	}
}

// TestStalledThrottle has the rest of a throttled response never come: what came
// tells enough.
func TestStalledThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := newTimeline()
		server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if starts.mark() > 0 {
				io.WriteString(w, okBody)
				return
			}
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprintf(w, throttledBody[:len(throttledBody)-1], 15)
			http.NewResponseController(w).Flush()
			<-req.Context().Done()
		}))
		defer server.Close()
		th := new(clarifaihttp.Throttle)
		served(t, together(t.Context(), over(server.Client().Transport, th), server.URL, 1), 15*time.Second)
		starts.check(t, "starts", 0, 15*time.Second)
		if s := th.Stats(); s.Pauses != 1 {
			t.Errorf("%+v, want a pause of the account", s)
		}
	})
}

func TestBaseMisbehaves(t *testing.T) {
	own := errors.New("own")
	closed := false
	closer := struct {
		io.Reader
		io.Closer
	}{strings.NewReader(""), closeFunc(func() { closed = true })}
	for _, tt := range []struct {
		name   string
		method string
		resp   *http.Response
		err    error
		want   string // of the error; empty: none
	}{
		{name: "neither", want: "nil *Response"},
		{name: "both", resp: &http.Response{StatusCode: 200, Body: closer}, err: own, want: "own"},
		{name: "nil body", resp: &http.Response{StatusCode: 200}},
		{name: "nil body of unknown length", resp: &http.Response{StatusCode: 200, ContentLength: -1}},
		{name: "nil body of an answer to HEAD", method: "HEAD", resp: &http.Response{StatusCode: 200, ContentLength: 7}},
		{name: "nil body with content", resp: &http.Response{StatusCode: 200, ContentLength: 7}, want: "content length 7 but a nil Body"},
		{name: "nil body of a throttle", resp: &http.Response{StatusCode: 429}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				th := new(clarifaihttp.Throttle)
				rt := over(roundTripperFunc(func(*http.Request) (*http.Response, error) { return tt.resp, tt.err }), th, clarifaihttp.WithMaxRetries(0))
				b := newBody(t, "x")
				req, err := http.NewRequest(tt.method, "http://server/", b)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := rt.RoundTrip(req)
				if (resp == nil) == (err == nil) {
					t.Errorf("got %v and %v", resp, err)
				}
				switch {
				case tt.want == "" && (err != nil || body(t, resp) != ""):
					t.Errorf("got %v and %v, want an empty body", resp, err)
				case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
					t.Errorf("error %v, want one that says %q", err, tt.want)
				case tt.want != "":
					b.check()
				}
				if tt.name == "both" && !closed {
					t.Error("the response beside an error was not closed")
				}
				time.Sleep(250*ms + hold)
				if s := th.Stats(); s.Held != 0 {
					t.Errorf("%d slots held", s.Held)
				}
			})
		})
	}
}

type closeFunc func()

func (f closeFunc) Close() error {
	f()
	return nil
}

func TestPanicLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := new(clarifaihttp.Throttle)
		for _, rt := range []http.RoundTripper{
			newTransport(th, func(*http.Request) (*http.Response, error) { panic("own") }),
			clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottleFunc(func(*http.Request) *clarifaihttp.Throttle { panic("own") })),
		} {
			b := newBody(t, "x")
			req, _ := http.NewRequest(http.MethodPost, "http://server/", b)
			func() {
				defer func() {
					if recover() != "own" {
						t.Error("no panic")
					}
				}()
				rt.RoundTrip(req)
			}()
			b.check()
		}
		time.Sleep(250*ms + hold)
		if s := th.Stats(); s.Held != 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestNilURL(t *testing.T) {
	b := newBody(t, "x")
	resp, err := clarifaihttp.NewTransport(nil).RoundTrip(&http.Request{Body: b})
	if resp != nil || err == nil || !strings.HasPrefix(err.Error(), "clarifaihttp: ") {
		t.Errorf("got %v, %v", resp, err)
	}
	b.check()
}

func TestThrottleFunc(t *testing.T) {
	var seen []*http.Request
	base := roundTripperFunc(func(req *http.Request) (*http.Response, error) {
		seen = append(seen, req)
		return throttled(""), nil
	})
	th := new(clarifaihttp.Throttle)
	rt := clarifaihttp.NewTransport(base, clarifaihttp.WithMaxRetries(0), clarifaihttp.WithLogger(quiet),
		clarifaihttp.WithThrottleFunc(func(req *http.Request) *clarifaihttp.Throttle {
			if req.URL.Host == "api.clarifai.com" {
				return th
			}
			return nil
		}))
	for _, host := range []string{"example.com", "api.clarifai.com"} {
		req, _ := http.NewRequest(http.MethodGet, "http://"+host, nil)
		if _, err := rt.RoundTrip(req); err != nil {
			t.Fatal(err)
		}
		if untouched := seen[len(seen)-1] == req; untouched != (host == "example.com") {
			t.Errorf("%s: the base got the caller's request: %v", host, untouched)
		}
	}
	if s := th.Stats(); s.Attempts != 1 || s.Throttled != 1 || s.PausedUntil.IsZero() {
		t.Errorf("%+v", s)
	}
}

func TestInvalidOptions(t *testing.T) {
	panics(t, "nil Option", func() { clarifaihttp.NewTransport(nil, nil) })
	panics(t, "WithThrottle", func() { clarifaihttp.WithThrottle(nil) })
	panics(t, "WithThrottleFunc", func() { clarifaihttp.WithThrottleFunc(nil) })
	panics(t, "WithMaxRetries", func() { clarifaihttp.WithMaxRetries(-1) })
	panics(t, "WithReplayBuffer", func() { clarifaihttp.WithReplayBuffer(-1) })
	panics(t, "WithLogger", func() { clarifaihttp.WithLogger(nil) })
}

func TestDefaultTransport(t *testing.T) {
	old := http.DefaultTransport
	defer func() { http.DefaultTransport = old }()
	srv, requests := throttles(t, 1)
	http.DefaultTransport = over(nil, quick())
	resp, err := (&http.Client{}).Post(srv.URL, "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if got := body(t, resp); got != "hello" || requests.Load() != 2 {
		t.Errorf("%q after %d requests", got, requests.Load())
	}
}

func TestCloseIdleConnections(t *testing.T) {
	closed := false
	base := &closesIdle{roundTripperFunc(func(*http.Request) (*http.Response, error) { return nil, errors.New("own") }), &closed}
	client := &http.Client{Transport: clarifaihttp.NewTransport(base)}
	if _, err := client.Get("http://server/"); err == nil {
		t.Error("no error")
	}
	if closed {
		t.Error("a failing call closed idle connections")
	}
	client.CloseIdleConnections()
	if !closed {
		t.Error("CloseIdleConnections did not reach the base")
	}
	clarifaihttp.NewTransport(roundTripperFunc(nil)).CloseIdleConnections() // a base that has none
}

type closesIdle struct {
	http.RoundTripper
	closed *bool
}

func (c *closesIdle) CloseIdleConnections() { *c.closed = true }

func TestLog(t *testing.T) {
	const paused = `level=WARN msg="clarifaihttp: throttled, pausing all requests" host=server code=11005 request_id=4d1f details="exceeded limit of %d requests per second" wait=%v
`
	const over = `level=INFO msg="clarifaihttp: pause is over" host=server
`
	const back = `level=WARN msg="clarifaihttp: throttled response handed back" host=server code=%d request_id=%s reason=%s
`
	limited := func(n int) *http.Response { return respond(429, fmt.Sprintf(throttledBody, n)) }
	for _, tt := range []struct {
		name string
		base func(n int) *http.Response // the nth answer
		n    []int                      // so many requests at once, then, after half an hour, ...
		opts []clarifaihttp.Option
		want string
	}{
		{"one line for each pause", func(n int) *http.Response {
			switch {
			case n < 3: // one begins the pause, the others extend it
				time.Sleep(time.Duration(n+1) * ms)
				return throttled("")
			case n == 3: // the probe
				return throttled("40")
			}
			return ok()
		}, []int{3}, nil, fmt.Sprintf(paused, 15, "15s") + fmt.Sprintf(paused, 15, "40s") + over},
		{"a bare 429 pauses nobody", func(n int) *http.Response {
			if n == 0 {
				return respond(429, "slow down")
			}
			return ok()
		}, []int{1}, nil, ""},
		{"a limit lowered and restored", func(n int) *http.Response {
			if n == 0 {
				return limited(10)
			}
			return ok()
		}, []int{1, 1, 1, 1}, nil, `level=WARN msg="clarifaihttp: limit lowered to what the server names" host=server limit=10
` + fmt.Sprintf(paused, 10, "15s") + over + `level=INFO msg="clarifaihttp: limit restored" host=server limit=15
`},
		{"retries spent", func(int) *http.Response { return throttled("") }, []int{1}, []clarifaihttp.Option{clarifaihttp.WithMaxRetries(0)},
			fmt.Sprintf(paused, 15, "15s") + fmt.Sprintf(back, 11005, "4d1f", `"retries spent"`)},
		{"absurd", func(int) *http.Response { return throttled("1000") }, []int{1}, nil,
			fmt.Sprintf(paused, 15, "1m0s") + fmt.Sprintf(back, 11005, "4d1f", `"Retry-After too long"`)},
		{"refused in line", func(n int) *http.Response {
			if n < 2 {
				return throttled("")
			}
			return ok()
		}, []int{1}, []clarifaihttp.Option{clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Limiter: lateLimiter{new(atomic.Int32)}})},
			fmt.Sprintf(paused, 15, "15s") + fmt.Sprintf(back, 11005, "4d1f", "deadline")},
		{"a bare 429, absurd", func(int) *http.Response {
			resp := respond(429, "")
			resp.Header.Set("Retry-After", "1000")
			return resp
		}, []int{1}, nil, fmt.Sprintf(back, 0, `""`, `"Retry-After too long"`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				handler := slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
					if a.Key == slog.TimeKey {
						return slog.Attr{}
					}
					return a
				}})
				starts := newTimeline()
				rt := clarifaihttp.NewTransport(roundTripperFunc(func(*http.Request) (*http.Response, error) {
					return tt.base(starts.mark()), nil
				}), append(tt.opts, clarifaihttp.WithLogger(slog.New(handler)))...)
				for _, n := range tt.n {
					var wg sync.WaitGroup
					for range n {
						wg.Go(func() {
							if _, err := rt.RoundTrip(get(t.Context(), t)); err != nil {
								t.Error(err)
							}
						})
					}
					wg.Wait()
					time.Sleep(30 * time.Minute)
				}
				if log.String() != tt.want {
					t.Errorf("log\n%swant\n%s", &log, tt.want)
				}
			})
		})
	}
}

func TestLogsToDefault(t *testing.T) {
	old := slog.Default()
	defer slog.SetDefault(old)
	rt := clarifaihttp.NewTransport(roundTripperFunc(func(*http.Request) (*http.Response, error) { return throttled(""), nil }), clarifaihttp.WithMaxRetries(0))
	var log bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil))) // as it is when a line is logged
	if _, err := rt.RoundTrip(get(t.Context(), t)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want 2:\n%s", n, &log)
	}
}
