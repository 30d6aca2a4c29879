package clarifaihttp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

var errRefused = errors.New("refused")

func (m *model) newWire() *wireRequest {
	w := new(wireRequest)
	m.wires = append(m.wires, w)
	return w
}

// arrive begins a RoundTrip.
func (m *model) arrive(large bool, timeout time.Duration) {
	c := &caller{large: large, orders: make(chan func(*httptrace.ClientTrace) (*http.Response, error)), wire: m.newWire()}
	ctx := context.WithValue(m.t.Context(), m, c)
	if timeout > 0 {
		// No two instants are the same, lest chance decides which comes first.
		offset := time.Duration(len(m.callers) + 1)
		if len(m.callers)%2 == 0 {
			offset = -offset
		}
		c.deadline = time.Now().Add(timeout + offset)
		var stop context.CancelFunc
		ctx, stop = context.WithDeadline(ctx, c.deadline)
		context.AfterFunc(m.t.Context(), stop)
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	m.callers = append(m.callers, c)
	req := get(c.ctx, m.t)
	if large {
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("large")), nil }
		req.Body, _ = req.GetBody()
		req.ContentLength = 64<<10 + 1
	}
	go func() {
		resp, err := m.rt.RoundTrip(req)
		r := result{at: time.Now(), err: err}
		if late, ok := errors.AsType[*clarifaihttp.WaitError](err); ok {
			r.wait, r.err = late.Wait, nil
		}
		if resp != nil {
			r.status = resp.StatusCode
			resp.Body.Close()
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.returned[c] = r
	}()
	m.queue(c, newcomers)
	m.settle()
}

// base is sent the requests. It does as it is told.
func (m *model) base(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	c := req.Context().Value(m).(*caller)
	m.sent(c)
	trace := httptrace.ContextClientTrace(req.Context())
	for {
		select {
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		case order := <-c.orders:
			if resp, err := order(trace); resp != nil || err != nil {
				return resp, err
			}
		}
	}
}

// sent notes that c was let go, be it to the base or on its connection.
func (m *model) sent(c *caller) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started[c] = time.Now()
}

// order has the base do something for c.
func (m *model) order(c *caller, f func(*httptrace.ClientTrace) (*http.Response, error)) {
	c.orders <- f
	synctest.Wait()
}

// ask has the base ask for a connection for c.
func (m *model) ask(c *caller) {
	m.jog()
	if !c.underWay {
		return // it has ended meanwhile
	}
	m.order(c, func(trace *httptrace.ClientTrace) (*http.Response, error) {
		trace.GetConn("server:443")
		return nil, nil
	})
	if w := c.wire; !w.asked {
		w.asked = true
		now := time.Now()
		if m.holds(w, now) && !w.until.IsZero() && !w.until.After(now) {
			m.giveBack(w) // it was taken to have arrived
		}
		w.slot, w.until = m.holds(w, now), time.Time{}
		w.lapses = time.Now().Add(m.hold << min(c.requeued, 6))
	}
	m.settle()
	m.jog()
}

// The kinds of connections that a base gets.
const (
	shared = iota // no request can be kept from being sent on it
	fresh         // it can, and it is not held for long
	reused        // it can; it is not held for long for a request with a body
	kinds
)

// gotConn returns what the base does when it gets a connection for c.
func (m *model) gotConn(c *caller, kind int) func(*httptrace.ClientTrace) (*http.Response, error) {
	var info httptrace.GotConnInfo
	c.conn = nil
	if kind != shared {
		c.conn = new(conn)
		info.Conn, info.Reused = tls.Client(c.conn, &tls.Config{}), kind == reused
	}
	held := c.conn
	return func(trace *httptrace.ClientTrace) (*http.Response, error) {
		trace.GotConn(info)
		if held != nil && held.closed.Load() {
			return nil, errRefused
		}
		trace.WroteHeaders()
		m.sent(c)
		return nil, nil
	}
}

// connect has the base get a connection for c.
func (m *model) connect(c *caller, kind int) {
	if !c.wire.asked {
		m.ask(c)
	}
	m.jog()
	if !c.underWay {
		return
	}
	m.order(c, m.gotConn(c, kind))
	w := c.wire
	w.got, w.lapsed = true, false
	if w.slot && w.pauses == m.pauses {
		w.until = time.Now().Add(time.Minute)
		m.mu.Lock()
		if _, ok := m.started[c]; !ok {
			m.failf("it has a slot and waits with its connection")
		}
		delete(m.started, c)
		m.mu.Unlock()
	} else {
		m.giveBack(w)
		m.wait(c, kind)
	}
	m.settle()
	m.jog()
}

