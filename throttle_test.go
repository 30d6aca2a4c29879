package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

func TestSlots(t *testing.T) {
	for _, tt := range []struct {
		name     string
		throttle *clarifaihttp.Throttle
		base     func(*http.Request) error // one attempt
		n        int
		want     []time.Duration // starts
	}{
		{
			name: "a burst from idle does not wait",
			base: func(req *http.Request) error { return sleep(req.Context(), time.Hour) },
			n:    15,
			want: times(15, 0),
		},
		{
			name: "a slot is free W after the answer",
			base: func(req *http.Request) error { sent(req); return sleep(req.Context(), 50*ms) },
			n:    31,
			want: slices.Concat(times(15, 0), times(15, 50*ms+hold), times(1, 2*(50*ms+hold))),
		},
		{
			name: "or Transit + W after it was written",
			base: func(req *http.Request) error { sent(req); return sleep(req.Context(), 20*time.Second) },
			n:    31,
			want: slices.Concat(times(15, 0), times(15, 250*ms+hold), times(1, 2*(250*ms+hold))),
		},
		{
			name:     "but not with a negative Transit",
			throttle: &clarifaihttp.Throttle{Transit: -1},
			base:     func(req *http.Request) error { sent(req); return sleep(req.Context(), 20*time.Second) },
			n:        16,
			want:     slices.Concat(times(15, 0), times(1, 20*time.Second+hold)),
		},
		{
			name: "nor where it was not written",
			base: func(req *http.Request) error { connected(req); return sleep(req.Context(), 20*time.Second) },
			n:    16,
			want: slices.Concat(times(15, 0), times(1, 20*time.Second+hold)),
		},
		{
			name:     "limit, window and transit are the Throttle's",
			throttle: &clarifaihttp.Throttle{Limit: 2, Window: time.Minute, Transit: time.Second},
			base:     func(req *http.Request) error { sent(req); return sleep(req.Context(), 20*time.Second) },
			n:        3,
			want:     slices.Concat(times(2, 0), times(1, time.Second+time.Minute+10*ms)),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				starts := newTimeline()
				th := tt.throttle
				if th == nil {
					th = new(clarifaihttp.Throttle)
				}
				all(t, newTransport(th, func(req *http.Request) (*http.Response, error) {
					starts.mark()
					if err := tt.base(req); err != nil {
						return nil, err
					}
					return ok(), nil
				}), tt.n)
				starts.check(t, "starts", tt.want...)
				time.Sleep(2 * time.Minute)
				if s := th.Stats(); s.Held != 0 || s.Waiting != 0 || s.Attempts != tt.n {
					t.Errorf("in the end: %+v", s)
				}
			})
		})
	}
}

func TestSlotOfFailure(t *testing.T) {
	for _, tt := range []struct {
		name string
		base func(*http.Request)
		held time.Duration // after the failure
	}{
		{"no connection", func(req *http.Request) { httptrace.ContextClientTrace(req.Context()).GetConn("server:443") }, 0},
		{"connected", connected, 250*ms + hold},
		{"written", sent, 250*ms + hold},
		{"base without hooks", func(*http.Request) {}, 250*ms + hold},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				th := &clarifaihttp.Throttle{Limit: 1}
				starts := newTimeline()
				broken := errors.New("broken")
				rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
					if starts.mark() > 0 {
						return ok(), nil
					}
					tt.base(req)
					time.Sleep(100 * ms)
					return nil, broken
				})
				if _, err := rt.RoundTrip(get(t.Context(), t)); err != broken {
					t.Errorf("error %v, want the base's as it is", err)
				}
				all(t, rt, 1)
				starts.check(t, "starts", 0, 100*ms+tt.held)
			})
		})
	}
}

