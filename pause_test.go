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
