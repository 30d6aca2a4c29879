package clarifaihttp_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
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

// A model is what a Throttle promises, told once more in the plainest way:
// lists that are searched from one end to the other at each step, instants that
// are compared with now, nothing that is kept up to date for speed. It watches a
// Transport in virtual time, goes from each instant at which something may
// change to the next, and compares who was sent and who was refused, when, with
// who should have been.
//
// It knows the pace only within bounds, for how many tokens there are depends on
// when one looks. Between them it accepts what the Throttle does.
//
// This file has the rules, model_events_test.go what happens to requests, and
// model_script_test.go the scripts.
type model struct {
	t  *testing.T
	th *clarifaihttp.Throttle
	rt *clarifaihttp.Transport

	window, hold, transit       time.Duration
	backoff, maxBackoff, absurd time.Duration
	maxRetries                  int

	callers  []*caller
	line     []*caller // in the order they are to go
	wires    []*wireRequest
	arrivals int // in the line
	letGos   int

	limit, configured, learned int
	keep                       time.Duration // a learned limit
	restored                   time.Time     // the configured limit, then

	pauses      int
	pausedUntil time.Time
	scanned     time.Time // end of the pause when the line was last looked through
	forBare     bool      // the latest pause began for bare 429s
	row         int       // of throttled probes
	bareProbes  int       // in a row
	probing     bool      // there must be a probe before others go
	probe       *wireRequest
	probeEnd    time.Time
	run         []*wireRequest // let go since, of calls without a bare 429 and no probes
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

	place
	home     place     // of one that holds a connection
	conn     *conn     // that it got; nil: one that cannot be closed
	patience time.Time // until when it holds a connection without a slot; zero: for ever

	throttled int // attempts
	bare      int // 429s of these
	badProbe  bool
	requeued  int // times, in this attempt
	resent    bool
	rests     time.Time // after a bare 429, until then
	underWay  bool
	over      bool
	wire      *wireRequest // the latest
}

// A place is where one is in the line.
type place struct{ class, number int }

// The classes of the line.
const (
	holders = iota // of a connection
	retries
	newcomers
)

// A wireRequest may arrive at any instant from start to until.
type wireRequest struct {
	start   time.Time // when it was let go; zero: it was not
	order   int       // among those let go
	counted bool      // as an attempt
	pauses  int       // begun before it
	probe   bool

	slot   bool
	until  time.Time // W later it has none any more; zero: nothing bounds that yet
	asked  bool      // for a connection
	lapses time.Time // then it loses its slot, if it has no connection
	lapsed bool      // and waits for a connection without it
	got    bool      // a connection

	written time.Time
	bare    bool // its answer is a bare 429
	other   bool // its answer is none
	unsent  bool // it never left
	forced  bool // it was sent although it must not be
}

// A result is how a RoundTrip ends.
type result struct {
	at     time.Time
	status int
	wait   time.Duration // of a WaitError
	err    error
}

// A conn is for one request at a time, and can be closed.
type conn struct {
	net.Conn
	closed atomic.Bool
}

func (c *conn) SetDeadline(time.Time) error { c.closed.Store(true); return nil }

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

func (m *model) holds(w *wireRequest, at time.Time) bool {
	return w.slot && (w.until.IsZero() || w.until.Add(m.hold).After(at))
}

func (m *model) held(at time.Time) (n int) {
	for _, w := range m.wires {
		if m.holds(w, at) {
			n++
		}
	}
	return n
}

// connecting reports whether w has a slot and waits for a connection.
func connecting(w *wireRequest) bool { return w.slot && w.asked && !w.got }

// tick does what time does by itself, in order: a wire request that does not
// get its connection gives its slot back, the probe is over, the configured
// limit is restored.
func (m *model) tick(at time.Time) {
	for {
		when, lapsed := at, 0
		var first *wireRequest
		for _, w := range m.wires {
			if connecting(w) && !w.lapses.After(when) && (first == nil || w.lapses.Before(when)) {
				first, when = w, w.lapses
			}
			if w.lapsed {
				lapsed++
			}
		}
		if m.probe != nil && !when.Before(m.probeEnd) {
			m.probing, m.probe = false, nil
		}
		if m.limit < m.configured && !when.Before(m.restored) {
			m.limit = m.configured
		}
		switch {
		case first == nil:
			return
		case lapsed >= m.limit:
			first.lapses = first.lapses.Add(m.hold)
		default:
			m.giveBack(first)
			first.lapsed = true
		}
	}
}

// giveBack takes from w what it was given.
func (m *model) giveBack(w *wireRequest) {
	w.slot = false
	m.lost(w)
}

