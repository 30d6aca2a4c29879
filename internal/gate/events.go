package gate

import (
	"context"
	"time"
)

// Asked notes that tk's request asks for a connection: until it gets one,
// nothing of it can arrive. Dials says that it waits for a dial then, and not
// for others to give theirs back.
func (g *Gate) Asked(tk *Ticket, dials bool) {
	g.mu.Lock()
	defer g.unlock()
	if tk.asked || tk.got { // that comes late: it may be written already
		return
	}
	now := g.now()
	tk.asked, tk.dials = true, dials
	switch {
	case !tk.held():
	case !tk.slot.free.After(now.Add(g.hold)):
		g.giveBack(tk) // it was taken to have arrived, and the Limiter was told so
	default:
		patience := tk.patience(g.hold)
		var next *Ticket
		for last := g.connecting.last; last != nil && last.taken > tk.taken; last = g.connecting.prev(last) {
			next = last
		}
		g.connecting.insert(tk, next)
		g.slots.set(tk, now.Add(patience))
		g.unreport(tk)
		if g.tellArrived != nil {
			time.AfterFunc(patience, g.tick) // nobody else may look
		}
	}
	g.advance(now) // who holds a connection may take over; all must know when the slot may be free
}

// A Hold says how a request can wait that holds a connection.
type Hold struct {
	Patience time.Duration // 0: for as long as it takes
	Must     bool          // it cannot be refused: it will be sent
}

// Connected notes that tk's request has got a connection, or another one when
// nothing of it was sent on the one before. It waits until the request may be
// written. An error says why it must not: one of [Gate.Start]'s,
// or [ErrHeldTooLong].
func (g *Gate) Connected(ctx context.Context, cancel <-chan struct{}, tk *Ticket, h Hold) error {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	g.connected(tk)
	if tk.over {
		return nil
	}
	if tk.held() && tk.pauses == g.pause.count {
		g.bound(tk, now.Add(arrivesWithin), now)
		g.advance(now)
		return nil
	}
	g.giveBack(tk)
	tk.holds() // and is ahead of all who might take what it gave back
	return g.holding(ctx, cancel, tk, h)
}

// connected notes that tk does not wait for a connection any more. It requires
// mu.
func (g *Gate) connected(tk *Ticket) {
	if tk.got {
		return
	}
	tk.got = true
	g.connecting.remove(tk)
	if tk.held() {
		g.unconnected--
	}
	if tk.lapsed {
		tk.lapsed = false
		g.lapsed--
	}
}

// holding waits in line for tk, which holds a connection. It requires mu, and
// releases it while it waits.
func (g *Gate) holding(ctx context.Context, cancel <-chan struct{}, tk *Ticket, h Hold) error {
	var until time.Time
	if h.Patience > 0 {
		until = time.Now().Add(tk.patience(h.Patience))
	}
	tk.must = h.Must
	if err := g.queue(ctx, cancel, until, tk); err != nil {
		return err
	}
	now := g.now()
	g.bound(tk, now.Add(arrivesWithin), now)
	g.advance(now)
	return nil
}

// Resent notes that net/http sends tk's request once more by itself, on another
// connection: the earlier wire request has failed. It waits as Connected does and
// returns the ticket of the new one.
func (g *Gate) Resent(ctx context.Context, cancel <-chan struct{}, tk *Ticket, h Hold) (*Ticket, error) {
	g.mu.Lock()
	defer g.unlock()
	g.fail(tk, true, g.now())
	next := tk.resend() // is ahead of all who might be the probe in its stead
	return next, g.holding(ctx, cancel, next, h)
}

// Charge gives a slot to tk, a wire request that was refused but may be sent
// nevertheless.
func (g *Gate) Charge(tk *Ticket) {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	g.take(tk, now)
	if g.pause.paused(now) {
		tk.pauses-- // it did not start after the pause
	}
	g.bound(tk, now.Add(arrivesWithin), now)
	g.advance(now)
}

// Transit returns the bound for the way of what was written to the server. It
// reports whether there is one: if not, only an answer proves an arrival.
func (g *Gate) Transit() (time.Duration, bool) { return g.transit, !g.answersOnly }

