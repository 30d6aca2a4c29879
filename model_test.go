package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
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
// This file has what it knows and how it compares, model_line_test.go who may go
// and when, model_events_test.go what happens to requests, and
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

func (c *conn) SetWriteDeadline(time.Time) error { c.closed.Store(true); return nil }

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
				m.letGo() // who may go now is not ahead of it
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
