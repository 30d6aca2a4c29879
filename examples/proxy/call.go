package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

var errStopping = errors.New("the proxy is being stopped")

// A call is a request from its arrival to its answer, and is the context that
// the request has meanwhile. Its deadline is for the answer to begin: then it
// falls away, and a stream may flow for as long as it likes.
type call struct {
	context.Context
	cancel   context.CancelCauseFunc
	deadline time.Time
	timer    *time.Timer // cancels at the deadline
	answered atomic.Bool
	forget   func() bool // stopping

	mu       sync.Mutex
	inLine   bool // of the throttle, or about to be
	stopping bool
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// newCall returns a call that has timeout, and is refused if stopping ends
// while it is in line. It must be ended.
func newCall(ctx context.Context, timeout time.Duration, stopping context.Context) *call {
	ctx, cancel := context.WithCancelCause(ctx)
	c := &call{Context: ctx, cancel: cancel, deadline: time.Now().Add(timeout), inLine: true}
	c.timer = time.AfterFunc(timeout, func() { cancel(context.DeadlineExceeded) })
	c.forget = context.AfterFunc(stopping, c.stop)
	return c
}

func (c *call) end() {
	c.timer.Stop()
	c.forget()
	c.cancel(nil)
}

// Deadline returns the earlier one of its own, until it is answered, and the
// request's.
func (c *call) Deadline() (time.Time, bool) {
	d, ok := c.Context.Deadline()
	if c.answered.Load() || ok && d.Before(c.deadline) {
		return d, ok
	}
	return c.deadline, true
}

func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// answer notes that the answer begins.
func (c *call) answer() {
	c.answered.Store(true)
	c.timer.Stop()
}

// stop refuses the call if it is in line, now or when it comes back there.
func (c *call) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = true
	if c.inLine {
		c.cancel(errStopping)
	}
}

// leaveLine notes that the throttle let the call go. It returns why it must not,
// if it was refused meanwhile.
func (c *call) leaveLine() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inLine = false
	return context.Cause(c)
}

// backInLine notes that the response was thrown away, to be replaced by that of
// a retry; unless it is the answer.
func (c *call) backInLine() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answered.Load() {
		return
	}
	c.inLine = true
	if c.stopping {
		c.cancel(errStopping)
	}
}

// underWay is what the Transport sends by: it tells calls when they are in line
// no more.
type underWay struct{ base http.RoundTripper }

func (u underWay) RoundTrip(req *http.Request) (*http.Response, error) {
	c := callOf(req.Context())
	if err := c.leaveLine(); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	resp, err := u.base.RoundTrip(req)
	// A throttled response has a body, which the Transport closes before it waits.
	// Other bodies that are looked at for what they are stay so.
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols && (resp.Body != http.NoBody || resp.StatusCode == http.StatusTooManyRequests) {
		resp.Body = &body{resp.Body, c}
	}
	return resp, err
}

// A body tells its call when it is closed.
type body struct {
	io.ReadCloser
	call *call
}

func (b *body) Close() error {
	b.call.backInLine()
	return b.ReadCloser.Close()
}