// Written notes that tk's request was written whole, and that it arrives at the
// instant given at the latest. If that is zero, only an answer will tell.
func (g *Gate) Written(tk *Ticket, by time.Time) {
	g.mu.Lock()
	defer g.unlock()
	if tk.over {
		return
	}
	now := g.now()
	tk.written = now
	g.pause.written(tk, now)
	if !tk.held() {
		// A minute has passed, and its end could not be held back: it was all in
		// net/http's hands.
		g.use(tk)
	}
	g.boundUnlessAnswersOnly(tk, by, now)
	g.advance(now)
}

// Arrived notes that tk's request, which was written, arrives at the instant
// given at the latest. That does not put off what is known already.
func (g *Gate) Arrived(tk *Ticket, by time.Time) {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	if tk.held() && !tk.over {
		g.bound(tk, earlier(by, tk.slot.free.Add(-g.hold)), now)
		g.advance(now)
	}
}

// BodyEnds notes that the end of the body of tk's request is about to be
// written. It reports whether it may: otherwise it must wait by [Gate.EndsAnew].
func (g *Gate) BodyEnds(tk *Ticket) bool {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	switch {
	case tk.over || !tk.got:
		return true
	case !tk.held() || !tk.slot.free.After(now.Add(g.hold)):
		return false
	}
	g.boundUnlessAnswersOnly(tk, now.Add(arrivesWithin), now)
	g.advance(now)
	return true
}

// EndsAnew waits until the end of the body of tk's request may be written, as a
// wire request of its own, and returns the ticket for that.
func (g *Gate) EndsAnew(ctx context.Context, cancel <-chan struct{}, tk *Ticket) (*Ticket, error) {
	g.mu.Lock()
	defer g.unlock()
	next := tk.resend()
	next.counted = true
	err := g.holding(ctx, cancel, next, Hold{})
	if err == nil {
		now := g.now()
		g.boundUnlessAnswersOnly(next, now.Add(arrivesWithin), now)
		g.advance(now)
	}
	return next, err
}

// Answered notes that tk's answer began to come.
func (g *Gate) Answered(tk *Ticket) {
	g.mu.Lock()
	defer g.unlock()
	if tk.over {
		return
	}
	tk.over = true
	now := g.now()
	at := now
	switch {
	case (tk.got || !tk.asked) && tk.held():
		at = earlier(now, tk.slot.free.Add(-g.hold))
	case tk.asked && !tk.got && !tk.held():
		g.use(tk) // it came without a connection that one knows of
	}
	g.connected(tk)
	if tk.held() {
		g.bound(tk, at, now)
	}
	g.pause.written(tk, now) // a stream's message may show later whether it is throttled
	g.advance(now)
}

// Failed notes that tk will not be answered. Sent says whether something of it
// may have left after it got its connection; before that, nothing has. Failed
// returns [ErrHeldTooLong] if nothing was sent, and tk had waited with its
// connection: the server may have closed that meanwhile.
func (g *Gate) Failed(tk *Ticket, sent bool) error {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	g.fail(tk, sent, now)
	g.advance(now)
	if tk.rank == holder && !sent {
		return ErrHeldTooLong
	}
	return nil
}

// fail is Failed, and leaves it to the caller to have the line advance. It
// requires mu.
func (g *Gate) fail(tk *Ticket, sent bool, now time.Time) {
	if tk.over {
		return
	}
	tk.over = true
	if tk.asked && (!tk.got || !sent) {
		g.giveBack(tk)
	}
	g.connected(tk)
	g.pause.lost(tk)
	g.run.remove(tk)
	if tk.held() {
		g.bound(tk, now.Add(g.transit), now)
	}
}

// bound notes that tk's wire request arrives at the instant given at the
// latest: W after it its slot is free. The line must advance then, for who waits
// in it may not know of an instant yet. It requires mu.
func (g *Gate) bound(tk *Ticket, at, now time.Time) {
	g.slots.set(tk, at.Add(g.hold))
	g.report(tk, at.Sub(now))
}

// boundUnlessAnswersOnly is bound for what only writing proves. It requires mu.
func (g *Gate) boundUnlessAnswersOnly(tk *Ticket, at, now time.Time) {
	if !g.answersOnly {
		g.bound(tk, at, now)
		return
	}
	g.slots.set(tk, never)
	g.unreport(tk)
}