func TestLearnsLimit(t *testing.T) {
	for _, tt := range []struct {
		throttle *clarifaihttp.Throttle
		details  string
		want     int
	}{
		{&clarifaihttp.Throttle{}, "exceeded limit of 10 requests per second", 10},
		{&clarifaihttp.Throttle{}, "Making too many requests, error_details: exceeded limit of 10 requests per second", 10},
		{&clarifaihttp.Throttle{}, "exceeded limit of 20 requests per second", 15},
		{&clarifaihttp.Throttle{Limit: 3}, "exceeded limit of 15 requests per second", 3},
		{&clarifaihttp.Throttle{Window: time.Minute}, "exceeded limit of 10 requests per second", 15},
		{&clarifaihttp.Throttle{}, "exceeded limit of 0 requests per second", 15},
		{&clarifaihttp.Throttle{}, "exceeded limit of -1 requests per second", 15},
		{&clarifaihttp.Throttle{}, "exceeded limit of 1000000000000000000 requests per second", 15},
		{&clarifaihttp.Throttle{}, "exceeded limit of 18446744073709551617 requests per second", 15}, // 2^64 + 1
		{&clarifaihttp.Throttle{}, "slow down", 15},
	} {
		t.Run(tt.details, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				th := tt.throttle
				first := true
				rt := newTransport(th, func(*http.Request) (*http.Response, error) {
					if first {
						first = false
						return respond(429, fmt.Sprintf(`{"status":{"code":11005,"details":%q}}`, tt.details)), nil
					}
					return ok(), nil
				})
				all(t, rt, 1)
				if got := th.Stats().Limit; got != tt.want {
					t.Errorf("limit %d, want %d", got, tt.want)
				}
			})
		})
	}
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

// TestCancel ends waits; each ends in that instant and leaves no trace.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := &clarifaihttp.Throttle{Limit: 1}
		starts := newTimeline()
		rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
			starts.mark()
			sent(req)
			return ok(), nil
		})
		all(t, rt, 1)
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(300*ms, func() { cancel(stop) })
		if _, err := rt.RoundTrip(get(ctx, t)); err != stop || time.Since(starts.begin) != 300*ms {
			t.Errorf("canceled: %v after %v", err, time.Since(starts.begin))
		}
		if _, err := rt.RoundTrip(get(ctx, t)); err != stop || time.Since(starts.begin) != 300*ms {
			t.Errorf("canceled before: %v after %v", err, time.Since(starts.begin))
		}
		req := get(t.Context(), t)
		cancelAfter(req, 300*ms)
		if _, err := rt.RoundTrip(req); err == nil || time.Since(starts.begin) != 600*ms {
			t.Errorf("Request.Cancel: %v after %v", err, time.Since(starts.begin))
		}
		if s := th.Stats(); s.Waiting != 0 || s.Held != 1 || s.Attempts != 1 || s.Waited != 600*ms {
			t.Errorf("after: %+v", s)
		}
		all(t, rt, 1)
		starts.check(t, "starts", 0, hold)
	})
}

// TestOrder has a retry and newcomers wait: the retry goes first, the others
// as they came.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineup(t, &clarifaihttp.Throttle{Limit: 2, Transit: time.Hour}, func(_ string, attempt int) *http.Response {
			if attempt == 1 {
				return throttled("")
			}
			return ok()
		})
		for name := range strings.SplitSeq("a b c d e f g", " ") {
			l.send(t.Context(), name, "")
		}
		l.check("a b a c d e f g")
	})
}

func TestInvalidThrottle(t *testing.T) {
	for _, tt := range []struct {
		th   *clarifaihttp.Throttle
		want string
	}{
		{&clarifaihttp.Throttle{Limit: -1}, "Throttle.Limit"},
		{&clarifaihttp.Throttle{Limit: 1e9}, "Throttle.Limit"},
		{&clarifaihttp.Throttle{Window: -time.Second}, "Throttle.Window"},
		{&clarifaihttp.Throttle{Window: 1}, "Throttle.Window"}, // meant as seconds
		{&clarifaihttp.Throttle{Window: 1e18}, "Throttle.Window"},
		{&clarifaihttp.Throttle{Backoff: -1}, "Throttle.Backoff"},
		{&clarifaihttp.Throttle{MaxBackoff: -1}, "Throttle.MaxBackoff"},
		{&clarifaihttp.Throttle{Backoff: time.Minute, MaxBackoff: time.Second}, "Throttle.MaxBackoff"},
		{&clarifaihttp.Throttle{Transit: 1e18}, "Throttle.Transit"},
	} {
		panics(t, tt.want, func() { clarifaihttp.WithThrottle(tt.th) })
		rt := clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottleFunc(func(*http.Request) *clarifaihttp.Throttle { return tt.th }))
		panics(t, tt.want, func() { rt.RoundTrip(get(t.Context(), t)) })
		panics(t, tt.want, func() { rt.RoundTrip(get(t.Context(), t)) }) // and each time
	}
}

// panics checks that f panics with a message of this package that names what.
func panics(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		s, _ := recover().(string)
		if !strings.HasPrefix(s, "clarifaihttp: ") || !strings.Contains(s, what) {
			t.Errorf("panic %q, want one that names %s", s, what)
		}
	}()
	f()
}
