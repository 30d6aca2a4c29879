package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

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

// An outcome is what a scripted server answers to one attempt.
type outcome struct {
	after      time.Duration
	throttle   bool
	retryAfter string
	err        error
}

// TestPause follows one worker's requests, one after the other, through the
// answers of a scripted server.
func TestPause(t *testing.T) {
	throttle := outcome{throttle: true}
	asked := func(s string) outcome { return outcome{throttle: true, retryAfter: s} }
	const s = time.Second
	gap := s*10/112 + time.Microsecond // of the pace after the first cut
	for _, tt := range []struct {
		name     string
		throttle *clarifaihttp.Throttle
		script   []outcome
		want     []time.Duration // starts
	}{
		{"backoff", &clarifaihttp.Throttle{}, []outcome{throttle, {}}, []time.Duration{0, 15 * s}},
		{"doubles while probes are throttled", &clarifaihttp.Throttle{},
			[]outcome{throttle, throttle, throttle, throttle, throttle, {}},
			[]time.Duration{0, 15 * s, 45 * s, 105 * s, 165 * s, 225 * s}},
		{"begins anew after a probe that was served", &clarifaihttp.Throttle{},
			[]outcome{throttle, throttle, {}, throttle, {}},
			[]time.Duration{0, 15 * s, 45 * s, 45*s + gap, 60*s + gap}},
		{"own settings", &clarifaihttp.Throttle{Backoff: 2 * s, MaxBackoff: 5 * s},
			[]outcome{throttle, throttle, throttle, {}}, []time.Duration{0, 2 * s, 6 * s, 11 * s}},
		{"Backoff beyond the default MaxBackoff", &clarifaihttp.Throttle{Backoff: 2 * time.Minute},
			[]outcome{throttle, throttle, {}}, []time.Duration{0, 120 * s, 240 * s}},
		{"MaxBackoff below the default Backoff", &clarifaihttp.Throttle{MaxBackoff: 5 * s},
			[]outcome{throttle, throttle, {}}, []time.Duration{0, 5 * s, 10 * s}},
		{"counts from the answer", &clarifaihttp.Throttle{}, []outcome{{throttle: true, after: 3 * s}, {}}, []time.Duration{0, 18 * s}},
		{"Retry-After", &clarifaihttp.Throttle{}, []outcome{asked("7"), {}}, []time.Duration{0, 7 * s}},
		{"Retry-After up to four times MaxBackoff", &clarifaihttp.Throttle{}, []outcome{asked("240"), {}}, []time.Duration{0, 240 * s}},
		{"Retry-After of 0 does not spend all retries at once", &clarifaihttp.Throttle{},
			[]outcome{asked("0"), asked("0"), asked("0"), asked("0"), {}},
			[]time.Duration{0, 0, 2 * s, 6 * s, 14 * s}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				starts := newTimeline()
				rt := newTransport(tt.throttle, func(req *http.Request) (*http.Response, error) {
					o := tt.script[starts.mark()]
					sent(req)
					time.Sleep(o.after)
					if o.throttle {
						return throttled(o.retryAfter), o.err
					}
					return ok(), o.err
				})
				for len(starts.at) < len(tt.script) {
					all(t, rt, 1)
				}
				starts.check(t, "starts", tt.want...)
			})
		})
	}
}

func TestAbsurdRetryAfterIsHandedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := new(clarifaihttp.Throttle)
		starts := newTimeline()
		rt := newTransport(th, func(*http.Request) (*http.Response, error) {
			if starts.mark() == 0 {
				return throttled("241"), nil
			}
			return ok(), nil
		})
		resp, err := rt.RoundTrip(get(t.Context(), t))
		if err != nil || resp.StatusCode != http.StatusTooManyRequests {
			t.Fatalf("got %v, %v, want the throttle", resp, err)
		}
		if wait := time.Until(th.Stats().PausedUntil); wait != time.Minute {
			t.Errorf("paused for %v, want MaxBackoff", wait)
		}
		all(t, rt, 1)
		starts.check(t, "starts", 0, time.Minute)
	})
}

