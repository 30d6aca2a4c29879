package clarifaihttp_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// A model is what a Throttle promises, told once more in the plainest way:
// lists that are searched from one end to the other at each step, instants that
// are compared with now, nothing that is kept up to date for speed. It watches a
// Transport in virtual time, goes from each instant at which something may
// change to the next, and compares who was sent and who was refused, when, with
// who should have been.
//
// It knows the pace only within bounds, for how many tokens there are depends on
// when one looks. Between them it accepts what the Throttle does.
type model struct {
	t  *testing.T
	th *clarifaihttp.Throttle
	rt *clarifaihttp.Transport

	limit, limitAtFirst         int
	window, hold, transit       time.Duration
	backoff, maxBackoff, absurd time.Duration
	maxRetries                  int

	callers  []*caller
	line     []*caller // in the order they are to go
	wires    []*wireRequest
	arrivals int // in the line

	pauses      int
	pausedUntil time.Time
	row         int
	probing     bool
	probe       *wireRequest
	probeEnd    time.Time
	pace        modelPace

	attempts, throttled int

	blind bool // Stats are not looked at, for that too has a Throttle see what is over

	mu       sync.Mutex // guards what other goroutines see
	started  map[*caller]time.Time
	returned map[*caller]result
	expected map[*caller]result
}

// A caller does one RoundTrip.
type caller struct {
	ctx      context.Context
	cancel   context.CancelCauseFunc
	deadline time.Time
	large    bool
	orders   chan func(*httptrace.ClientTrace) (*http.Response, error) // to the base

	number            int // of arrival in the line
	class             int // in the line
	tries             int
	asked, got, wrote bool
	resent            bool
	underWay, over    bool
	wire              *wireRequest
}

// The classes of the line.
const (
	resends = iota
	retries
	newcomers
)

// A wireRequest may arrive at any instant from start to until.
type wireRequest struct {
	start, until time.Time // zero until: nothing bounds it yet
	unsent       bool      // it never left
	forced       bool      // its context ended, net/http sent it nevertheless
	probe        bool
	pauses       int // begun before it
}

// A result is how a RoundTrip ends.
type result struct {
	at     time.Time
	status int
	wait   time.Duration // of a WaitError
	err    error
}

// A modelPace is RFC 9438's curve.
type modelPace struct {
	scale                   float64
	cutAt, resumed, lastBad time.Time
	wmax, low               float64
	last                    time.Time // start
	least, most             float64   // rates since then
}

func (p *modelPace) rate(at time.Time) float64 {
	if p.cutAt.IsZero() || at.Sub(p.lastBad) >= time.Hour {
		return math.Inf(1)
	}
	const k = 140
	x := max(at.Sub(p.resumed).Seconds(), 0) - k
	c := (p.wmax - p.low) / (k * k * k)
	if x > 0 {
		c = max(c, 1e-6*p.scale)
	}
	return min(p.wmax+c*x*x*x, 14*p.scale)
}

// change notes the rates before and after f.
func (p *modelPace) change(at time.Time, f func()) {
	before := p.rate(at)
	f()
	p.least = min(p.least, before, p.rate(at))
	p.most = max(p.most, before, p.rate(at))
}

func (p *modelPace) cut(at time.Time, before float64) {
	factor := 0.8
	if !p.cutAt.IsZero() && at.Sub(p.cutAt) < 30*time.Second {
		factor = 0.5
	}
	p.wmax = min(before, 14*p.scale)
	p.low = max(factor*p.wmax, 0.5*p.scale)
	p.cutAt = at
}

func (p *modelPace) start(at time.Time) {
	p.last = at
	p.least, p.most = p.rate(at), p.rate(at)
}

// surely returns when the next start may be for sure.
func (p *modelPace) surely(at time.Time) time.Time {
	least := min(p.least, p.rate(at))
	if p.last.IsZero() || math.IsInf(least, 1) {
		return p.last
	}
	return p.last.Add(time.Duration(1/least*1e9) + 3*time.Microsecond)
}