// lost notes that nothing is to be learned from w.
func (m *model) lost(w *wireRequest) {
	if m.probe == w {
		m.probe = nil
	}
	m.run = slices.DeleteFunc(m.run, func(other *wireRequest) bool { return other == w })
}

// join puts c in the line, or has it refused.
func (m *model) join(c *caller) {
	now := time.Now()
	c.underWay = false
	ahead := 0
	for _, other := range m.line {
		if before(other, c) < 0 {
			ahead++
		}
	}
	if m.late(c, ahead, now) {
		m.refuse(c, ahead, now)
		return
	}
	m.line = append(m.line, c)
	slices.SortFunc(m.line, before)
}

func before(a, b *caller) int {
	return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.number, b.number))
}

// queue puts c in the line as the last of a class.
func (m *model) queue(c *caller, class int) {
	m.arrivals++
	c.place = place{class, m.arrivals}
	m.join(c)
}

// leave takes c out of the line, and reports whether it was in.
func (m *model) leave(c *caller) bool {
	i := slices.Index(m.line, c)
	if i >= 0 {
		m.line = slices.Delete(m.line, i, i+1)
	}
	return i >= 0
}

// earliest is the bound for one with so many ahead, who has time until by.
func (m *model) earliest(ahead int, by, now time.Time) time.Time {
	limit := m.limit
	if !m.restored.After(by) {
		limit = m.configured
	}
	resumed := now
	if m.pausedUntil.After(now) {
		resumed = m.pausedUntil
	}
	at := resumed.Add(time.Duration(ahead/limit) * m.hold)

	free := max(limit-m.held(now), 0)
	soonest := now.Add(m.hold)
	for _, w := range m.wires {
		if !m.holds(w, now) {
			continue
		}
		if !w.got {
			free++ // it may fail at once
		}
		switch {
		case connecting(w) && w.lapses.Before(soonest):
			soonest = w.lapses
		case !w.until.IsZero() && w.until.Add(m.hold).Before(soonest):
			soonest = w.until.Add(m.hold)
		}
	}
	if p := ahead - free; p >= 0 {
		if slot := soonest.Add(time.Duration(p/limit) * m.hold); slot.After(at) {
			at = slot
		}
	}
	if paced := resumed.Add(time.Duration(float64(ahead) / m.pace.rate(by) * 1e9)); paced.After(at) {
		at = paced
	}
	return at
}

func (m *model) late(c *caller, ahead int, now time.Time) bool {
	return !c.deadline.IsZero() && c.class != holders && m.earliest(ahead, c.deadline, now).After(c.deadline)
}

func (m *model) refuse(c *caller, ahead int, now time.Time) {
	if c.throttled > 0 {
		m.ends(c, result{status: 429})
	} else {
		m.ends(c, result{wait: m.earliest(ahead, c.deadline, now).Sub(now)})
	}
}

// scan looks through the line for those who are too late now.
func (m *model) scan() {
	now := time.Now()
	var stay []*caller
	for _, c := range m.line {
		if m.late(c, len(stay), now) {
			m.refuse(c, len(stay), now)
		} else {
			stay = append(stay, c)
		}
	}
	m.line = stay
	m.scanned = m.pausedUntil
}

// ends notes how c's RoundTrip must have ended now.
func (m *model) ends(c *caller, r result) {
	r.at = time.Now()
	m.expected[c] = r
	c.over, c.underWay = true, false
}

// letGo compares those who were sent with those who may go.
func (m *model) letGo() { m.letGoBefore(time.Now().Add(1)) }

// letGoBefore is letGo for those who were sent before now, if end is now.
func (m *model) letGoBefore(end time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		at := time.Now()
		for _, start := range m.started {
			if start.Before(at) {
				at = start
			}
		}
		if !at.Before(end) {
			return
		}
		m.tick(at)
		if len(m.line) == 0 {
			return
		}
		c := m.next()
		start, gone := m.started[c]
		gone = gone && start.Equal(at)
		why := m.blocked(at)
		sure := why == "" && !m.pace.surely(at).After(at)
		from := m.lender(c, at)
		if from != nil && from.pauses != m.pauses {
			// It must wait again itself, after the pause.
			if m.held(at) >= m.limit || m.th.Limiter != nil {
				m.giveBack(from)
				continue
			}
			from = nil
		}
		// Where the pace is not known, who has more slots than before was let go.
		takesOver := from != nil && (m.th.Limiter != nil || why != "" || !sure && m.th.Stats().Held <= m.held(at))
		switch {
		case takesOver && !gone:
			m.failf("the first in line holds a connection and waits, although it could take over a slot")
		case takesOver:
			m.giveBack(from)
		case gone && why != "":
			m.failf("the first in line was sent at %v, %s", m.since(at), why)
		case !gone && sure:
			m.failf("the first in line waits, although it could go")
		case !gone:
			return
		default:
			m.pace.start(at)
		}
		delete(m.started, c)
		m.leave(c)
		m.send(c, at)
	}
}