// TestThrottleOfMany has one throttle among 40 requests under way.
func TestThrottleOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := &clarifaihttp.Throttle{Limit: 40}
		starts := newTimeline()
		rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
			n := starts.mark()
			sent(req)
			if n == 7 {
				time.Sleep(100 * ms)
				return throttled(""), nil
			}
			time.Sleep(500 * ms)
			return ok(), nil
		})
		all(t, rt, 60)
		at := starts.at
		if !slices.Equal(at[:40], times(40, 0)) {
			t.Errorf("first starts at %v", at[:40])
		}
		const end = 15*time.Second + 100*ms
		if at[40] != end || at[41] != end+500*ms {
			t.Errorf("probe at %v, next at %v; want %v and, when it is answered, %v", at[40], at[41], end, end+500*ms)
		}
		if len(at) != 61 {
			t.Errorf("%d attempts, want 61", len(at))
		}
	})
}

// TestProbeIsOver looks at when the second request may go after the probe.
func TestProbeIsOver(t *testing.T) {
	const end = 15 * time.Second
	broken := errors.New("broken")
	for _, tt := range []struct {
		name  string
		probe func(*http.Request) (*http.Response, error)
		next  time.Duration // after the probe's start
	}{
		{"answered", func(req *http.Request) (*http.Response, error) {
			sent(req)
			time.Sleep(300 * ms)
			return ok(), nil
		}, 300 * ms},
		{"written a Window ago", func(req *http.Request) (*http.Response, error) {
			connected(req)
			time.Sleep(2 * time.Second)
			httptrace.ContextClientTrace(req.Context()).WroteRequest(httptrace.WroteRequestInfo{})
			time.Sleep(20 * time.Second)
			return ok(), nil
		}, 3 * time.Second},
		{"started a Backoff ago", func(*http.Request) (*http.Response, error) {
			time.Sleep(40 * time.Second)
			return ok(), nil
		}, 15 * time.Second},
		{"failed", func(*http.Request) (*http.Response, error) {
			time.Sleep(400 * ms)
			return nil, broken
		}, 400 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				starts := newTimeline()
				rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
					switch starts.mark() {
					case 0:
						return throttled(""), nil
					case 1:
						return tt.probe(req)
					}
					return ok(), nil
				})
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(func() {
						if _, err := rt.RoundTrip(get(t.Context(), t)); err != nil && err != broken {
							t.Error(err)
						}
					})
					synctest.Wait()
				}
				wg.Wait()
				starts.check(t, "starts", 0, end, end+tt.next)
			})
		})
	}
}

// TestProbeIsCanceled has the probe leave at different moments: the next in
// line is the probe in the same instant.
func TestProbeIsCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := newTimeline()
		rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
			switch starts.mark() {
			case 0:
				return throttled(""), nil
			case 1:
				sent(req)
				return nil, sleep(req.Context(), time.Hour)
			}
			sent(req)
			time.Sleep(300 * ms)
			return ok(), nil
		})
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(15*time.Second+200*ms, func() { cancel(stop) })
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := rt.RoundTrip(get(ctx, t)); err != stop {
				t.Errorf("got %v, want the context's cause", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { all(t, rt, 2) })
		wg.Wait()
		const end = 15 * time.Second
		starts.check(t, "starts", 0, end, end+200*ms, end+500*ms)
	})
}

// TestLateThrottles has throttles arrive that started before the pause.
func TestLateThrottles(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name string
		late []outcome     // answers of others that started with the first throttle
		end  time.Duration // of the pause
	}{
		{"one in the pause extends it", []outcome{{after: 2 * s, throttle: true}}, 17 * s},
		{"by its Retry-After if that is longer", []outcome{{after: 2 * s, throttle: true, retryAfter: "30"}}, 32 * s},
		{"never shortens it", []outcome{{after: 2 * s, throttle: true, retryAfter: "30"}, {after: 3 * s, throttle: true}}, 32 * s},
		{"absurd Retry-After: MaxBackoff", []outcome{{after: 2 * s, throttle: true, retryAfter: "86400"}}, 62 * s},
		{"one that was served changes nothing", []outcome{{after: 2 * s}}, 15*s + ms},
		{"one after the end changes nothing", []outcome{{after: 16 * s, throttle: true, retryAfter: "30"}}, 15*s + ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				th := new(clarifaihttp.Throttle)
				starts, pauses := newTimeline(), newTimeline()
				rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
					sent(req)
					n := starts.mark()
					switch {
					case n == 0:
						time.Sleep(ms) // until all have started
						return throttled(""), nil
					case n <= len(tt.late):
						o := tt.late[n-1]
						time.Sleep(o.after)
						if o.throttle {
							return throttled(o.retryAfter), nil
						}
						return ok(), nil
					}
					if n == len(tt.late)+1 {
						pauses.mark()
						time.Sleep(5 * s) // a slow probe, to tell it from the rest
					}
					return ok(), nil
				})
				var wg sync.WaitGroup
				for range 1 + len(tt.late) {
					wg.Go(func() { rt.RoundTrip(get(t.Context(), t)) })
				}
				wg.Wait()
				pauses.check(t, "end of the pause", tt.end)
			})
		})
	}
}

func TestWavedThroughProbeIsThrottledLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := new(clarifaihttp.Throttle)
		starts := newTimeline()
		rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
			sent(req)
			switch starts.mark() {
			case 0:
				return throttled(""), nil
			case 1: // the probe: waved through after a second, throttled after three
				time.Sleep(3 * time.Second)
				return throttled(""), nil
			case 2:
				time.Sleep(time.Minute)
			}
			return ok(), nil
		})
		var wg sync.WaitGroup
		wg.Go(func() { all(t, rt, 1) })
		synctest.Wait()
		wg.Go(func() { all(t, rt, 1) })
		wg.Wait()
		const end = 15 * time.Second
		starts.check(t, "starts", 0, end, end+time.Second, end+3*time.Second+30*time.Second)
	})
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

// TestPace looks at the distances between starts after throttles.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := newTimeline()
		var throttleNext atomic.Bool
		rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
			starts.mark()
			sent(req)
			if throttleNext.Swap(false) {
				return throttled(""), nil
			}
			return ok(), nil
		})
		all(t, rt, 15)
		starts.check(t, "before any throttle: starts", times(15, 0)...)

		// What it should be: RFC 9438's curve from the end of the pause.
		low, high, end := 0.0, 0.0, time.Time{}
		w := func(at time.Time) float64 {
			x := at.Sub(end).Seconds() - 140
			c := (high - low) / (140 * 140 * 140)
			if x > 0 {
				c = max(c, 1e-6)
			}
			return min(c*x*x*x+high, 14)
		}
		throttle := func(cut float64) {
			time.Sleep(2 * time.Second) // for a slot and a token
			high = min(w(time.Now()), 14)
			low = cut * high
			end = time.Now().Add(15 * time.Second)
			throttleNext.Store(true)
			all(t, rt, 1)
			if got := time.Now(); !got.Equal(end) {
				t.Fatalf("pause ended after %v more", got.Sub(end))
			}
		}
		check := func(when string, at time.Duration) {
			t.Helper()
			time.Sleep(time.Until(end.Add(at)))
			starts.at = nil
			all(t, rt, 4)
			for i, at := range starts.at[:3] {
				perSecond := w(starts.begin.Add(at))
				want := time.Duration(1/perSecond*float64(time.Second)) + time.Microsecond
				if got := starts.at[i+1] - at; got < want-time.Microsecond || got > want+time.Microsecond {
					t.Errorf("%s: next start after %v, want %v (%.3f/s)", when, got, want, perSecond)
				}
			}
		}
		low, high = 14, 14
		throttle(0.8) // the first from the ceiling
		check("first cut", 2*time.Second)
		check("on its way back", 50*time.Second)
		throttle(0.8)
		check("second cut", 2*time.Second)
		throttle(0.5)
		check("a cut less than 30 s after another", 2*time.Second)
		check("back after K = 140 s", 140*time.Second)
		check("beyond", 200*time.Second)
		check("at the ceiling", 3000*time.Second)
		time.Sleep(time.Until(end.Add(time.Hour - 16*time.Second)))
		check("nearly an hour after the throttle", 0)
		time.Sleep(time.Until(end.Add(time.Hour)))
		starts.at = nil
		begin := time.Since(starts.begin)
		all(t, rt, 15)
		starts.check(t, "an hour after the throttle: starts", times(15, begin)...)
	})
}