// never reports whether a start now is too early for sure.
func (p *modelPace) never(at time.Time) bool {
	most := max(p.most, p.rate(at))
	return !p.last.IsZero() && !math.IsInf(most, 1) && at.Sub(p.last).Seconds()*most < 1-1e-6
}

// failf ends the test.
func (m *model) failf(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("at %v: %s\nheld %d of %d, %d in line, paused until %v, probing %v", m.since(time.Now()),
		fmt.Sprintf(format, args...), m.held(time.Now()), m.limit, len(m.line), m.since(m.pausedUntil), m.probing)
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of a bubble

func (m *model) since(at time.Time) time.Duration { return at.Sub(epoch) }

func (w *wireRequest) holds(at time.Time, hold time.Duration) bool {
	return !w.unsent && (w.until.IsZero() || w.until.Add(hold).After(at))
}

func (m *model) held(at time.Time) (n int) {
	for _, w := range m.wires {
		if w.holds(at, m.hold) {
			n++
		}
	}
	return n
}

// arrive begins a RoundTrip.
func (m *model) arrive(large bool, timeout time.Duration) {
	c := &caller{large: large, orders: make(chan func(*httptrace.ClientTrace) (*http.Response, error)), class: newcomers}
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
	m.join(c)
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

func (m *model) sent(c *caller) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started[c] = time.Now()
}

// join puts c in the line, or has it refused.
func (m *model) join(c *caller) {
	now := time.Now()
	m.arrivals++
	c.number = m.arrivals
	c.underWay = false
	if m.late(c, m.ahead(c), now) {
		m.refuse(c, m.ahead(c), now)
		return
	}
	m.line = append(m.line, c)
	slices.SortFunc(m.line, func(a, b *caller) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.number, b.number))
	})
}

// ahead returns how many are before c, who arrives.
func (m *model) ahead(c *caller) (n int) {
	for _, other := range m.line {
		if other.class <= c.class {
			n++
		}
	}
	return n
}

// earliest is the bound for one with so many ahead.
func (m *model) earliest(ahead int, now time.Time) time.Time {
	at := now
	if m.pausedUntil.After(at) {
		at = m.pausedUntil
	}
	if m.held(now) >= m.limit {
		soonest := now.Add(m.hold)
		for _, w := range m.wires {
			if free := w.until.Add(m.hold); w.holds(now, m.hold) && !w.until.IsZero() && free.Before(soonest) {
				soonest = free
			}
		}
		if soonest.After(at) {
			at = soonest
		}
	}
	return at.Add(time.Duration(ahead/m.limit) * m.hold)
}

func (m *model) late(c *caller, ahead int, now time.Time) bool {
	return !c.deadline.IsZero() && c.class != resends && m.earliest(ahead, now).After(c.deadline)
}

func (m *model) refuse(c *caller, ahead int, now time.Time) {
	if c.tries > 0 {
		m.ends(c, result{status: 429})
	} else {
		m.ends(c, result{wait: m.earliest(ahead, now).Sub(now)})
	}
}

// ends notes how c's RoundTrip must have ended now.
func (m *model) ends(c *caller, r result) {
	r.at = time.Now()
	m.expected[c] = r
	c.over, c.underWay = true, false
}

// tick ends a probe that was not answered for long enough.
func (m *model) tick(at time.Time) {
	if m.probe != nil && !at.Before(m.probeEnd) {
		m.probing, m.probe = false, nil
	}
}

// letGo compares those who were sent with those who may go.
func (m *model) letGo() { m.letGoBefore(time.Now().Add(1)) }