// wait has c wait with the connection that it got.
func (m *model) wait(c *caller, kind int) {
	if c.class != holders {
		c.home = c.place
	}
	if kind == fresh || kind == reused && c.large {
		c.patience = time.Now().Add(time.Second << min(c.requeued, 6))
	}
	m.queue(c, holders)
}

// requeue has c, which held its connection for too long, wait at its old place.
func (m *model) requeue(c *caller) {
	m.leave(c)
	m.letGo()
	counted := c.wire.counted
	c.wire.unsent = true
	c.wire = m.newWire()
	c.wire.counted = counted
	c.patience, c.resent = time.Time{}, false
	c.requeued++
	c.place = c.home
	m.join(c)
}

func (m *model) write(c *caller) {
	m.order(c, func(trace *httptrace.ClientTrace) (*http.Response, error) {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
		return nil, nil
	})
	w := c.wire
	now := time.Now()
	if !c.resent {
		w.written = now
		if m.probe == w && now.Add(m.window).Before(m.probeEnd) {
			m.probeEnd = now.Add(m.window)
		}
		if !m.holds(w, now) {
			w.slot, w.forced = true, true
		}
		switch {
		case m.th.Transit < 0:
			w.until = time.Time{}
		case c.large:
			w.until = now.Add(time.Minute)
		default:
			w.until = now.Add(m.transit)
		}
	}
	m.settle()
}

// resend has the base send c's request again by itself.
func (m *model) resend(c *caller, kind int) {
	m.jog()
	if !c.underWay {
		return
	}
	c.orders <- func(trace *httptrace.ClientTrace) (*http.Response, error) {
		trace.GetConn("server:443")
		return m.gotConn(c, kind)(trace)
	}
	synctest.Wait()
	m.gone(c.wire)
	c.resent = true
	c.wire = m.newWire()
	c.wire.asked, c.wire.got = true, true
	m.wait(c, kind)
	m.settle()
	m.jog()
}

// end has c's context end, for the reason given.
func (m *model) end(c *caller, why error) {
	inLine := m.leave(c)
	switch {
	case inLine && c.class == holders && c.conn == nil:
		// It is sent nevertheless.
		m.take(c, time.Now())
		c.wire.forced = true
		if time.Now().Before(m.pausedUntil) {
			c.wire.pauses--
		}
		m.mu.Lock()
		delete(m.started, c)
		m.mu.Unlock()
		m.fails(c, why)
	case c.underWay:
		m.fails(c, why)
	default:
		c.rests = time.Time{}
		m.ends(c, result{err: why})
	}
}

func (m *model) cancel(c *caller) {
	why := errors.New("canceled")
	c.cancel(why)
	synctest.Wait()
	m.end(c, why)
	m.settle()
}

// gone notes that w will not be answered.
func (m *model) gone(w *wireRequest) {
	now := time.Now()
	switch {
	case w.asked && !w.got:
		w.unsent, w.lapsed = true, false
		m.giveBack(w)
	case m.holds(w, now):
		w.until = now.Add(m.transit)
	}
	w.got = true // or waits for none any more
	m.lost(w)
}

// fails has the base's RoundTrip of c fail.
func (m *model) fails(c *caller, why error) {
	m.gone(c.wire)
	m.ends(c, result{err: why})
}

func (m *model) fail(c *caller) {
	why := errors.New("failed")
	m.order(c, func(*httptrace.ClientTrace) (*http.Response, error) { return nil, why })
	m.fails(c, why)
	m.settle()
}

func (m *model) answered(w *wireRequest) {
	now := time.Now()
	switch {
	case m.holds(w, now):
		if w.until.IsZero() || w.until.After(now) {
			w.until = now
		}
	case w.asked && !w.got: // it went without a connection that one knows of
		w.slot, w.until, w.forced = true, now, true
	}
	w.got, w.lapsed = true, false
}

// answer has c's request answered, maybe before all of it was written.
func (m *model) answer(c *caller, early bool) {
	early = early && c.wire.got && c.wire.written.IsZero()
	var hooks *httptrace.ClientTrace
	m.order(c, func(trace *httptrace.ClientTrace) (*http.Response, error) {
		hooks = trace
		return ok(), nil
	})
	m.answered(c.wire)
	c.wire.other = true
	if m.probe == c.wire {
		m.probing, m.probe = false, nil
	}
	m.ends(c, result{status: 200})
	m.settle()
	if early {
		hooks.WroteRequest(httptrace.WroteRequestInfo{})
		m.settle()
	}
}

// A refusal is a throttled response.
type refusal struct {
	bare       bool          // without a Clarifai status
	retryAfter time.Duration // negative: none
	limit      int           // that it names
}