func TestDeadline(t *testing.T) {
	t.Run("a line that is too long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			th := new(clarifaihttp.Throttle)
			rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
				sent(req)
				time.Sleep(50 * ms)
				return ok(), nil
			})
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			var served, refused atomic.Int32
			for range 1000 {
				wg.Go(func() {
					_, err := rt.RoundTrip(get(ctx, t))
					if err == nil {
						served.Add(1)
						return
					}
					late, ok := errors.AsType[*clarifaihttp.WaitError](err)
					if !ok || time.Since(begin) != 0 {
						t.Errorf("%v after %v", err, time.Since(begin))
						return
					}
					if late.Wait <= 10*time.Second {
						t.Errorf("refused for a wait of %v", late.Wait)
					}
					refused.Add(1)
				})
			}
			wg.Wait()
			// 15 go at once, and 15 more in each W that ends before the deadline.
			if served.Load() != 150 || refused.Load() != 850 {
				t.Errorf("%d served, %d refused; want 150 and 850", served.Load(), refused.Load())
			}
		})
	})
	t.Run("a pause that begins", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			th := &clarifaihttp.Throttle{Limit: 2}
			starts, refusals := newTimeline(), newTimeline()
			rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
				switch starts.mark() {
				case 0:
					time.Sleep(100 * ms)
					return throttled(""), nil
				case 1:
					time.Sleep(250 * ms)
					return throttled(""), nil // extends the pause by 150 ms
				}
				return ok(), nil
			})
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { rt.RoundTrip(get(t.Context(), t)) })
			}
			synctest.Wait()
			retry := 15*time.Second + seconds(15/14.0/0.8/2) // by then, one has gone and the pace is 0.8 of 14/15 of the limit
			for _, tt := range []struct{ timeout, wait time.Duration }{
				{15 * time.Second, 15 * time.Second},
				{15*time.Second + 200*ms, retry},
				{20 * time.Second, 0},
			} {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
					defer cancel()
					if _, err := rt.RoundTrip(get(ctx, t)); err != nil {
						refusals.mark()
						if late, ok := errors.AsType[clarifaihttp.WaitError](err); !ok || late.Wait.Round(ms) != tt.wait.Round(ms) {
							t.Errorf("got %v, want a wait of %v", err, tt.wait)
						}
					}
				})
				synctest.Wait()
			}
			wg.Wait()
			refusals.check(t, "refused", 100*ms, 250*ms)
		})
	})
	t.Run("a retry gets the throttle back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			rt := newTransport(new(clarifaihttp.Throttle), func(*http.Request) (*http.Response, error) {
				resp := throttled("")
				resp.Header.Set("X-Own", "1")
				return resp, nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			resp, err := rt.RoundTrip(get(ctx, t))
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 429 || resp.Header.Get("X-Own") != "1" || body(t, resp) != fmt.Sprintf(throttledBody, 15) {
				t.Errorf("got %+v", resp)
			}
			if d := time.Since(begin); d != 0 {
				t.Errorf("after %v, want at once", d)
			}
		})
	})
	t.Run("a retry whose pause is extended gets it, too", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			starts := newTimeline()
			rt := newTransport(new(clarifaihttp.Throttle), func(*http.Request) (*http.Response, error) {
				if starts.mark() == 1 {
					time.Sleep(5 * time.Second)
				}
				time.Sleep(ms) // until all have started
				return throttled(""), nil
			})
			go rt.RoundTrip(get(t.Context(), t))
			ctx, cancel := context.WithTimeout(t.Context(), 17*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			for i := range 2 {
				wg.Go(func() {
					resp, err := rt.RoundTrip(get(ctx, t))
					if err != nil || body(t, resp) != fmt.Sprintf(throttledBody, 15) {
						t.Errorf("%d: %v, %v", i, resp, err)
					}
				})
			}
			wg.Wait()
			if d := time.Since(starts.begin); d != 5*time.Second+ms {
				t.Errorf("handed back after %v, want when the pause was extended", d)
			}
			synctest.Wait()
			// The first one has no deadline and goes on until its retries end.
			time.Sleep(time.Hour)
		})
	})
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func TestWaitError(t *testing.T) {
	var err error = fmt.Errorf("wrapped: %w", &clarifaihttp.WaitError{Wait: 3 * time.Second})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		t.Error("is not a DeadlineExceeded alone")
	}
	var byPointer *clarifaihttp.WaitError
	var byValue clarifaihttp.WaitError
	var timeout interface{ Timeout() bool }
	if !errors.As(err, &byPointer) || byPointer.Wait != 3*time.Second {
		t.Error("not found as a pointer")
	}
	if !errors.As(err, &byValue) || byValue.Wait != 3*time.Second {
		t.Error("not found as a value")
	}
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Error("is no timeout")
	}
	if !strings.HasPrefix(byValue.Error(), "clarifaihttp: ") || !strings.Contains(byValue.Error(), "3s") {
		t.Errorf("says %q", byValue.Error())
	}
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
		legacy := make(chan struct{})
		//lint:ignore SA1019 it works as long as net/http has it
		req.Cancel = legacy
		time.AfterFunc(300*ms, func() { close(legacy) })
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
		th := &clarifaihttp.Throttle{Limit: 2, Transit: time.Hour}
		var order []string
		var mu sync.Mutex
		rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
			mu.Lock()
			name := req.Header.Get("Name")
			order = append(order, name)
			first := len(order) == 1
			mu.Unlock()
			time.Sleep(100 * ms)
			if first {
				return throttled(""), nil
			}
			return ok(), nil
		})
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
			wg.Go(func() {
				req := get(t.Context(), t)
				req.Header.Set("Name", name)
				if _, err := rt.RoundTrip(req); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		if got := strings.Join(order, ""); got != "abacdefg" {
			t.Errorf("order %s, want abacdefg", got)
		}
	})
}

