package clarifaihttp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// A deadConn knows that nothing can be written to it any more.
type deadConn struct {
	net.Conn
	dead atomic.Bool
}

func (c *deadConn) SetWriteDeadline(time.Time) error { c.dead.Store(true); return nil }
func (c *deadConn) SetDeadline(time.Time) error      { c.dead.Store(true); return nil }

// A legit calls the hooks as net/http does, on connections that it makes up.
type legit struct {
	hookCaller
	arrived *timeline
	unknown bool
	calm    atomic.Bool
}

func (h *legit) nap(ctx context.Context, d time.Duration) error {
	sleep(ctx, d)
	return ctx.Err()
}

func (h *legit) RoundTrip(req *http.Request) (*http.Response, error) {
	trace := httptrace.ContextClientTrace(req.Context())
	ctx := req.Context()
	for n := 0; ; n++ {
		trace.GetConn("server:443")
		switch h.draw(8) {
		case 0:
			if err := h.nap(ctx, h.span(4*time.Second)); err != nil {
				return nil, err
			}
		case 1:
			if h.draw(6) == 0 {
				if err := h.nap(ctx, h.span(80*time.Second)); err != nil {
					return nil, err
				}
			}
		case 2, 3:
			if err := h.nap(ctx, h.span(300*ms)); err != nil {
				return nil, err
			}
		}
		if h.draw(15) == 0 {
			return nil, errors.New("dial")
		}
		reused := h.draw(2) == 0
		dc := new(deadConn)
		if h.unknown {
			trace.GotConn(httptrace.GotConnInfo{Reused: reused})
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		} else {
			trace.GotConn(httptrace.GotConnInfo{Conn: tls.Client(dc, &tls.Config{}), Reused: reused})
		}
		if dc.dead.Load() {
			trace.WroteHeaders()
			trace.WroteRequest(httptrace.WroteRequestInfo{Err: errOwn})
			if reused && ctx.Err() == nil {
				continue
			}
			return nil, errors.New("deadline")
		}
		if h.draw(10) == 0 { // closed before it was written
			if reused {
				continue
			}
			return nil, errors.New("unsent")
		}
		trace.WroteHeaders()
		if h.draw(5) == 0 {
			h.nap(ctx, h.span(time.Second))
		}
		h.hooks.Go(func() { time.Sleep(h.span(250*ms) - 1); h.arrived.mark() })
		if h.draw(10) == 0 { // arrives, and is sent again
			if reused {
				continue
			}
			return nil, errors.New("cut")
		}
		trace.WroteRequest(httptrace.WroteRequestInfo{})
		var err error
		if h.draw(2) == 0 {
			err = h.nap(ctx, 250*ms+h.span(5*time.Second))
		} else {
			err = h.nap(ctx, 250*ms)
		}
		if err != nil {
			return nil, err
		}
		if h.calm.Load() {
			return ok(), nil
		}
		switch h.draw(12) {
		case 0:
			if reused {
				continue
			}
			return nil, errors.New("fails")
		case 1:
			return throttled(""), nil
		case 2:
			return bare(""), nil
		}
		return ok(), nil
	}
}

// TestHooksInOrder has a base call the hooks as net/http does: no more than the limit
// arrive in a second, each call ends, and no slot or permission is lost.
func TestHooksInOrder(t *testing.T) {
	for seed := range uint64(1000) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &legit{hookCaller: hookCaller{r: rand.New(rand.NewPCG(seed, 7))}, arrived: newTimeline()}
				limit := 1 + h.draw(4)
				h.unknown = h.draw(4) == 0
				th := &clarifaihttp.Throttle{Limit: limit, Backoff: ms + h.span(10*time.Second)}
				p := new(permitter)
				rt := h.transport(h, th, p, 3)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var wg sync.WaitGroup
				var ends atomic.Int64
				calls := 1 + h.draw(30)
				for range calls {
					wg.Go(func() {
						defer ends.Add(1)
						time.Sleep(h.span(8 * time.Second))
						ctx, cancel := context.WithCancel(ctx)
						defer cancel()
						switch h.draw(4) {
						case 0:
							time.AfterFunc(h.span(30*time.Second), cancel)
						case 1:
							ctx, cancel = context.WithTimeout(ctx, h.span(60*time.Second))
							defer cancel()
						}
						fetch(ctx, rt, "http://server", nil)
					})
				}
				time.Sleep(10 * time.Minute)
				h.calm.Store(true)
				time.Sleep(50 * time.Minute)
				if n := int(ends.Load()); n != calls {
					t.Errorf("%d of %d still wait: %+v", calls-n, calls, th.Stats())
				}
				cancel()
				wg.Wait()
				h.hooks.Wait()
				idle(t, th)
				if n := h.arrived.peak(); n > limit {
					t.Errorf("%d arrived in a second, limit %d", n, limit)
				}
				if p.permitted.Load() != p.arrived.Load() {
					t.Errorf("permitted %d arrived %d", p.permitted.Load(), p.arrived.Load())
				}
			})
		})
	}
}
