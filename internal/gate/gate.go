// Package gate decides who goes when: it keeps the requests of one account
// within its rate limit. It knows no HTTP and does no I/O.
//
// # Slots
//
// A wire request is one sending of a request on one connection, by us or by
// net/http. It arrives at the server at an unknown instant a. Known are s, an
// instant before which nothing of it was sent, and later r, an instant at which
// it has surely arrived, such as that of its answer: s <= a <= r. Each wire
// request holds one of N slots from s until r + W. N is the limit. W is the window
// plus a guard for the clocks of several server nodes.
//
// Suppose that N+1 wire requests arrive within less than W. Let i be the one that
// starts last. When i got its slot, at most N-1 of the other N had one. So another
// one, j, had given its slot back: r(j) + W <= s(i). Then
// a(j) + W <= r(j) + W <= s(i) <= a(i): i and j arrive at least W apart, which
// contradicts the assumption.
//
// So at most N arrivals lie in any window, whatever the jitter. This satisfies a
// server that counts by fixed window, sliding log, token bucket or GCRA with a
// burst of N. It does not satisfy sliding-window counters or smaller bursts: such a
// server throttles, and the pause takes over.
//
// # When a request has arrived
//
// The proof holds for any r that is not before the arrival. An answer may be late,
// so r is the earliest of these:
//
//   - the answer;
//   - Transit after the system at the other end of the connection acknowledged the
//     request, or for a small one Transit after it was written, if it is
//     acknowledged by then. Package arrival has this rule in full;
//   - Transit after the wire request failed, if something of it may have been sent;
//   - one minute after it was written, or after s if net/http does not say when
//     that is. This is an assumption;
//   - one minute after it got its connection, if the end of its body is not sent by
//     then. Such an upload counts twice, since a server may count at the header or
//     at the end: its slot comes back, and the end of its body is a wire request of
//     its own, which waits for a slot.
//
// # When a request starts
//
// Nothing is sent before the wire request has a connection. So s is the last
// instant at which it got a slot before it got its connection. Until then
//
//   - it gives its slot back after W without a connection: its dial may hang;
//   - a wire request that holds a connection may take its slot (see takeOver).
//
// When it gets its connection, it needs a slot, and no pause may have begun since
// it was let go. Otherwise it waits in line again, and keeps the connection.
//
// net/http may send a request again by itself. The gate takes the earlier wire
// request for failed. The next one has a connection, so it goes before all that have
// none, whatever their urgency.
package gate

import (
	"context"
	"errors"
	"sync"
	"time"
)

// guard lengthens the window for a server whose nodes' clocks differ.
const guard = 10 * time.Millisecond

// arrivesWithin bounds the arrival of what was written, and of the header of
// what is not written yet, where nothing else does.
const arrivesWithin = time.Minute

// ErrCanceled ends the wait of a request whose Cancel channel was closed.
var ErrCanceled = errors.New("clarifaihttp: request canceled while waiting")

// ErrHeldTooLong refuses a request that holds a connection which waits too long
// for it. It should be sent anew, by a ticket of [Ticket.Requeued].
var ErrHeldTooLong = errors.New("clarifaihttp: connection waits too long")

// A Refusal is the error for a request that could not go before its deadline.
type Refusal struct{ Wait time.Duration }

func (r *Refusal) Error() string { return "gate: the deadline is too early" }

// A Limiter is asked before each wire request.
type Limiter interface {
	Wait(ctx context.Context) error
}

// Config has the settings of a Gate, all of them set.
type Config struct {
	Limit                                int
	Window, Backoff, MaxBackoff, Transit time.Duration
	AnswersOnly                          bool    // writing proves nothing
	Limiter                              Limiter // nil: none
}

// A Gate is the one line of an account. It is safe for concurrent use. It has
// one timer and no goroutine.
type Gate struct {
	hold        time.Duration // W
	transit     time.Duration
	answersOnly bool
	limiter     Limiter
	tellArrived func() // the Limiter's Arrived; nil: it does not want to know

	mu    sync.Mutex // guards all below; nothing is awaited or called back under it
	after []func()   // to be called once mu is released

	limit       limit
	slots       slots
	unconnected int   // slots in use of tickets without a connection
	connecting  list  // those of them that have asked for one, in the order they were let go
	lapsed      int   // tickets that wait for a connection and gave their slots back
	taken       int64 // slots so far

	line    line
	arrived int64          // in the line so far
	resting [urgencies]int // wait before they join it
	timer   *time.Timer
	wakeAt  time.Time // of the timer

	asking     *Ticket            // is at the Limiter, or about to; in line
	stopAsking context.CancelFunc // ends its Wait

	pause   pause
	pace    *Pace
	run     run
	scanned time.Time // end of the pause when the line was last scanned

	events Events // not reported yet
	stats  Stats
}