// TestSentAgainByBase has the base do as net/http does when a connection dies:
// send again by itself, behind hooks that cannot refuse.
func TestSentAgainByBase(t *testing.T) {
	again := func(req *http.Request) {
		trace := httptrace.ContextClientTrace(req.Context())
		trace.GetConn("server:443")
		trace.GotConn(httptrace.GotConnInfo{})
	}
	t.Run("waits for a slot, even for the one it held", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			th := &clarifaihttp.Throttle{Limit: 1}
			arrivals := newTimeline()
			rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
				sent(req)
				arrivals.mark()
				time.Sleep(100 * ms)
				for range 2 {
					again(req)
					arrivals.mark()
				}
				return ok(), nil
			})
			all(t, rt, 1)
			const step = 250*ms + hold
			arrivals.check(t, "wire requests", 0, 100*ms+step, 100*ms+2*step)
			if s := th.Stats(); s.Attempts != 3 {
				t.Errorf("%d attempts, want 3", s.Attempts)
			}
			time.Sleep(hold)
			if s := th.Stats(); s.Held != 0 {
				t.Errorf("%d slots held", s.Held)
			}
		})
	})
	t.Run("waits for the pause, and is its probe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			arrivals := newTimeline()
			rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
				sent(req)
				switch arrivals.mark() {
				case 0:
					time.Sleep(100 * ms)
					again(req)
					arrivals.mark()
					time.Sleep(200 * ms)
				case 1:
					return throttled(""), nil
				}
				return ok(), nil
			})
			var wg sync.WaitGroup
			wg.Go(func() { all(t, rt, 1) })
			synctest.Wait()
			wg.Go(func() { all(t, rt, 1) })
			wg.Wait()
			slices.Sort(arrivals.at)
			// One of the two goes alone at the end of the pause, the other after it.
			if at := arrivals.at; len(at) != 4 || at[2] != 15*time.Second || at[3] < at[2] {
				t.Errorf("wire requests at %v", at)
			}
		})
	})
	t.Run("is charged when its context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			th := &clarifaihttp.Throttle{Limit: 1}
			rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
				sent(req)
				again(req)
				return nil, context.Cause(req.Context())
			})
			ctx, cancel := context.WithTimeout(t.Context(), 100*ms)
			defer cancel()
			if _, err := rt.RoundTrip(get(ctx, t)); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if s := th.Stats(); s.Held != 2 || s.Attempts != 2 {
				t.Errorf("%+v, want 2 slots held", s)
			}
			time.Sleep(250*ms + hold)
			if s := th.Stats(); s.Held != 0 {
				t.Errorf("%+v, want no slot held", s)
			}
		})
	})
}

// A limiter records how it is used.
type limiter struct {
	wait      func(context.Context) error
	inside    atomic.Int32
	most      atomic.Int32
	permitted atomic.Int32
	arrived   *timeline
	told      []time.Duration
}

func (l *limiter) Wait(ctx context.Context) error {
	l.most.Store(max(l.most.Load(), l.inside.Add(1)))
	defer l.inside.Add(-1)
	err := l.wait(ctx)
	if err == nil {
		l.permitted.Add(1)
	}
	return err
}
func (l *limiter) Arrived()                  { l.arrived.mark() }
func (l *limiter) Throttled(d time.Duration) { l.told = append(l.told, d) }