// next returns who is first in line. A probe that failed, and a call that had a
// bare 429, are no probe if there is anyone else.
func (m *model) next() *caller {
	for _, c := range m.line {
		if m.probing && m.probe == nil && (c.badProbe || c.bare > 0) {
			continue
		}
		return c
	}
	return m.line[0]
}

// blocked returns why nobody may go.
func (m *model) blocked(at time.Time) string {
	switch {
	case at.Before(m.pausedUntil):
		return "during the pause"
	case m.probe != nil:
		return "beside the probe"
	case m.held(at) >= m.limit:
		return "without a slot"
	case m.pace.never(at):
		return "faster than the pace"
	}
	return ""
}

// lender returns whom c takes over from: who was let go last of those who wait
// for a connection, if c holds one. But nothing goes in the pause, or beside a
// probe.
func (m *model) lender(c *caller, at time.Time) (last *wireRequest) {
	if c.class != holders || at.Before(m.pausedUntil) {
		return nil
	}
	for _, w := range m.wires {
		if connecting(w) && (last == nil || w.order > last.order) {
			last = w
		}
	}
	if m.probe != nil && m.probe != last {
		return nil
	}
	return last
}

// send has c sent, or sent on the connection that it holds.
func (m *model) send(c *caller, at time.Time) {
	w := c.wire
	m.take(c, at)
	switch {
	case m.probing && m.probe == nil:
		w.probe = true
		m.probe, m.probeEnd = w, at.Add(m.backoff)
	case c.bare == 0:
		w.probe = false
		m.run = append(m.run, w)
	default:
		w.probe = false
	}
}

// take gives c a slot.
func (m *model) take(c *caller, at time.Time) {
	w := c.wire
	m.letGos++
	w.start, w.order, w.pauses = at, m.letGos, m.pauses
	w.slot, w.until = true, time.Time{}
	if c.class == holders || m.th.Transit >= 0 {
		w.until = at.Add(time.Minute)
	}
	if !w.counted {
		w.counted = true
		m.attempts++
	}
	c.underWay, c.patience = true, time.Time{}
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
		// Floating-point numbers differ from machine to machine.
		if got.at != want.at || got.status != want.status || (got.wait-want.wait).Abs() > time.Microsecond || !errors.Is(got.err, want.err) {
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
	for _, c := range m.callers {
		if !c.rests.IsZero() {
			want.Waiting++
		}
	}
	if now.Before(m.pausedUntil) {
		want.PausedUntil = m.pausedUntil
	}
	got := m.th.Stats()
	got.Waited, got.Pauses, got.Refused, got.HandedBack = 0, 0, 0, 0
	want.WaitingByUrgency[3] = want.Waiting
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
			if !c.over {
				consider(c.deadline)
				consider(c.rests)
				consider(c.patience)
			}
		}
		consider(m.pausedUntil)
		consider(m.probeEnd)
		consider(m.restored)
		if len(m.line) > 0 {
			consider(m.pace.surely(now))
		}
		for _, w := range m.wires {
			if w.slot {
				consider(w.until.Add(m.hold))
			}
			if connecting(w) {
				consider(w.lapses)
			}
		}
		time.Sleep(next.Sub(now))
		synctest.Wait()
		m.letGoBefore(next)
		for _, c := range m.callers {
			switch {
			case c.over:
			case c.deadline.Equal(next):
				m.end(c, context.DeadlineExceeded)
			case c.rests.Equal(next):
				c.rests = time.Time{}
				c.wire = m.newWire()
				m.queue(c, newcomers)
			case c.patience.Equal(next):
				m.requeue(c)
			}
		}
		m.settle()
		if next.Equal(end) {
			return
		}
	}
}

// jog makes the next instant one of its own, lest chance decides which of two
// timers comes first.
func (m *model) jog() { m.pass(time.Microsecond) }

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
	counts := func(w *wireRequest) bool { return !w.start.IsZero() && !w.unsent && !w.forced }
	// The windows that have the most begin with a request's last instant.
	for _, w := range m.wires {
		n := 0
		for _, other := range m.wires {
			if counts(other) && !other.until.Before(w.until) && other.start.Before(w.until.Add(m.window)) {
				n++
			}
		}
		if counts(w) && n > m.configured {
			m.failf("%d may have arrived in a window, the limit is %d", n, m.configured)
		}
	}
}
