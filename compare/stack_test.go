package main

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/simnet"
	"example.com/clarifaihttp/throttletest"
)

// An account is a server that counts, with net/http on both sides, in virtual
// time.
type account struct {
	*throttletest.Handler
	*httptest.Server
}

// withAccount runs f in virtual time against an account whose API is next.
func withAccount(t *testing.T, next http.HandlerFunc, f func(t *testing.T, a account)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		handler := &throttletest.Handler{Next: next}
		server := throttletest.NewServer(handler)
		defer server.Close()
		f(t, account{handler, server})
	})
}

// kept fails the test if the server saw more than the limit, or other numbers
// of requests than these.
func (a account) kept(t *testing.T, served, throttled int) {
	t.Helper()
	s := a.Stats()
	if s.Peak > limit {
		t.Errorf("%d arrivals in a second", s.Peak)
	}
	if s.Served != served || s.Throttled != throttled {
		t.Errorf("%d served and %d throttled, want %d and %d", s.Served, s.Throttled, served, throttled)
	}
}

// all makes n calls from 20 goroutines.
func all(t *testing.T, n int, call func() error) {
	t.Helper()
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for i := range next {
				if err := call(); err != nil {
					t.Errorf("call %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
}

var quiet = clarifaihttp.WithLogger(slog.New(slog.DiscardHandler))

// serve takes as long as a quick model.
func serve(w http.ResponseWriter, _ *http.Request) {
	time.Sleep(50 * time.Millisecond)
	io.WriteString(w, simnet.ServedBody)
}

// restCall is what Go's REST clients for Clarifai do: a new http.Client for
// each call, so that http.DefaultTransport is the only way to reach them.
func restCall(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	return do(&http.Client{}, req)
}

func TestDefaultTransport(t *testing.T) {
	withAccount(t, serve, func(t *testing.T, a account) {
		th := new(clarifaihttp.Throttle)
		before := http.DefaultTransport
		defer func() { http.DefaultTransport = before }()
		http.DefaultTransport = clarifaihttp.NewTransport(a.Client().Transport, quiet,
			clarifaihttp.WithThrottleFunc(func(req *http.Request) *clarifaihttp.Throttle {
				if req.URL.Host != "api.clarifai.com" {
					return nil
				}
				return th
			}))
		all(t, 60, func() error { return restCall(t.Context(), "http://api.clarifai.com/v2/models") })
		a.kept(t, 60, 0)

		a.HaltFor(backoff)
		all(t, 20, func() error { return restCall(t.Context(), "http://api.clarifai.com/v2/models") })
		if s := a.Stats(); s.Served != 80 || s.Throttled == 0 || s.Throttled > limit || s.Peak > limit {
			t.Errorf("after a halt: %+v", s)
		}

		if err := restCall(t.Context(), "http://example.com/"); err != nil {
			t.Error(err)
		}
		if n := th.Stats().Attempts; n != a.Stats().Served+a.Stats().Throttled-1 {
			t.Errorf("%d attempts of the account: another host was limited, too", n)
		}
	})
}

func TestOpenTelemetry(t *testing.T) {
	for name, tt := range map[string]struct {
		open  func(base http.RoundTripper, opts ...otelhttp.Option) http.RoundTripper
		spans int // for 20 calls, the first of them throttled
	}{
		"outside: one span per call": {
			func(base http.RoundTripper, opts ...otelhttp.Option) http.RoundTripper {
				return otelhttp.NewTransport(clarifaihttp.NewTransport(base, quiet), opts...)
			}, 20,
		},
		"inside: one span per attempt": {
			func(base http.RoundTripper, opts ...otelhttp.Option) http.RoundTripper {
				return clarifaihttp.NewTransport(otelhttp.NewTransport(base, opts...), quiet)
			}, 21,
		},
	} {
		t.Run(name, func(t *testing.T) {
			withAccount(t, serve, func(t *testing.T, a account) {
				recorder := tracetest.NewSpanRecorder()
				provider := trace.NewTracerProvider(trace.WithSpanProcessor(recorder))
				client := &http.Client{Transport: tt.open(a.Client().Transport, otelhttp.WithTracerProvider(provider))}
				a.HaltFor(backoff)
				for range 20 {
					if err := get(t.Context(), client, a.URL); err != nil {
						t.Error(err)
					}
				}
				a.kept(t, 20, 1)
				if n := len(recorder.Ended()); n != tt.spans {
					t.Errorf("%d spans, want %d", n, tt.spans)
				}
			})
		})
	}
}

// TestRetryableAround has a retryablehttp.Client retry what this package does
// not: 5xx and connection errors. Each of its attempts is one of the limit.
func TestRetryableAround(t *testing.T) {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(1, 1))
	failed := 0
	fails := func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err != nil || len(b) != bodySize {
			t.Errorf("a body of %d bytes, %v", len(b), err)
		}
		time.Sleep(50 * time.Millisecond)
		mu.Lock()
		dice := rng.IntN(4)
		if dice < 2 {
			failed++
		}
		mu.Unlock()
		switch dice {
		case 0:
			http.Error(w, "upstream is away", http.StatusServiceUnavailable)
		case 1:
			panic(http.ErrAbortHandler) // hangs up
		default:
			io.WriteString(w, simnet.ServedBody)
		}
	}
	withAccount(t, fails, func(t *testing.T, a account) {
		client := retryablehttp.NewClient()
		client.HTTPClient = &http.Client{Transport: clarifaihttp.NewTransport(a.Client().Transport, quiet)}
		client.Logger = nil
		client.RetryMax = 20
		standard := client.StandardClient()
		all(t, 60, func() error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL, strings.NewReader(strings.Repeat("x", bodySize)))
			if err != nil {
				return err
			}
			return do(standard, req)
		})
		if failed < 20 {
			t.Errorf("%d attempts failed: the test is none", failed)
		}
		a.kept(t, 60+failed, 0)
	})
}
