package clarifaihttp_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// A layer of what lies over the base: Transports, or what is between them.
type layer func(http.RoundTripper, *clarifaihttp.Throttle) http.RoundTripper

// The README's recipes for http.DefaultTransport and for several clients.
func forHost(base http.RoundTripper, th *clarifaihttp.Throttle) http.RoundTripper {
	return clarifaihttp.NewTransport(base, clarifaihttp.WithLogger(quiet), clarifaihttp.WithThrottleFunc(
		func(req *http.Request) *clarifaihttp.Throttle {
			if req.URL.Hostname() == "throttletest.invalid" {
				return th
			}
			return nil
		}))
}

func forAll(base http.RoundTripper, th *clarifaihttp.Throttle) http.RoundTripper {
	return over(base, th)
}

// retrying is a retryablehttp.Client, which tries again after a second.
func retrying(base http.RoundTripper, _ *clarifaihttp.Throttle) http.RoundTripper {
	client := retryablehttp.NewClient()
	client.Logger = nil
	client.RetryWaitMin, client.RetryWaitMax = time.Second, time.Second
	client.HTTPClient.Transport = base
	return &retryablehttp.RoundTripper{Client: client}
}

func unknown(base http.RoundTripper, _ *clarifaihttp.Throttle) http.RoundTripper {
	return roundTripperFunc(base.RoundTrip)
}

// nested calls f in virtual time with Transports on one Throttle, one over the
// other, the outermost first.
func nested(t *testing.T, th *clarifaihttp.Throttle, handler http.Handler, layers []layer, f func(t *testing.T, rt http.RoundTripper, server *httptest.Server)) {
	synctest.Test(t, func(t *testing.T) {
		server := throttletest.NewServer(handler)
		defer server.Close()
		rt := server.Client().Transport
		for _, l := range slices.Backward(layers) {
			rt = l(rt, th)
		}
		f(t, rt, server)
		idle(t, th)
	})
}

// TestNestedTakesOneSlot sends requests through two or more Transports on one
// Throttle: they go as through one.
func TestNestedTakesOneSlot(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers []layer
	}{
		{"one", []layer{forAll}},
		{"client over DefaultTransport", []layer{forAll, forHost}},
		{"the other way round", []layer{forHost, forAll}},
		{"three", []layer{forAll, forAll, forHost}},
		{"with others between", []layer{forAll, unknown, retrying, forHost, unknown, forAll}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			handler, th := new(throttletest.Handler), new(clarifaihttp.Throttle)
			nested(t, th, handler, tt.layers, func(t *testing.T, rt http.RoundTripper, server *httptest.Server) {
				ctx := patient(t, time.Hour)
				served(t, together(ctx, rt, server.URL, 40), 2*hold)
				if s := th.Stats(); s.Attempts != 40 || s.Throttled != 0 {
					t.Errorf("%+v, want 40 attempts", s)
				}
				time.Sleep(time.Minute)
				handler.HaltFor(0)
				served(t, together(ctx, rt, server.URL, 2), 16*time.Second)
				if s, h := th.Stats(), handler.Stats(); s.Attempts != h.Served+h.Throttled || s.Throttled != h.Throttled || h.Throttled == 0 || h.Peak > 15 {
					t.Errorf("%+v, server %+v", s, h)
				}
			})
		})
	}
}

