package clarifaihttp_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// bare is a 429 without a Clarifai status, as a gateway's or a model's.
func bare(retryAfter string) *http.Response {
	resp := respond(http.StatusTooManyRequests, "slow down")
	if retryAfter != "" {
		resp.Header.Set("Retry-After", retryAfter)
	}
	return resp
}

// TestBareOfOne has one request always get bare 429s: it waits by itself, gets
// its retries and then its 429, and pauses nobody.
func TestBareOfOne(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name       string
		backoff    time.Duration // Throttle.Backoff
		retryAfter string
		timeout    time.Duration
		want       []time.Duration // starts
	}{
		{name: "waits Backoff, doubled up to MaxBackoff",
			want: []time.Duration{0, 15 * s, 45 * s, 105 * s, 165 * s, 225 * s, 285 * s, 345 * s, 405 * s, 465 * s, 525 * s}},
		{name: "own settings", backoff: s,
			want: []time.Duration{0, s, 3 * s, 6 * s, 9 * s, 12 * s, 15 * s, 18 * s, 21 * s, 24 * s, 27 * s}},
		{name: "or Retry-After", retryAfter: "7",
			want: []time.Duration{0, 7 * s, 14 * s, 21 * s, 28 * s, 35 * s, 42 * s, 49 * s, 56 * s, 63 * s, 70 * s}},
		{name: "absurd Retry-After", retryAfter: "241", want: []time.Duration{0}},
		{name: "until its deadline", timeout: 60 * s, want: []time.Duration{0, 15 * s, 45 * s}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				th := &clarifaihttp.Throttle{Backoff: tt.backoff, MaxBackoff: 3 * tt.backoff}
				starts := newTimeline()
				rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
					sent(req)
					if req.URL.Path != "/broken" {
						return ok(), nil
					}
					starts.mark()
					return bare(tt.retryAfter), nil
				})
				ctx, cancel := t.Context(), func() {}
				if tt.timeout > 0 {
					ctx, cancel = context.WithTimeout(ctx, tt.timeout)
				}
				defer cancel()
				over := make(chan struct{})
				go func() {
					defer close(over)
					req := get(ctx, t)
					req.URL.Path = "/broken"
					resp, err := rt.RoundTrip(req)
					if err != nil || resp.StatusCode != 429 || body(t, resp) != "slow down" {
						t.Errorf("got %v, %v; want the 429", resp, err)
					}
					if at := time.Since(starts.begin); at != tt.want[len(tt.want)-1] {
						t.Errorf("handed back after %v, want at once", at)
					}
				}()
				synctest.Wait()
				waiting := 1
				if len(tt.want) == 1 {
					waiting = 0
				}
				if stats := th.Stats(); stats.Waiting != waiting || !stats.PausedUntil.IsZero() {
					t.Errorf("%+v, want it to wait alone", stats)
				}
				for {
					begin := time.Now()
					all(t, rt, 1)
					if d := time.Since(begin); d != 0 {
						t.Fatalf("another request waited %v", d)
					}
					select {
					case <-over:
						starts.check(t, "starts", tt.want...)
						if waited := th.Stats().Waited; waited != tt.want[len(tt.want)-1] {
							t.Errorf("waited %v", waited)
						}
						return
					case <-time.After(1300 * ms):
					}
				}
			})
		})
	}
}

// TestBareRestEnds ends the wait of a request by itself.
func TestBareRestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := new(clarifaihttp.Throttle)
		rt := newTransport(th, func(*http.Request) (*http.Response, error) { return bare(""), nil })
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(stop) })
		begin := time.Now()
		if _, err := rt.RoundTrip(get(ctx, t)); err != stop || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		req := get(t.Context(), t)
		cancelAfter(req, time.Second)
		if _, err := rt.RoundTrip(req); err == nil || time.Since(begin) != 2*time.Second {
			t.Errorf("Request.Cancel: %v after %v", err, time.Since(begin))
		}
		if s := th.Stats(); s.Waiting != 0 || s.Waited != 2*time.Second {
			t.Errorf("%+v", s)
		}
	})
}

