package clarifaihttp_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// TestShortRetryAfterOfMany has several requests throttled at once, by a server
// that says when the halt is over.
func TestShortRetryAfterOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := newTimeline()
		rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
			sent(req)
			n := starts.mark()
			if n < 2 {
				time.Sleep(time.Duration(50+10*n) * ms)
				return throttled("1"), nil
			}
			return ok(), nil
		})
		all(t, rt, 2)
		if at := starts.at[2]; at != 1060*ms {
			t.Errorf("the probe goes after %v, want a second after the later answer", at)
		}
	})
}

// TestBoundKnowsDials has dials fail while a request with a deadline waits: it
// could go when they have.
func TestBoundKnowsDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("no route")
		rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
			if req.URL.Path != "/dead" {
				return ok(), nil
			}
			httptrace.ContextClientTrace(req.Context()).GetConn("dead:443")
			time.Sleep(10 * ms)
			return nil, broken
		})
		var wg sync.WaitGroup
		for range 15 {
			wg.Go(func() {
				req := get(t.Context(), t)
				req.URL.Path = "/dead"
				if _, err := rt.RoundTrip(req); err != broken {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 500*ms)
		defer cancel()
		begin := time.Now()
		if _, err := rt.RoundTrip(get(ctx, t)); err != nil || time.Since(begin) != 10*ms {
			t.Errorf("%v after %v, want it sent when a slot is free", err, time.Since(begin))
		}
		wg.Wait()
	})
}

// TestBoundKnowsPace has requests with a deadline wait at the pace's floor.
func TestBoundKnowsPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var throttle atomic.Bool
		throttle.Store(true)
		rt := newTransport(&clarifaihttp.Throttle{Backoff: time.Second, MaxBackoff: time.Second}, func(req *http.Request) (*http.Response, error) {
			sent(req)
			if throttle.Swap(false) {
				return throttled(""), nil
			}
			return ok(), nil
		})
		for range 20 { // cuts of a half, down to the floor
			all(t, rt, 1)
			throttle.Store(true)
			time.Sleep(3 * time.Second)
		}
		throttle.Store(false)
		time.Sleep(10 * time.Second)

		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var served, refused, late atomic.Int32
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				_, err := rt.RoundTrip(get(ctx, t))
				switch _, early := errors.AsType[*clarifaihttp.WaitError](err); {
				case err == nil:
					served.Add(1)
				case early && time.Since(begin) == 0:
					refused.Add(1)
				default:
					late.Add(1)
				}
			})
		}
		wg.Wait()
		// The bound takes the rate at the deadline, which is a little higher.
		if served.Load() < 5 || late.Load() > 2 {
			t.Errorf("%d served, %d refused at once, %d waited for nothing", served.Load(), refused.Load(), late.Load())
		}
	})
}

// TestLimitComesBack has a server name a limit once.
func TestLimitComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := &clarifaihttp.Throttle{Limit: 100}
		starts := newTimeline()
		named := false
		rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
			sent(req)
			starts.mark()
			if !named {
				named = true
				return respond(429, `{"status":{"code":11005,"details":"exceeded limit of 1 requests per second"}}`), nil
			}
			return ok(), nil
		})
		all(t, rt, 1)
		if got := th.Stats().Limit; got != 1 {
			t.Errorf("limit %d, want what the server named", got)
		}
		time.Sleep(time.Hour - 15*time.Second - 1)
		if got := th.Stats().Limit; got != 1 {
			t.Errorf("limit %d before an hour has passed", got)
		}

		// Who waits then goes when it is restored.
		starts.at = nil
		all(t, rt, 100)
		at := starts.at
		for i := range at {
			at[i] = at[i].Round(10 * time.Microsecond) // the pace is lifted then, too
		}
		if want := time.Hour; at[0] != want || !slices.Equal(at[1:], times(99, want)) {
			t.Errorf("starts at %v, want the hour's end", at)
		}
		if got := th.Stats().Limit; got != 100 {
			t.Errorf("limit %d, want the configured one", got)
		}
	})
}