// Stats is a snapshot of a Gate.
type Stats struct {
	Attempts         int
	Throttled        int
	Pauses           int
	Refused          int
	HandedBack       int
	Waiting          int
	WaitingByUrgency [8]int
	Held             int
	Limit            int
	PausedUntil      time.Time
	Waited           time.Duration
}

// New returns a Gate.
func New(c Config) *Gate {
	g := &Gate{
		hold:        c.Window + guard,
		transit:     c.Transit,
		answersOnly: c.AnswersOnly,
		limiter:     c.Limiter,
		limit:       newLimit(c.Limit),
		connecting:  list{kind: connecting},
		pause:       pause{backoff: c.Backoff, max: c.MaxBackoff, window: c.Window},
		pace:        NewPace(c.Limit, c.Window),
		run:         newRun(c.Limit, c.Window),
	}
	if l, ok := c.Limiter.(interface{ Arrived() }); ok {
		g.tellArrived = l.Arrived
	}
	return g
}

// Stats returns a snapshot.
func (g *Gate) Stats() Stats {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	s := g.stats
	s.Pauses = g.pause.count
	for urgency := range s.WaitingByUrgency {
		n := g.line.waiting[urgency] + g.resting[urgency]
		s.WaitingByUrgency[urgency] = n
		s.Waiting += n
	}
	s.Held = len(g.slots)
	s.Limit = g.limit.now
	if g.pause.paused(now) {
		s.PausedUntil = g.pause.until
	}
	return s
}

// Refused counts a request that was refused for its deadline.
func (g *Gate) Refused() {
	g.mu.Lock()
	defer g.unlock()
	g.stats.Refused++
}

// HandedBack counts a throttled response that the caller gets.
func (g *Gate) HandedBack() {
	g.mu.Lock()
	defer g.unlock()
	g.stats.HandedBack++
}

// unlock releases mu and calls what is to be called then.
func (g *Gate) unlock() {
	after := g.after
	g.after = nil
	g.mu.Unlock()
	for _, f := range after {
		f()
	}
}

// now returns the time, and drops what it has ended by itself. All that depends
// on the time asks here first; else it would depend on who asked before. It
// requires mu.
func (g *Gate) now() time.Time {
	now := time.Now()
	for len(g.slots) > 0 && !g.slots.soonest().After(now) {
		tk := g.slots[0]
		g.elapse(tk.slot.free)
		if tk.got || !tk.asked {
			g.drop(tk)
			continue
		}
		// It waits for a connection. Where that may be because others use them
		// all, not many may give their slots back, or all in line would pass on
		// to the next line.
		if !tk.dials && g.lapsed >= g.limit.now {
			g.slots.set(tk, tk.slot.free.Add(g.hold))
			continue
		}
		if tk.dials {
			g.pause.hangs(tk)
		}
		g.giveBack(tk)
		tk.lapsed = true
		g.lapsed++
	}
	g.elapse(now)
	return now
}

// elapse ends the probe and restores the limit, if it was time for that at the
// instant given. It requires mu.
func (g *Gate) elapse(at time.Time) {
	g.pause.tick(at)
	if g.limit.tick(at) {
		g.events.Restored = g.limit.now
	}
}

// advance lets those go who may, in order, and sets the timer for when to ask
// again. It requires mu.
func (g *Gate) advance(now time.Time) {
	for g.line.len() > 0 {
		again, ok := g.may(now)
		if !ok && g.line.ranks[holder].n == 0 { // nor may anyone take over
			g.wake(again, now)
			return
		}
		tk := g.head()
		ask := g.limiter != nil && !tk.excused
		if (!ok || ask) && g.takeOver(tk, now) {
			continue
		}
		switch {
		case !ok:
			g.wake(again, now)
			return
		case ask:
			g.asking = tk
			tk.signal()
			return
		}
		g.letGo(tk, now)
	}
}

// may reports whether the first in line may go and, if not, when to ask again,
// unless something happens before. It requires mu.
func (g *Gate) may(now time.Time) (again time.Time, ok bool) {
	switch {
	case g.pause.paused(now):
		return g.pause.until, false
	case g.asking != nil:
		return never, false
	case g.pause.probe != nil:
		again = g.pause.over
		if probe := g.pause.probe; probe.held() && !probe.got {
			again = earlier(again, probe.slot.free) // it may wait for a connection in vain
		}
		return again, false
	case len(g.slots) >= g.limit.now:
		return earlier(g.slots.soonest(), g.limit.restores()), false
	}
	wait := g.pace.Wait(now)
	return now.Add(wait), wait == 0
}