func TestLimiter(t *testing.T) {
	t.Run("rate.Limiter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			starts := newTimeline()
			rt := newTransport(&clarifaihttp.Throttle{Limiter: rate.NewLimiter(2, 1)}, func(req *http.Request) (*http.Response, error) {
				starts.mark()
				return ok(), nil
			})
			all(t, rt, 4)
			starts.check(t, "starts", 0, 500*ms, 1000*ms, 1500*ms)
		})
	})
	t.Run("is asked by the head of the line alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &limiter{arrived: newTimeline(), wait: func(ctx context.Context) error { return sleep(ctx, 10*ms) }}
			starts := newTimeline()
			rt := newTransport(&clarifaihttp.Throttle{Limiter: l}, func(req *http.Request) (*http.Response, error) {
				starts.mark()
				sent(req)
				time.Sleep(time.Minute)
				return ok(), nil
			})
			all(t, rt, 4)
			starts.check(t, "starts", 10*ms, 20*ms, 30*ms, 40*ms)
			l.arrived.check(t, "Arrived", 260*ms, 270*ms, 280*ms, 290*ms)
			if l.most.Load() != 1 {
				t.Errorf("%d asked at once", l.most.Load())
			}
		})
	})
	t.Run("its error refuses, wrapped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			broken := errors.New("broken")
			th := &clarifaihttp.Throttle{Limiter: &limiter{wait: func(context.Context) error { return broken }}}
			rt := newTransport(th, func(*http.Request) (*http.Response, error) { panic("sent") })
			_, err := rt.RoundTrip(get(t.Context(), t))
			if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "clarifaihttp: ") {
				t.Errorf("got %v", err)
			}
			if s := th.Stats(); s.Held != 0 || s.Attempts != 0 || s.Waiting != 0 {
				t.Errorf("%+v", s)
			}
		})
	})
	t.Run("a pause ends Wait, and permissions lapse", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			starts := newTimeline()
			l := &limiter{arrived: newTimeline()}
			l.wait = func(ctx context.Context) error {
				if l.permitted.Load() == 1 && time.Since(starts.begin) < 10*time.Second {
					<-ctx.Done()
					if l.inside.Load() == 1 && time.Since(starts.begin) != 100*ms {
						t.Errorf("Wait ended after %v", time.Since(starts.begin))
					}
					return nil // a permission at the same time
				}
				return nil
			}
			th := &clarifaihttp.Throttle{Limiter: l}
			rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
				if starts.mark() == 0 {
					time.Sleep(100 * ms)
					return throttled(""), nil
				}
				return ok(), nil
			})
			all(t, rt, 2)
			if starts.at[1] < 15*time.Second {
				t.Errorf("starts at %v, want the second after the pause", starts.at)
			}
			synctest.Wait()
			if got, want := len(l.arrived.at), int(l.permitted.Load()); got != want || want != 4 {
				t.Errorf("%d permissions, Arrived called %d times, want 4 each", want, got)
			}
			if !slices.Equal(l.told, []time.Duration{15 * time.Second}) {
				t.Errorf("told of pauses %v", l.told)
			}
		})
	})
	t.Run("a context or a Cancel ends Wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			th := &clarifaihttp.Throttle{Limiter: &limiter{wait: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}}
			rt := newTransport(th, func(*http.Request) (*http.Response, error) { panic("sent") })
			stop := errors.New("stop")
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, stop)
			defer cancel()
			if _, err := rt.RoundTrip(get(ctx, t)); err != stop {
				t.Errorf("got %v, want the cause", err)
			}
			req := get(t.Context(), t)
			legacy := make(chan struct{})
			//lint:ignore SA1019 it works as long as net/http has it
			req.Cancel = legacy
			time.AfterFunc(time.Second, func() { close(legacy) })
			if _, err := rt.RoundTrip(req); err == nil || errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if s := th.Stats(); s.Held != 0 || s.Waiting != 0 {
				t.Errorf("%+v", s)
			}
		})
	})
	t.Run("a panic of Wait leaves nothing behind", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &limiter{arrived: newTimeline(), wait: func(context.Context) error { panic("own") }}
			th := &clarifaihttp.Throttle{Limiter: l}
			rt := newTransport(th, func(*http.Request) (*http.Response, error) { return ok(), nil })
			func() {
				defer func() {
					if recover() != "own" {
						t.Error("no panic")
					}
				}()
				rt.RoundTrip(get(t.Context(), t))
			}()
			l.wait = func(context.Context) error { return nil }
			all(t, rt, 1)
			time.Sleep(hold)
			if s := th.Stats(); s.Held != 0 || s.Waiting != 0 {
				t.Errorf("%+v", s)
			}
		})
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