// unreport takes back what report has put off. It requires mu.
func (g *Gate) unreport(tk *Ticket) {
	if tk.arrived != nil && tk.arrived.Stop() {
		tk.arrived = nil
	}
}

// report has the Limiter told, after d, that a wire request that it permitted
// has arrived. It requires mu.
func (g *Gate) report(tk *Ticket, d time.Duration) {
	if !tk.permitted || g.tellArrived == nil {
		return
	}
	if tk.arrived != nil && !tk.arrived.Stop() {
		return // it was told
	}
	switch {
	case d <= 0:
		tk.permitted, tk.arrived = false, nil
		g.arrivedAtOnce()
	case tk.arrived == nil:
		tk.arrived = time.AfterFunc(d, g.tellArrived)
	default:
		tk.arrived.Reset(d)
	}
}

// arrivedAtOnce has the Limiter told of an arrival. It requires mu.
func (g *Gate) arrivedAtOnce() {
	if g.tellArrived != nil {
		g.after = append(g.after, g.tellArrived)
	}
}

// A Verdict is what a throttled response says of the account.
type Verdict struct {
	Bare       bool // a 429 without a Clarifai status: perhaps not the account's
	RetryAfter time.Duration
	Asked      bool // RetryAfter was in it
	Limit      int  // per second; 0: not said
}

// Events are what is to be logged.
type Events struct {
	Began     bool      // a pause began
	Until     time.Time // its end
	Recovered bool      // the first request after a pause was served
	Lowered   int       // the limit, to this; 0: it was not
	Restored  int       // likewise
}

// happened returns what has happened since it was last called. It requires mu.
func (g *Gate) happened() Events {
	e := g.events
	g.events = Events{}
	e.Until = g.pause.until
	return e
}

// Served notes that tk's answer is not a throttled response.
func (g *Gate) Served(tk *Ticket) Events {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	g.run.served(tk)
	probe := g.pause.probe == tk
	if g.pause.served(tk) {
		g.events.Recovered = true
	}
	if probe {
		g.advance(now)
	}
	return g.happened()
}

// Throttled notes that tk's answer is a throttled response.
func (g *Gate) Throttled(tk *Ticket, v Verdict) Events {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	if tk.throttled {
		return g.happened()
	}
	tk.throttled = true
	g.stats.Throttled++
	if v.Limit > 0 && g.hold == time.Second+guard && g.limit.learn(v.Limit, now) {
		g.events.Lowered = g.limit.now
	}
	if !v.Bare {
		g.pace.Throttled(now)
	}

	before, began := g.pause.until, false
	switch {
	case tk.pauses != g.pause.count:
		g.pause.extend(v, now)
	case !v.Bare:
		began = true
	case g.pause.probe == tk:
		began = g.pause.bareProbe()
	default:
		began = g.run.throttled(tk, now)
	}
	if began {
		g.beginPause(tk, v, now)
	}
	if began || g.pause.until.After(before) {
		g.pace.Resume(g.pause.until)
		if began || g.pause.until.Sub(g.scanned) > 100*time.Millisecond {
			g.scanned = g.pause.until
			g.refuseHopeless(now)
		}
		if l, ok := g.limiter.(interface{ Throttled(time.Duration) }); ok && g.pause.paused(now) {
			wait := g.pause.until.Sub(now)
			g.after = append(g.after, func() { l.Throttled(wait) })
		}
	}
	g.advance(now)
	return g.happened()
}

// beginPause begins a pause because of tk's answer. It requires mu.
func (g *Gate) beginPause(tk *Ticket, v Verdict, now time.Time) {
	g.pace.Throttled(now)
	if !tk.probe {
		g.pace.Cut(now)
	}
	g.pause.begin(tk, v, now)
	g.run.clear()
	switch {
	case g.stopAsking != nil:
		g.after = append(g.after, g.stopAsking)
	case g.asking != nil:
		g.asking = nil
	}
	g.events.Began = true
}

// Rest returns how long a call waits by itself after its nth bare 429, at least
// a millisecond.
func (g *Gate) Rest(v Verdict, n int) time.Duration {
	return max(g.pause.rest(v, n-1), time.Millisecond)
}

// Absurd reports whether v asks for a pause that is too long to sit out.
func (g *Gate) Absurd(v Verdict) bool { return g.pause.absurd(v) }