// head returns who is to go next: the first in a line that is not empty. If that
// will be the probe, those whose calls are suspect stand aside, and keep their
// places. It requires mu.
func (g *Gate) head() (head *Ticket) {
	due := g.pause.due()
	for tk := range g.line.all() {
		if head == nil {
			head = tk
		}
		if !due || !tk.standsAside() {
			return tk
		}
	}
	return head
}

// letGo lets tk go, which is in line. It requires mu.
func (g *Gate) letGo(tk *Ticket, now time.Time) {
	g.leaveLine(tk)
	g.take(tk, now)
	g.pace.Start(now)
	g.pause.letGo(tk, now)
	if !tk.probe {
		g.run.letGo(tk)
	}
}

// takeOver gives tk, which holds a connection and waits in line, what another ticket
// has that was let go and has no connection yet: its slot, its permission by the
// Limiter, and its role as the probe. Otherwise both might wait for ever: the other
// for the connection that tk holds, tk for the other's slot. This is safe, since
// nothing of the other was sent. The other needs a slot again when it gets its
// connection.
//
// The other is the one that got its slot last. A pause holds back tk all the same,
// and so does a probe that has a connection: it is over soon. If a pause began since
// the other was let go, its slot comes back, but tk waits for the probe and the pace.
// takeOver reports whether anything has changed. It requires mu.
func (g *Gate) takeOver(tk *Ticket, now time.Time) bool {
	other := g.connecting.last
	if tk.rank != holder || other == nil || g.pause.paused(now) {
		return false
	}
	if g.pause.probe != nil && g.pause.probe != other {
		return false
	}
	if other.pauses != g.pause.count {
		// A pause began since it was let go: it must wait again when it has its
		// connection, and tk for the probe and the pace. But others need its slot.
		if len(g.slots) < g.limit.now && !other.permitted {
			return false
		}
		g.giveBack(other)
		return true
	}
	permitted := other.permitted
	other.permitted = false
	g.giveBack(other)
	g.leaveLine(tk)
	if g.asking == tk {
		g.after = append(g.after, g.stopAsking) // for what may never come
	}
	tk.permitted = permitted
	g.take(tk, now)
	g.pause.letGo(tk, now)
	if !tk.probe {
		g.run.letGo(tk)
	}
	return true
}

// take gives tk a slot. If nothing is heard of it, not even that it asks for a
// connection, it is taken to be on its way. It requires mu.
func (g *Gate) take(tk *Ticket, now time.Time) {
	if !tk.counted {
		tk.counted = true
		g.stats.Attempts++
	}
	tk.gone = true
	g.taken++
	tk.taken = g.taken
	tk.pauses = g.pause.count
	g.use(tk)
	g.boundUnlessAnswersOnly(tk, now.Add(arrivesWithin), now)
	tk.signal()
}

// use puts a slot in use for tk, unless it has one: a base may call hooks in any
// order. It requires mu.
func (g *Gate) use(tk *Ticket) {
	if tk.held() {
		return
	}
	g.slots.add(tk)
	if !tk.got {
		g.unconnected++
	}
}

// giveBack takes back from tk, of which nothing was sent, all that it was given.
// It requires mu.
func (g *Gate) giveBack(tk *Ticket) {
	tk.gone = false
	g.pause.lost(tk)
	g.run.remove(tk)
	g.connecting.remove(tk)
	if tk.held() {
		g.drop(tk)
	}
	g.report(tk, 0)
	tk.permitted, tk.arrived = false, nil
}

// drop takes tk's slot out of use. It requires mu.
func (g *Gate) drop(tk *Ticket) {
	g.slots.remove(tk)
	if !tk.got {
		g.unconnected--
	}
}

// wake has the line advance at the instant given. It requires mu.
func (g *Gate) wake(at, now time.Time) {
	switch {
	case at.Equal(never), at.Equal(g.wakeAt): // some event will; the timer will
		return
	case g.timer == nil:
		g.timer = time.AfterFunc(at.Sub(now), g.tick)
	default:
		g.timer.Reset(at.Sub(now))
	}
	g.wakeAt = at
}

// tick has the line advance.
func (g *Gate) tick() {
	g.mu.Lock()
	defer g.unlock()
	g.wakeAt = time.Time{}
	g.advance(g.now())
}

// leaveLine takes tk out of the line, if it is in. It requires mu.
func (g *Gate) leaveLine(tk *Ticket) {
	g.line.leave(tk)
	if g.asking == tk && g.stopAsking == nil {
		g.asking = nil
	}
}