// letGoBefore is letGo for those who were sent before now, if end is now.
func (m *model) letGoBefore(end time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.line) > 0 {
		c := m.line[0]
		at, gone := m.started[c]
		if !gone {
			at = time.Now()
		}
		if !at.Before(end) {
			return
		}
		m.tick(at)
		why, may := "", true
		switch {
		case at.Before(m.pausedUntil):
			why, may = "during the pause", false
		case m.probe != nil:
			why, may = "beside the probe", false
		case m.held(at) >= m.limit:
			why, may = "without a slot", false
		case m.pace.never(at):
			why, may = "faster than the pace", false
		case m.pace.surely(at).After(at):
			may = gone
		}
		switch {
		case gone && !may:
			m.failf("the first in line was sent at %v, %s", m.since(at), why)
		case !gone && may:
			m.failf("the first in line waits, although it could go")
		case !gone:
			return
		}
		delete(m.started, c)
		m.line = m.line[1:]
		m.send(c, at, false)
	}
}

// send has c sent.
func (m *model) send(c *caller, at time.Time, forced bool) {
	w := &wireRequest{start: at, pauses: m.pauses, forced: forced}
	switch {
	case !forced:
		m.pace.start(at)
		if m.probing {
			w.probe = true
			m.probe, m.probeEnd = w, at.Add(m.backoff)
		}
	case at.Before(m.pausedUntil):
		w.pauses-- // it did not wait for the end
	}
	if c.class != resends {
		c.tries++
		c.asked, c.got, c.wrote, c.resent = false, false, false, false
	}
	c.underWay, c.wire = true, w
	m.wires = append(m.wires, w)
	m.attempts++
}

// settle looks at what happened until now, when no goroutine can go on, and
// compares all that can be seen.
func (m *model) settle() {
	m.t.Helper()
	synctest.Wait()
	m.letGo()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.started) > 0 {
		m.failf("%d sent that were not the first in line", len(m.started))
	}
	for c, want := range m.expected {
		got, ok := m.returned[c]
		if !ok {
			m.failf("no RoundTrip returned, want %+v", want)
		}
		if got.at != want.at || got.status != want.status || got.wait != want.wait || !errors.Is(got.err, want.err) {
			m.failf("RoundTrip returned %+v, want %+v", got, want)
		}
		delete(m.returned, c)
	}
	for _, got := range m.returned {
		m.failf("RoundTrip returned %+v, want none", got)
	}
	clear(m.expected)

	if m.blind {
		return
	}
	now := time.Now()
	want := clarifaihttp.Stats{Attempts: m.attempts, Throttled: m.throttled, Waiting: len(m.line), Held: m.held(now), Limit: m.limit}
	if now.Before(m.pausedUntil) {
		want.PausedUntil = m.pausedUntil
	}
	got := m.th.Stats()
	got.Waited = 0
	if got != want {
		m.failf("%+v, want %+v", got, want)
	}
}

// pass lets time pass, from one instant at which something may change to the next.
func (m *model) pass(d time.Duration) {
	for end := time.Now().Add(d); ; {
		now := time.Now()
		next := end
		consider := func(at time.Time) {
			if at.After(now) && at.Before(next) {
				next = at
			}
		}
		for _, c := range m.callers {
			if !c.over && !c.deadline.IsZero() {
				consider(c.deadline)
			}
		}
		if len(m.line) > 0 {
			consider(m.pausedUntil)
			consider(m.probeEnd)
			consider(m.pace.surely(now))
			for _, w := range m.wires {
				consider(w.until.Add(m.hold))
			}
		}
		time.Sleep(next.Sub(now))
		synctest.Wait()
		m.letGoBefore(next)
		for _, c := range m.callers {
			if !c.over && c.deadline.Equal(next) {
				m.end(c, context.DeadlineExceeded)
			}
		}
		m.settle()
		if next.Equal(end) {
			return
		}
	}
}

