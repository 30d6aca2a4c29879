package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

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
			for i := range 1000 {
				if i == 15 {
					synctest.Wait() // until these have their connections, their slots may be free at once
				}
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

// TestBoundKnowsWhoStandsAside has requests at the front of the line that are not
// to be the probe: one behind them, with a deadline, is.
func TestBoundKnowsWhoStandsAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := &clarifaihttp.Throttle{Limit: 1}
		rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
			sent(req)
			switch req.URL.Path {
			case "/poisoned":
				return bare(""), nil
			case "/throttled":
				return throttled(""), nil
			}
			return ok(), nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer func() { cancel(); wg.Wait() }()
		for range 2 {
			wg.Go(func() { fetch(ctx, rt, "http://server/poisoned", nil) })
			time.Sleep(3 * time.Second)
		}
		time.Sleep(4 * time.Second)
		// The two are in line again at 15 and 18 s. A pause from 10 to 25 s:
		short, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		fetch(short, rt, "http://server/throttled", nil)
		time.Sleep(10 * time.Second)

		short, stop = context.WithTimeout(ctx, 5500*ms)
		defer stop()
		begin := time.Now()
		if text, err := fetch(short, rt, "http://server/", nil); err != nil || time.Since(begin) != 5*time.Second {
			t.Errorf("%s, %v after %v, want it sent as the probe", text, err, time.Since(begin))
		}
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
