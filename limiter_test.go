package clarifaihttp_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"example.com/clarifaihttp"
)

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

type limiterFunc func() error

func (f limiterFunc) Wait(context.Context) error { return f() }

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
			cancelAfter(req, time.Second)
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