// end has c's context end, for the reason given.
func (m *model) end(c *caller, why error) {
	i := slices.Index(m.line, c)
	if i >= 0 {
		m.line = slices.Delete(m.line, i, i+1)
		if c.class != resends {
			m.ends(c, result{err: why})
			return
		}
		m.send(c, time.Now(), true)
		m.mu.Lock()
		delete(m.started, c)
		m.mu.Unlock()
	}
	m.fails(c, why)
}

func (m *model) cancel(c *caller) {
	why := errors.New("canceled")
	c.cancel(why)
	synctest.Wait()
	m.end(c, why)
	m.settle()
}

// order has the base do something for c.
func (m *model) order(c *caller, f func(*httptrace.ClientTrace) (*http.Response, error)) {
	c.orders <- f
	synctest.Wait()
}

func (m *model) ask(c *caller) {
	m.order(c, func(trace *httptrace.ClientTrace) (*http.Response, error) {
		trace.GetConn("server:443")
		return nil, nil
	})
	c.asked = true
	m.settle()
}

func (m *model) connect(c *caller) {
	m.ask(c)
	m.order(c, func(trace *httptrace.ClientTrace) (*http.Response, error) {
		trace.GotConn(httptrace.GotConnInfo{})
		return nil, nil
	})
	c.got = true
	m.settle()
}

func (m *model) write(c *caller) {
	m.order(c, func(trace *httptrace.ClientTrace) (*http.Response, error) {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
		return nil, nil
	})
	c.wrote = true
	now := time.Now()
	m.tick(now)
	if !c.resent {
		if !c.large && m.th.Transit >= 0 {
			c.wire.until = now.Add(m.transit)
		}
		if m.probe == c.wire && now.Add(m.window).Before(m.probeEnd) {
			m.probeEnd = now.Add(m.window)
		}
	}
	m.settle()
}

// resend has the base send c's request again by itself.
func (m *model) resend(c *caller) {
	c.orders <- func(trace *httptrace.ClientTrace) (*http.Response, error) {
		trace.GetConn("server:443")
		trace.GotConn(httptrace.GotConnInfo{})
		m.sent(c)
		return nil, nil
	}
	synctest.Wait()
	m.gone(c.wire)
	m.letGo() // who is first may be the probe in its stead
	c.resent, c.class = true, resends
	m.join(c)
	m.settle()
}

// gone notes that w's request failed when it may have been sent.
func (m *model) gone(w *wireRequest) {
	now := time.Now()
	m.tick(now)
	if w.holds(now, m.hold) {
		w.until = now.Add(m.transit)
	}
	if m.probe == w {
		m.probe = nil
	}
}

// fails has the base's RoundTrip of c fail.
func (m *model) fails(c *caller, why error) {
	m.gone(c.wire)
	if c.asked && !c.got {
		c.wire.unsent = true
	}
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
	m.tick(now)
	if w.until.IsZero() || w.until.After(now) {
		w.until = now
	}
}

// answer has c's request answered, maybe before all of it was written.
func (m *model) answer(c *caller, early bool) {
	var hooks *httptrace.ClientTrace
	m.order(c, func(trace *httptrace.ClientTrace) (*http.Response, error) {
		hooks = trace
		return ok(), nil
	})
	m.answered(c.wire)
	if m.probe == c.wire {
		m.probing, m.probe = false, nil
	}
	m.ends(c, result{status: 200})
	m.settle()
	if early && c.got && !c.wrote {
		hooks.WroteRequest(httptrace.WroteRequestInfo{})
		m.settle()
	}
}