// TestBareOfFive has five broken requests beside healthy ones.
func TestBareOfFive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := new(clarifaihttp.Throttle)
		var mu sync.Mutex
		attempts := map[string]int{}
		rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
			sent(req)
			name := req.Header.Get("Name")
			mu.Lock()
			attempts[name]++
			mu.Unlock()
			time.Sleep(50 * ms)
			if name != "" {
				return bare(""), nil
			}
			return ok(), nil
		})
		begin := time.Now()
		var wg sync.WaitGroup
		for name := range strings.SplitSeq("a b c d e", " ") {
			wg.Go(func() {
				req := get(t.Context(), t)
				req.Header.Set("Name", name)
				resp, err := rt.RoundTrip(req)
				if err != nil || resp.StatusCode != 429 {
					t.Errorf("got %v, %v", resp, err)
				}
			})
			synctest.Wait()
		}
		// They may be the account's: all pause, once.
		time.Sleep(50 * ms)
		synctest.Wait()
		pauses := 0
		var until time.Time
		for time.Since(begin) < 20*time.Minute {
			if at := th.Stats().PausedUntil; !at.Equal(until) && !at.IsZero() {
				pauses++
				until = at
			}
			sent := time.Now()
			all(t, rt, 1)
			if d := time.Since(sent); d > 15*time.Second+50*ms || pauses == 0 {
				t.Errorf("a healthy request took %v, after %d pauses", d, pauses)
			}
			time.Sleep(100 * ms)
		}
		wg.Wait()
		if pauses != 1 {
			t.Errorf("%d pauses, want 1", pauses)
		}
		for name, n := range attempts {
			if name != "" && n != 11 {
				t.Errorf("%s had %d attempts, want 11", name, n)
			}
		}
	})
}

// TestBareProbe has a broken request be the probe after a pause of the account.
func TestBareProbe(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lines string // who waits, in order: b is broken
		want  string // order of the starts after the pause
		pause bool   // the probe counts as throttled
	}{
		{"the next is the probe at once", "bxy", "bxy", false},
		{"the second of them, too", "bbxy", "bbxy", false},
		{"the third pauses the account again", "bbbxy", "bbb", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				th := new(clarifaihttp.Throttle)
				var mu sync.Mutex
				order := ""
				rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
					sent(req)
					name := req.Header.Get("Name")
					mu.Lock()
					order += name
					mu.Unlock()
					switch name {
					case "b":
						return bare(""), nil
					case "":
						return throttled(""), nil
					}
					return ok(), nil
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				once := clarifaihttp.NewTransport(rt, clarifaihttp.WithThrottleFunc(func(*http.Request) *clarifaihttp.Throttle { return nil }))
				first, cancelFirst := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { once.RoundTrip(get(first, t)) })
				synctest.Wait()
				cancelFirst() // all it did was to begin the pause
				for _, name := range tt.lines {
					wg.Go(func() {
						req := get(ctx, t)
						req.Header.Set("Name", string(name))
						if resp, err := rt.RoundTrip(req); err == nil {
							resp.Body.Close()
						}
					})
					synctest.Wait()
				}
				time.Sleep(15*time.Second + 500*ms)
				synctest.Wait()
				mu.Lock()
				got := order
				mu.Unlock()
				if got != tt.want {
					t.Errorf("order %q, want %q", got, tt.want)
				}
				gaps := seconds(2 / 11.2) // of the pace, which grows meanwhile
				if wait := time.Until(th.Stats().PausedUntil); tt.pause && wait.Round(2*ms) != (30*time.Second-500*ms+gaps).Round(2*ms) || !tt.pause && wait > 0 {
					t.Errorf("paused for %v more", wait)
				}
				cancel()
				wg.Wait()
			})
		})
	}
}

// TestProbeIsNotTheSameAgain has the probe throttled: its retry keeps its place,
// but another one probes after the next pause.
func TestProbeIsNotTheSameAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineup(t, &clarifaihttp.Throttle{Limit: 1}, func(_ string, attempt int) *http.Response {
			if attempt <= 2 {
				return throttled("")
			}
			return ok()
		})
		for name := range strings.SplitSeq("a b c", " ") {
			l.send(t.Context(), name, "")
		}
		l.check("a a b a c")
	})
}