// TestNestedRetries has a client between two Transports try again: what it
// sends then counts in full.
func TestNestedRetries(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers []layer
		limit  int
		fails  int // with status 503
		abort  bool
		want   []time.Duration // arrivals
	}{
		{"twice", []layer{forAll, retrying, forHost}, 1, 1, false, []time.Duration{0, hold}},
		{"often", []layer{forAll, retrying, forHost}, 1, 3, false, []time.Duration{0, hold, 2 * hold, 3 * hold}},
		{"three levels", []layer{forAll, retrying, forHost, forAll}, 1, 2, false, []time.Duration{0, hold, 2 * hold}},
		{"two clients", []layer{forAll, retrying, forAll, retrying, forHost}, 1, 2, false, []time.Duration{0, hold, 2 * hold}},
		{"there is a slot", []layer{forAll, retrying, forHost}, 2, 1, false, []time.Duration{0, time.Second}},
		{"without an answer", []layer{forAll, retrying, forHost}, 1, 1, true, []time.Duration{0, 250*ms + hold}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			th := &clarifaihttp.Throttle{Limit: tt.limit}
			var arrived *timeline
			var n atomic.Int64
			handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				arrived.mark()
				switch {
				case n.Add(1) > int64(tt.fails):
					io.WriteString(w, okBody)
				case tt.abort:
					panic(http.ErrAbortHandler)
				default:
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			nested(t, th, handler, tt.layers, func(t *testing.T, rt http.RoundTripper, server *httptest.Server) {
				arrived = newTimeline()
				served(t, together(patient(t, time.Hour), rt, server.URL, 1), time.Minute)
				arrived.check(t, "arrivals", tt.want...)
				if s := th.Stats(); s.Attempts != tt.fails+1 {
					t.Errorf("%+v, want %d attempts", s, tt.fails+1)
				}
			})
		})
	}
}

// TestDialSendsRequest has a dial send a request of its own, with the context of
// the attempt that it is for, as one does that gets a proxy's token: it counts.
func TestDialSendsRequest(t *testing.T) {
	for _, tt := range []struct {
		name         string
		outer, inner layer
		limit        int
		want         []time.Duration // arrivals
	}{
		{"nested", forAll, forAll, 2, times(2, 0)},
		{"alone", forAll, unknown, 2, times(2, 0)},
		// The dial's request takes the slot that the one it is for gave back after
		// W. That one meets a connection without a slot, waits for a second, and is
		// sent anew, with the next dial; for that it gives its slot back after 2 W.
		{"nested, one slot", forAll, forAll, 1, []time.Duration{hold, 4 * hold, 5 * hold}},
		{"one Transport", unknown, forAll, 2, times(2, 0)},
		{"alone, one slot", forAll, unknown, 1, []time.Duration{0, 250*ms + hold}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				arrived := newTimeline()
				server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					arrived.mark()
					io.WriteString(w, okBody)
				}))
				defer server.Close()
				base := server.Client().Transport.(*http.Transport)
				dial := base.DialContext
				th := &clarifaihttp.Throttle{Limit: tt.limit}
				inner := tt.inner(base, th)
				var dials sync.WaitGroup
				base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if strings.HasPrefix(addr, "api") {
						dials.Add(1)
						defer dials.Done()
						if text, err := fetch(ctx, inner, server.URL, nil); err != nil || !strings.HasPrefix(text, "200") {
							return nil, fmt.Errorf("%q, %w", text, err)
						}
					}
					return dial(ctx, network, addr)
				}
				rt := tt.outer(inner, th)
				begin := time.Now()
				text, err := fetch(patient(t, time.Hour), rt, "http://api.example", nil)
				if err != nil || !strings.HasPrefix(text, "200") || time.Since(begin) > time.Minute {
					t.Errorf("%q, %v, after %v", text, err, time.Since(begin))
				}
				dials.Wait()
				arrived.check(t, "arrivals", tt.want...)
				if s := th.Stats(); s.Attempts != len(tt.want) {
					t.Errorf("%+v, want %d attempts", s, len(tt.want))
				}
				idle(t, th)
			})
		})
	}
}

// TestNestedAccounts nests Transports on two Throttles in all ways: each counts
// each request once.
func TestNestedAccounts(t *testing.T) {
	a, b := &clarifaihttp.Throttle{Limit: 2}, &clarifaihttp.Throttle{Limit: 1}
	with := func(th *clarifaihttp.Throttle) layer {
		return func(base http.RoundTripper, _ *clarifaihttp.Throttle) http.RoundTripper { return forAll(base, th) }
	}
	handler := new(throttletest.Handler)
	nested(t, a, handler, []layer{with(a), with(b), with(a), with(b), forHost}, func(t *testing.T, rt http.RoundTripper, server *httptest.Server) {
		served(t, together(patient(t, time.Hour), rt, server.URL, 5), 5*hold)
		if a, b := a.Stats(), b.Stats(); a.Attempts != 5 || b.Attempts != 5 {
			t.Errorf("a %+v, b %+v, want 5 attempts each", a, b)
		}
		idle(t, b)
	})
}