// throttle has c's request throttled, with Retry-After unless that is negative,
// and a limit named.
func (m *model) throttle(c *caller, retryAfter time.Duration, limit int) {
	m.order(c, func(*httptrace.ClientTrace) (*http.Response, error) {
		resp := respond(429, fmt.Sprintf(throttledBody, limit))
		if retryAfter >= 0 {
			resp.Header.Set("Retry-After", fmt.Sprint(int(retryAfter/time.Second)))
		}
		return resp, nil
	})
	now := time.Now()
	m.answered(c.wire)
	m.throttled++
	asked, absurd := retryAfter, retryAfter > m.absurd
	if absurd {
		asked = m.maxBackoff
	}
	rate := m.pace.rate(now)
	m.pace.change(now, func() { m.pace.lastBad = now })
	if limit >= 1 && limit < m.limit && m.window == time.Second {
		m.limit = limit
	}

	until, began := m.pausedUntil, c.wire.pauses == m.pauses
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
		if retryAfter >= 0 {
			wait = asked.Seconds()
			if m.row > 0 {
				wait = max(wait, min(m.maxBackoff.Seconds(), m.window.Seconds()*double))
			}
		}
		until = now.Add(time.Duration(wait * 1e9))
		m.pauses++
		m.probing, m.probe = true, nil
	case now.Before(m.pausedUntil):
		if end := now.Add(max(m.backoff, asked)); end.After(until) {
			until = end
		}
	}
	if until.Before(m.pausedUntil) {
		m.failf("the model itself cuts a pause short")
	}
	if began || until.After(m.pausedUntil) {
		m.pausedUntil = until
		m.pace.change(now, func() { m.pace.resumed = until })
		var stay []*caller
		for _, other := range m.line {
			if m.late(other, len(stay), now) {
				m.refuse(other, len(stay), now)
			} else {
				stay = append(stay, other)
			}
		}
		m.line = stay
	}

	m.letGo() // a pause may be over at once
	c.class = retries
	if c.tries > m.maxRetries || absurd {
		m.ends(c, result{status: 429})
	} else {
		m.join(c)
	}
	m.settle()
}

// finish has all end, and looks back.
func (m *model) finish() {
	for _, c := range m.callers {
		if !c.over {
			m.cancel(c)
		}
	}
	m.pass(m.hold + m.transit)
	if s := m.th.Stats(); s.Held != 0 || s.Waiting != 0 {
		m.failf("in the end: %+v", s)
	}
	// The windows that have the most begin with a request's last instant.
	for _, w := range m.wires {
		n := 0
		for _, other := range m.wires {
			if !other.unsent && !other.forced && !other.until.Before(w.until) && other.start.Before(w.until.Add(m.window)) {
				n++
			}
		}
		if !w.unsent && n > m.limitAtFirst {
			m.failf("%d may have arrived in a window, the limit is %d", n, m.limitAtFirst)
		}
	}
}

// A permitter is a Limiter that permits all and counts.
type permitter struct{ permitted, arrived atomic.Int64 }

func (p *permitter) Wait(context.Context) error { p.permitted.Add(1); return nil }
func (p *permitter) Arrived()                   { p.arrived.Add(1) }