// throttle has c's request throttled.
func (m *model) throttle(c *caller, r refusal) {
	if r.bare {
		m.jog()
		if !c.underWay {
			return
		}
	}
	m.order(c, func(*httptrace.ClientTrace) (*http.Response, error) {
		resp := respond(429, fmt.Sprintf(throttledBody, r.limit))
		if r.bare {
			resp = respond(429, "slow down")
		}
		if r.retryAfter >= 0 {
			resp.Header.Set("Retry-After", fmt.Sprint(int(r.retryAfter/time.Second)))
		}
		return resp, nil
	})
	now := time.Now()
	m.answered(c.wire)
	for len(m.line) > 0 && m.takesBack(m.next(), now) { // it may have a slot that it had given back
	}
	m.throttled++
	asked, absurd := r.retryAfter, r.retryAfter > m.absurd
	if absurd {
		asked = m.maxBackoff
	}
	if !r.bare {
		m.learn(r.limit)
	}

	late := c.wire.pauses != m.pauses
	began := !late && (!r.bare || m.blames(c.wire))
	rate := m.pace.rate(now)
	if !r.bare || began {
		m.pace.change(now, func() { m.pace.lastBad = now })
	}
	until := m.pausedUntil
	switch {
	case began:
		if c.wire.probe {
			m.row++
		} else {
			m.row = 0
			m.pace.change(now, func() { m.pace.cut(now, rate) })
		}
		double := math.Pow(2, float64(m.row))
		wait := min(m.maxBackoff.Seconds(), m.backoff.Seconds()*double)
		if asked >= 0 {
			wait = asked.Seconds()
			if m.row > 0 {
				wait = max(wait, min(m.maxBackoff.Seconds(), m.window.Seconds()*double))
			}
		}
		until = now.Add(time.Duration(wait * 1e9))
		m.pauses++
		m.forBare, m.bareProbes = r.bare, 0
		m.probing, m.probe, m.run = true, nil, nil
	case late && now.Before(m.pausedUntil) && (!r.bare || m.forBare):
		end := now.Add(m.backoff)
		if asked >= 0 {
			end = now.Add(asked)
		}
		if end.After(until) {
			until = end
		}
	}
	if until.Before(m.pausedUntil) {
		m.failf("the model itself cuts a pause short")
	}
	if began || until.After(m.pausedUntil) {
		m.pausedUntil = until
		m.pace.change(now, func() { m.pace.resumed = until })
		if began || until.Sub(m.scanned) > 100*ms {
			m.scan()
		}
	}

	m.letGo() // a pause may be over at once
	c.throttled++
	c.badProbe, c.requeued, c.resent = c.wire.probe, 0, false
	rest := asked
	if r.bare {
		c.bare++
		switch {
		case asked < 0:
			rest = time.Duration(min(m.maxBackoff.Seconds(), m.backoff.Seconds()*math.Pow(2, float64(c.bare-1))) * 1e9)
		case c.bare > 1:
			rest = max(rest, m.window) // not all retries at once
		}
		rest = max(rest, ms)
	}
	wake := now.Add(rest)
	if m.pausedUntil.After(wake) {
		wake = m.pausedUntil
	}
	switch {
	case c.throttled > m.maxRetries, absurd, r.bare && !c.deadline.IsZero() && wake.After(c.deadline):
		m.ends(c, result{status: 429})
	case r.bare:
		c.underWay = false
		c.rests = now.Add(rest)
	default:
		c.wire = m.newWire()
		m.queue(c, retries)
	}
	m.settle()
	if r.bare {
		m.jog()
	}
}

// learn notes that the server named a limit.
func (m *model) learn(limit int) {
	switch {
	case limit < 1 || limit > m.limit || limit >= m.configured || m.window != time.Second:
		return
	case limit == m.limit: // named once more
	case limit == m.learned: // learned once more
		m.keep = min(2*m.keep, 24*time.Hour)
	default:
		m.keep = time.Hour
	}
	m.limit, m.learned = limit, limit
	m.restored = time.Now().Add(m.keep)
}

// blames reports whether the account is to blame for the bare 429 that w came
// back as: if it is the third probe in a row that did, or if three wire requests
// that were let go one directly after the other did.
func (m *model) blames(w *wireRequest) bool {
	now := time.Now()
	w.bare = true
	if m.probe == w {
		m.probe = nil
		m.bareProbes++
		return m.bareProbes == 3
	}
	n, within := 0, false // of the run that w is in
	for _, other := range m.run {
		switch {
		case other.bare:
			n++
			within = within || other == w
		case other.other || !other.written.IsZero() && now.Sub(other.written) >= m.window:
			if within {
				return n >= 3
			}
			n = 0
		}
	}
	return within && n >= 3
}
