package clarifaihttp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// A hookCaller is a base that calls hooks in any order, on several goroutines,
// some of them when it has returned already.
type hookCaller struct {
	mu    sync.Mutex
	r     *rand.Rand
	hooks sync.WaitGroup
}

func (h *hookCaller) draw(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.r.IntN(n)
}

// span returns a duration of at most d.
func (h *hookCaller) span(d time.Duration) time.Duration { return time.Duration(1 + h.draw(int(d))) }

// transport returns a Transport on base, with p half of the time, and with another
// Transport around it one time in n.
func (h *hookCaller) transport(base http.RoundTripper, th *clarifaihttp.Throttle, p *permitter, n int) http.RoundTripper {
	if h.draw(2) == 0 {
		th.Limiter = p
	}
	rt := forAll(base, th)
	if h.draw(n) == 0 {
		rt = forAll(rt, th)
	}
	return rt
}

func (h *hookCaller) call(trace *httptrace.ClientTrace) {
	for range h.draw(8) {
		switch h.draw(5) {
		case 0:
			trace.GetConn("server:443")
		case 1:
			trace.GotConn(httptrace.GotConnInfo{})
		case 2:
			trace.GotConn(httptrace.GotConnInfo{Conn: tls.Client(new(conn), &tls.Config{}), Reused: h.draw(2) == 0})
		case 3:
			trace.WroteHeaders()
		case 4:
			trace.WroteRequest(httptrace.WroteRequestInfo{})
		}
		if h.draw(3) == 0 {
			time.Sleep(h.span(2 * time.Second))
		}
		if h.draw(40) == 0 {
			time.Sleep(h.span(70 * time.Second))
		}
	}
}

func (h *hookCaller) RoundTrip(req *http.Request) (*http.Response, error) {
	trace := httptrace.ContextClientTrace(req.Context())
	for range h.draw(3) {
		h.hooks.Go(func() { h.call(trace) })
	}
	h.call(trace)
	switch h.draw(6) {
	case 0:
		return nil, errors.New("fails")
	case 1:
		return throttled(""), nil
	case 2:
		return bare(""), nil
	}
	return ok(), nil
}

// TestHooksInAnyOrder has a base call the hooks as no base should: nothing
// panics, and in the end nobody waits and no slot is held.
func TestHooksInAnyOrder(t *testing.T) {
	for seed := range uint64(500) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &hookCaller{r: rand.New(rand.NewPCG(seed, 0))}
				th := &clarifaihttp.Throttle{Limit: 1 + h.draw(3), Backoff: 2 * time.Second}
				rt := h.transport(h, th, new(permitter), 4)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var wg sync.WaitGroup
				for range 1 + h.draw(12) {
					wg.Go(func() {
						time.Sleep(h.span(5 * time.Second))
						ctx, cancel := context.WithCancel(ctx)
						defer cancel()
						if h.draw(2) == 0 {
							time.AfterFunc(h.span(30*time.Second), cancel)
						}
						fetch(ctx, rt, "http://server", nil)
					})
				}
				time.Sleep(time.Hour)
				cancel()
				wg.Wait()
				h.hooks.Wait()
				idle(t, th)
			})
		})
	}
}