// follow turns bytes into a script and follows it.
func follow(t *testing.T, script []byte) {
	next := func() (b int) {
		if len(script) > 0 {
			b, script = int(script[0]), script[1:]
		}
		return b
	}
	durations := []time.Duration{0, ms, 10 * ms, 50 * ms, 100 * ms, 250 * ms, 300 * ms, 500 * ms, 1000 * ms, hold, 1260 * ms,
		2 * time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second, 100 * time.Second}

	config := next()
	th := &clarifaihttp.Throttle{Limit: []int{1, 2, 3, 15}[config&3]}
	switch config >> 2 & 3 {
	case 1:
		th.Transit = -1
	case 2:
		th.Window, th.Transit = 100*ms, time.Second
	case 3:
		th.Window, th.Transit = 10*time.Second, ms
	}
	switch config >> 4 & 3 {
	case 1:
		th.Backoff, th.MaxBackoff = 500*ms, 2*time.Second
	case 2:
		th.Backoff = 70 * time.Second
	}
	if config>>6&1 != 0 {
		th.Limit = 4
	}
	limiter := new(permitter)
	if config>>7 != 0 {
		th.Limiter = limiter
	}
	more := next()
	m := &model{
		blind: more&1 != 0,
		t:     t, th: th, maxRetries: 1 + 9*(more>>1&1),
		limit: th.Limit, limitAtFirst: th.Limit,
		window:   cmp.Or(th.Window, time.Second),
		transit:  cmp.Or(max(th.Transit, 0), 250*ms),
		backoff:  cmp.Or(th.Backoff, 15*time.Second),
		started:  make(map[*caller]time.Time),
		returned: make(map[*caller]result),
		expected: make(map[*caller]result),
	}
	m.hold = m.window + 10*ms
	m.maxBackoff = cmp.Or(th.MaxBackoff, max(60*time.Second, m.backoff))
	m.absurd = 4 * m.maxBackoff
	m.pace.scale = float64(th.Limit) / 15 / m.window.Seconds()
	m.rt = clarifaihttp.NewTransport(roundTripperFunc(m.base), clarifaihttp.WithThrottle(th),
		clarifaihttp.WithLogger(quiet), clarifaihttp.WithMaxRetries(m.maxRetries))

	// one of those who are at a stage; nil if there is none
	choose := func(stage func(*caller) bool) *caller {
		var among []*caller
		for _, c := range m.callers {
			if !c.over && stage(c) {
				among = append(among, c)
			}
		}
		n := next()
		if len(among) == 0 {
			return nil
		}
		return among[n%len(among)]
	}
	underWay := func(c *caller) bool { return c.underWay }
	connected := func(c *caller) bool { return c.underWay && c.got }
	anyone := func(*caller) bool { return true }
	for len(script) > 0 && len(m.callers) < 100 {
		op := next()
		switch op % 16 {
		case 0, 1:
			m.arrive(false, 0)
		case 2:
			m.arrive(next()%4 == 0, durations[next()%len(durations)])
		case 3:
			for range next() % 20 {
				m.arrive(false, 0)
			}
		case 4, 5:
			m.pass(durations[next()%len(durations)] + time.Duration(next())*ms)
		case 6:
			if c := choose(func(c *caller) bool { return c.underWay && !c.asked }); c != nil {
				m.ask(c)
			}
		case 7, 8:
			if c := choose(func(c *caller) bool { return c.underWay && !c.got }); c != nil {
				m.connect(c)
				if op > 127 {
					m.write(c)
				}
			}
		case 9:
			if c := choose(func(c *caller) bool { return c.underWay && c.got && !c.wrote }); c != nil {
				m.write(c)
			}
		case 10:
			if c := choose(underWay); c != nil {
				m.answer(c, op > 127)
			}
		case 11, 12:
			if c := choose(underWay); c != nil {
				n := next()
				retryAfter := []time.Duration{-1, -1, -1, 0, time.Second, 7 * time.Second, 30 * time.Second, 1000 * time.Second}[n&7]
				m.throttle(c, retryAfter, []int{1000, 1000, 1000, 1000, 0, 10, 2, 1}[n>>3&7])
			}
		case 13:
			if c := choose(connected); c != nil {
				m.resend(c)
			}
		case 14:
			if c := choose(underWay); c != nil {
				m.fail(c)
			}
		case 15:
			if c := choose(anyone); c != nil {
				m.cancel(c)
			}
		}
	}
	m.finish()
	if p, a := limiter.permitted.Load(), limiter.arrived.Load(); p != a {
		t.Errorf("the Limiter gave %d permissions and was told of %d arrivals", p, a)
	}
}

// FuzzThrottle turns bytes into a script: requests arrive, are written,
// answered, throttled, canceled, fail, are sent again; time passes.
func FuzzThrottle(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for config := range 256 {
		script := []byte{byte(config), byte(rng.Uint32())}
		for range 20 + rng.IntN(200) {
			script = append(script, byte(rng.Uint32()))
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) { follow(t, script[:min(len(script), 1000)]) })
	})
}
