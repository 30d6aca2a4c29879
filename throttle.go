package clarifaihttp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"example.com/clarifaihttp/internal/line"
	"example.com/clarifaihttp/internal/pace"
	"example.com/clarifaihttp/internal/slots"
)

const (
	defaultLimit      = 15 // Clarifai's documented default, per second and account
	defaultWindow     = time.Second
	defaultBackoff    = 15 * time.Second // what Clarifai recommends after CONN_THROTTLED
	defaultMaxBackoff = 60 * time.Second
	defaultTransit    = 250 * time.Millisecond

	// guard lengthens the window for a server whose nodes' clocks differ.
	guard = 10 * time.Millisecond

	maxLimit    = 1_000_000
	maxDuration = 24 * time.Hour
	minDuration = time.Millisecond // below: a number meant as seconds, most likely
)

// A Limiter is asked before each wire request, for a limit that is kept
// outside this process. [*rate.Limiter] is one.
//
// A Throttle calls Wait for the head of its line alone, one call at a time,
// and the request holds a slot of the Throttle meanwhile. When Wait returns
// nil the request goes, unless a pause has begun: then the permission lapses
// and Wait is called again after the pause. The context ends when the
// request's does, and when a pause begins. An error of Wait refuses the
// request and comes back wrapped (errors.Is and errors.As see it).
//
// A Limiter may have two more methods. They must not block for long:
//
//	Arrived()                        called once for each Wait that returned nil,
//	                                 when that wire request can no longer arrive
//	                                 at the server later than now
//	Throttled(wait time.Duration)    called when the server told the account to
//	                                 pause, with the time that is left of the pause
type Limiter interface {
	Wait(ctx context.Context) error
}

// A WaitError refuses a request at once, because it would have had to wait in
// line beyond its context's deadline. It matches [context.DeadlineExceeded]
// with errors.Is, and its Timeout method reports true. Transport returns it as
// a *WaitError; errors.As finds it as a value, too. A caller that tries again
// without a pause of its own spins.
type WaitError struct {
	// Wait is how long the request would have waited at least: what a proxy
	// would answer as Retry-After.
	Wait time.Duration
}

func (e WaitError) Error() string {
	return fmt.Sprintf("clarifaihttp: the deadline is before the rate limit lets the request go, in %v at the earliest", e.Wait)
}

// Timeout reports true, as the errors of net/http do for a deadline.
func (e WaitError) Timeout() bool { return true }

// Is reports whether target is [context.DeadlineExceeded].
func (e WaitError) Is(target error) bool { return target == context.DeadlineExceeded }

// As lets errors.As find the value where the pointer was returned.
func (e *WaitError) As(target any) bool {
	v, ok := target.(*WaitError)
	if ok {
		*v = *e
	}
	return ok
}

// errCanceled ends the wait of a request whose Cancel channel was closed.
var errCanceled = errors.New("clarifaihttp: request canceled while waiting")

// A Throttle keeps the requests of one account within its rate limit. All
// Transports that use the account must share it ([WithThrottle]). The zero
// value is ready and stands for Clarifai's documented limits. A Throttle is
// safe for concurrent use; its fields must not be changed after the first use,
// and it must not be copied. A negative or absurd field panics at the first
// use, with a message that names it.
//
// # Slots
//
// A request arrives at the server somewhere between its start and its answer,
// and only these two instants are known here. So each wire request holds one
// of N = Limit slots from its start s until W after its answer r, where W is
// Window plus 10 ms for the clocks of several server nodes.
//
// Were N+1 of them to arrive within less than a window, let i be the last of
// these to start. It got a slot, so one of the other N, j, had given its slot
// back: r(j) <= s(i) - W. For the arrivals a, this means
// a(j) <= r(j) <= s(i) - W <= a(i) - W, so i and j are not in one window.
//
// At most N arrivals lie in any window then, whatever the jitter, which
// satisfies a server that counts by fixed window, sliding log, token bucket or
// GCRA with a burst of N. Servers with sliding-window counters or smaller
// bursts are not covered; they throttle, and what follows takes over.
//
// Two bounds replace the answer where it is late or does not come:
//
//   - A request with a body of known length, at most 64 KiB, has arrived
//     Transit after it was written. The bound holds as long as the way to
//     the server, the last flush included, takes no longer than Transit.
//   - A request that failed or was canceled has arrived Transit after that, if
//     at all. If it never got a connection, its slot is free at once.
//
// net/http may send one request several times by itself. Each of these wire
// requests is charged: the earlier one is taken as failed and the next waits
// in line ahead of the retries.
//
// # Pause, probe, pace
//
// A throttle pauses the whole account, for Backoff or for the answer's
// Retry-After. After the pause one request goes alone, the probe; the others
// wait until it is answered, or Window after it was written (throttles are
// answered fast), or Backoff after its start. A probe that is throttled begins
// a pause twice as long, up to MaxBackoff. Throttles of requests that were
// already under way only extend a pause, since some servers start their halt
// again at each request.
//
// From the first throttle on, starts are spaced, too: others use the account.
// Each pause that no probe caused cuts the rate to 0.8 of what it was (0.5, if
// the last cut was less than 30 s before); it comes back along the cubic curve
// of RFC 9438, section 4.2, between 0.5/s and 14/s, scaled with
// Limit/Window. After an hour without a throttle the spacing is lifted.
//
// # The line
//
// All waiting happens in one line: in the order of arrival, retries ahead, and
// ahead of these what net/http sends again. A request that cannot go before its
// context's deadline is refused at once, on joining or when a pause begins or is
// extended, by a [WaitError].
type Throttle struct {
	// Limit is how many requests may arrive at the server in one Window. Zero
	// means 15. A process that shares the account with others may hold a share.
	Limit int

	// Window is the time that Limit is for. Zero means 1 s.
	Window time.Duration

	// Backoff is the length of the first pause after a throttle, if the answer
	// has no Retry-After. Zero means 15 s, or MaxBackoff if that is shorter.
	Backoff time.Duration

	// MaxBackoff bounds the pauses that double. Zero means 60 s, or Backoff if
	// that is longer. A Retry-After is obeyed up to four times MaxBackoff.
	MaxBackoff time.Duration

	// Transit bounds the time from a request's being written to its arrival at
	// the server. Zero means 250 ms. Negative: there is no bound, only answers
	// free a slot (and 250 ms stand for requests that fail).
	Transit time.Duration

	// Limiter is asked before each wire request, in addition. Nil means none.
	Limiter Limiter

	mu sync.Mutex // guards all below; nothing is awaited or called back under it

	limit    int // in force; 0 before the first use
	window   time.Duration
	hold     time.Duration // W
	backoff  time.Duration
	maxPause time.Duration
	transit  time.Duration

	held  slots.Set
	line  line.Line[*ticket]
	timer *time.Timer // has the line advance

	asking     *ticket            // head of the line, at the Limiter
	stopAsking context.CancelFunc // ends its Wait

	pauses      int       // begun so far: a ticket let go before has fewer
	pausedUntil time.Time // end of the latest
	row         int       // throttled probes in a row
	unproven    bool      // since the latest pause, nothing was answered otherwise
	probing     bool      // the probe of the latest pause is not over
	probe       *ticket   // the probe under way
	probeOver   time.Time // its end, if it is not answered before

	pace *pace.Pace

	stats Stats
}

// Stats is what a Throttle counted since its first use, and where it stands.
type Stats struct {
	Attempts    int           // wire requests let go
	Throttled   int           // throttles among their answers
	Waiting     int           // requests in line now
	Held        int           // slots held now
	Limit       int           // limit in force: Throttle.Limit, or lower if the server named a lower one
	PausedUntil time.Time     // end of the pause; zero if there is none now
	Waited      time.Duration // time that requests spent in line, in all
}

// Stats returns a snapshot. It may be called at any time.
func (t *Throttle) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setUp()
	now := t.now()
	s := t.stats
	s.Waiting = t.line.Len()
	if t.asking != nil {
		s.Waiting++
	}
	s.Held = t.held.Len()
	s.Limit = t.limit
	if now.Before(t.pausedUntil) {
		s.PausedUntil = t.pausedUntil
	}
	return s
}

// setUp checks the fields and fills in the defaults, once. It requires mu.
func (t *Throttle) setUp() {
	if t.limit != 0 {
		return
	}
	if t.Limit < 0 || t.Limit > maxLimit {
		panic(fmt.Sprintf("clarifaihttp: Throttle.Limit is %d, must be between 0 (the default) and %d", t.Limit, maxLimit))
	}
	for _, f := range []struct {
		name  string
		d     time.Duration
		least time.Duration
	}{
		{"Window", t.Window, minDuration},
		{"Backoff", t.Backoff, minDuration},
		{"MaxBackoff", t.MaxBackoff, minDuration},
		{"Transit", max(t.Transit, 0), 0},
	} {
		if f.d != 0 && (f.d < f.least || f.d > maxDuration) {
			panic(fmt.Sprintf("clarifaihttp: Throttle.%s is %v, must be 0 (the default) or between %v and %v", f.name, f.d, f.least, maxDuration))
		}
	}
	if t.MaxBackoff != 0 && t.MaxBackoff < t.Backoff {
		panic(fmt.Sprintf("clarifaihttp: Throttle.MaxBackoff is %v, less than Backoff, %v", t.MaxBackoff, t.Backoff))
	}
	t.window = cmp.Or(t.Window, defaultWindow)
	t.hold = t.window + guard
	t.maxPause = cmp.Or(t.MaxBackoff, max(defaultMaxBackoff, t.Backoff))
	t.backoff = cmp.Or(t.Backoff, min(defaultBackoff, t.maxPause))
	t.transit = cmp.Or(max(t.Transit, 0), defaultTransit)
	t.limit = cmp.Or(t.Limit, defaultLimit)
	t.pace = pace.New(t.limit, t.window)
}

// A ticket is one wire request: first a place in the line, then a slot.
type ticket struct {
	rank     int
	deadline time.Time // zero: none

	place   line.Place[*ticket]
	ready   chan struct{} // closed when it is let go or refused
	refused error

	slot   slots.Slot
	pauses int  // Throttle.pauses when it was let go
	probe  bool // it was let go as a probe

	permitted bool        // by the Limiter
	arrived   *time.Timer // calls the Limiter's Arrived
}

// The ranks of the line. What net/http sends again goes in any case: it cannot be
// refused, only held up. It is ahead of retries, for it has a connection already:
// one let go before it might take the last slot and then wait for that
// connection, and none would ever go on.
const (
	resends = iota
	retries
	newcomers
)

// start waits until tk may go. It returns nil when tk holds a slot, or else why
// it must not go; a resend goes in any case.
func (t *Throttle) start(ctx context.Context, cancel <-chan struct{}, tk *ticket) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setUp()
	tk.place = t.line.Arrive(tk, tk.rank)
	joined := time.Now()
	ask, err := t.queue(ctx, cancel, tk)
	for ask {
		var again bool
		if again, err = t.ask(ctx, cancel, tk); !again {
			break
		}
		ask, err = t.queue(ctx, cancel, tk)
	}
	now := time.Now()
	t.stats.Waited += now.Sub(joined)
	if err != nil && tk.rank == resends {
		t.charge(tk, now)
		err = nil
	}
	if err == nil {
		t.stats.Attempts++
	}
	return err
}

// queue waits in the line until tk is let go. It reports whether the Limiter
// must be asked then. It requires mu, and releases it while it waits.
func (t *Throttle) queue(ctx context.Context, cancel <-chan struct{}, tk *ticket) (ask bool, err error) {
	for {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if !t.join(tk, t.now()) {
			t.mu.Unlock()
			select {
			case <-tk.ready:
			case <-ctx.Done():
			case <-cancel:
				err = errCanceled
			}
			t.mu.Lock()
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
		}
		if err == nil {
			err = tk.refused
		}
		if err != nil {
			t.leave(tk)
			return false, err
		}
		if tk.pauses == t.pauses {
			return t.asking == tk, nil
		}
		t.leave(tk) // a pause began after it was let go and before it woke
	}
}

// ask asks the Limiter for tk, which holds a slot and the line meanwhile. It
// reports whether tk must queue again. It requires mu, and releases it while it
// asks.
func (t *Throttle) ask(ctx context.Context, cancel <-chan struct{}, tk *ticket) (again bool, err error) {
	askCtx, stop := context.WithCancel(ctx)
	defer stop()
	t.stopAsking = stop
	t.mu.Unlock()

	permitted := false
	defer func() { // also if Wait panics
		t.mu.Lock()
		t.asking, t.stopAsking = nil, nil
		tk.permitted, tk.arrived = permitted, nil
		if permitted && err == nil && tk.pauses == t.pauses {
			now := t.now()
			t.letGo(tk, now)
			t.advance(now)
			return
		}
		again = err == nil // a pause began: the permission lapses
		t.leave(tk)
	}()

	if cancel != nil {
		go func() {
			select {
			case <-cancel:
				stop()
			case <-askCtx.Done():
			}
		}()
	}
	err = t.Limiter.Wait(askCtx)
	permitted = err == nil
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case closed(cancel):
		err = errCanceled
	case askCtx.Err() != nil: // by a pause
		err = nil
	case err != nil:
		err = fmt.Errorf("clarifaihttp: limiter: %w", err)
	}
	return again, err
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// join puts tk in the line. It reports whether its turn is decided at once: it
// was let go or refused. It requires mu.
func (t *Throttle) join(tk *ticket, now time.Time) bool {
	tk.ready = nil
	ahead := t.ahead(tk)
	if tk.refused = t.refusal(tk.deadline, ahead, now); tk.refused != nil {
		return true
	}
	t.line.Take(&tk.place)
	if ahead == 0 {
		t.advance(now)
	}
	if !tk.place.Taken() {
		return true
	}
	tk.ready = make(chan struct{})
	return false
}

// ahead returns how many are ahead of tk, one at the Limiter included. It
// requires mu.
func (t *Throttle) ahead(tk *ticket) int {
	n := t.line.Ahead(&tk.place)
	if t.asking != nil {
		n++
	}
	return n
}

// refusal returns why a request with so many ahead of it cannot go before its
// deadline, or nil. It requires mu.
func (t *Throttle) refusal(deadline time.Time, ahead int, now time.Time) error {
	if deadline.IsZero() {
		return nil
	}
	if at := t.earliest(ahead, now); at.After(deadline) {
		return &WaitError{Wait: at.Sub(now)}
	}
	return nil
}

// earliest returns a lower bound for when a request with so many ahead of it
// can go, if those are sent: not before the pause's end; not before a slot is
// free, which for one in use is W from now if its answer comes now; and then N
// of them in each W. It requires mu.
func (t *Throttle) earliest(ahead int, now time.Time) time.Time {
	at := later(now, t.pausedUntil)
	if t.held.Len() >= t.limit {
		at = later(at, earlier(t.held.Soonest(), now.Add(t.hold)))
	}
	rounds := min(time.Duration(ahead/t.limit), math.MaxInt64/t.hold)
	return at.Add(rounds * t.hold)
}

// leave takes tk out of the line, or back before anything of it was sent: its
// slot and its part as the probe are free for the next. It requires mu.
func (t *Throttle) leave(tk *ticket) {
	if tk.place.Taken() {
		t.unlink(tk)
		return
	}
	if t.asking == tk {
		t.asking = nil
	}
	if t.probe == tk {
		t.probe = nil
	}
	if tk.slot.Held() {
		t.report(tk, 0)
		t.held.Remove(&tk.slot)
	}
	t.advance(t.now())
}

// unlink takes tk out of the line and wakes it. It requires mu.
func (t *Throttle) unlink(tk *ticket) {
	t.line.Leave(&tk.place)
	if tk.ready != nil {
		close(tk.ready)
	}
}

// advance lets the head of the line go for as long as it may, and sets the
// timer for when to ask again. It requires mu.
func (t *Throttle) advance(now time.Time) {
	for t.line.Len() > 0 {
		again, ok := t.next(now)
		if !ok {
			t.wake(again, now)
			return
		}
		tk := t.line.Front()
		t.take(tk)
		if t.Limiter == nil {
			t.letGo(tk, now)
		} else {
			t.asking = tk
		}
		t.unlink(tk)
	}
}

// next is the one decision: may the head of the line go now, and if not, when
// must it be asked again, unless something happens before? It requires mu.
func (t *Throttle) next(now time.Time) (again time.Time, ok bool) {
	switch {
	case t.asking != nil:
		return slots.Never, false
	case now.Before(t.pausedUntil):
		return t.pausedUntil, false
	case t.probe != nil:
		return t.probeOver, false
	case t.held.Len() >= t.limit:
		return t.held.Soonest(), false
	}
	wait := t.pace.Wait(now)
	return now.Add(wait), wait == 0
}

// now returns the time, and drops what it has ended by itself: slots, and a
// probe that was not answered for long enough. All that depends on the time asks
// here first; else it would depend on who asked before. It requires mu.
func (t *Throttle) now() time.Time {
	now := time.Now()
	t.held.Expire(now)
	if t.probe != nil && !now.Before(t.probeOver) {
		t.probing, t.probe = false, nil
	}
	return now
}

// wake has the line advance at the instant given. It requires mu.
func (t *Throttle) wake(at, now time.Time) {
	switch {
	case at.Equal(slots.Never): // some event will
	case t.timer != nil:
		t.timer.Reset(at.Sub(now))
	default:
		t.timer = time.AfterFunc(at.Sub(now), func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.advance(t.now())
		})
	}
}

// take gives tk a slot. It requires mu.
func (t *Throttle) take(tk *ticket) {
	tk.pauses = t.pauses
	t.held.Add(&tk.slot)
}

// letGo starts tk, at the pace and as the probe if one is needed. It requires
// mu.
func (t *Throttle) letGo(tk *ticket, now time.Time) {
	t.pace.Start(now)
	if t.probing {
		tk.probe = true
		t.probe = tk
		t.probeOver = now.Add(t.backoff)
	}
}

// charge gives a slot to a wire request that nothing can hold back. It requires
// mu.
func (t *Throttle) charge(tk *ticket, now time.Time) {
	t.take(tk)
	if now.Before(t.pausedUntil) {
		tk.pauses-- // it did not start after the pause
	}
}

// resent notes that net/http sends tk's request once more by itself: the
// earlier wire request has failed. It waits until the next may go, or must.
func (t *Throttle) resent(ctx context.Context, cancel <-chan struct{}, tk *ticket) *ticket {
	t.failed(tk, true)
	next := &ticket{rank: resends}
	t.start(ctx, cancel, next) // nil for a resend
	return next
}

// written notes that tk's wire request was written. A small one fits the
// buffers on its way, so that it arrives Transit later at the latest.
func (t *Throttle) written(tk *ticket, small bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if small && t.Transit >= 0 {
		t.arrived(tk, now.Add(t.transit), now)
	}
	if t.probe == tk {
		t.probeOver = earlier(t.probeOver, now.Add(t.window))
	}
	t.advance(now)
}

// answered notes that tk's answer began to come.
func (t *Throttle) answered(tk *ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	t.arrived(tk, now, now)
	t.advance(now)
}

// failed notes that tk will not be answered. If nothing of it was sent, its
// slot is free at once.
func (t *Throttle) failed(tk *ticket, sent bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if !sent {
		t.leave(tk)
		return
	}
	t.arrives(tk, now.Add(t.transit), now)
	if t.probe == tk {
		t.probe = nil
	}
	t.advance(now)
}

// arrived is arrives for a proof of it, which never puts off an earlier one: an
// answer may come before net/http says that the request was written. It requires
// mu.
func (t *Throttle) arrived(tk *ticket, at, now time.Time) {
	t.arrives(tk, earlier(at, tk.slot.Free().Add(-t.hold)), now)
}

// arrives notes that tk's wire request arrives at the instant given at the
// latest: W after it the slot is free. It requires mu.
func (t *Throttle) arrives(tk *ticket, at, now time.Time) {
	if tk.slot.Held() {
		t.held.Free(&tk.slot, at.Add(t.hold))
		t.report(tk, at.Sub(now))
	}
}

// report has the Limiter told, after d, that a wire request that it permitted
// has arrived. It requires mu.
func (t *Throttle) report(tk *ticket, d time.Duration) {
	l, ok := t.Limiter.(interface{ Arrived() })
	switch {
	case !ok || !tk.permitted:
	case tk.arrived == nil:
		tk.arrived = time.AfterFunc(d, l.Arrived)
	case tk.arrived.Stop():
		tk.arrived.Reset(d)
	}
}

// served notes that tk's answer is no throttle. It reports whether it is the
// first such answer after a pause.
func (t *Throttle) served(tk *ticket) (recovered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.unproven && tk.pauses == t.pauses {
		t.unproven, recovered = false, true
	}
	if t.probe == tk {
		t.probing, t.probe = false, nil
		t.advance(now)
	}
	return recovered
}

// A verdict is what an answer that is a throttle says of the account.
type verdict struct {
	retryAfter time.Duration
	asked      bool // retryAfter was in the answer
	limit      int  // per second; 0: not said
}

// throttled notes that tk's answer is a throttle. It returns the end of the
// latest pause, and whether that pause began now.
func (t *Throttle) throttled(tk *ticket, v verdict) (until time.Time, began bool) {
	t.mu.Lock()
	now := t.now()
	t.stats.Throttled++
	t.pace.Throttled(now)
	if v.limit > 0 && v.limit < t.limit && t.window == time.Second {
		t.limit = v.limit
	}
	before := t.pausedUntil
	switch {
	case tk.pauses == t.pauses:
		t.pause(tk, v, now)
		began = true
	case now.Before(t.pausedUntil):
		t.pausedUntil = later(t.pausedUntil, now.Add(max(t.backoff, t.bounded(v))))
	}
	until = t.pausedUntil
	stop := t.stopAsking
	if began || until.After(before) {
		t.pace.Resume(until)
		t.refuseHopeless(now)
	} else {
		stop = nil
	}
	t.advance(now)
	t.mu.Unlock()

	if stop != nil {
		stop()
	}
	if l, ok := t.Limiter.(interface{ Throttled(time.Duration) }); ok && until.After(now) {
		l.Throttled(until.Sub(now))
	}
	return until, began
}

// pause begins a pause because of tk's answer. It requires mu.
func (t *Throttle) pause(tk *ticket, v verdict, now time.Time) {
	if tk.probe {
		t.row++
	} else {
		t.row = 0
		t.pace.Cut(now)
	}
	wait, least := t.backoff, t.window
	for range t.row {
		wait, least = min(2*wait, t.maxPause), min(2*least, t.maxPause)
	}
	if v.asked {
		wait = t.bounded(v)
		if t.row > 0 {
			wait = max(wait, least)
		}
	}
	t.pauses++
	t.pausedUntil = now.Add(wait)
	t.unproven = true
	t.probing, t.probe = true, nil
}

// bounded returns the pause that v asks for, or MaxBackoff if that is absurd. It
// requires mu.
func (t *Throttle) bounded(v verdict) time.Duration {
	if t.absurd(v) {
		return t.maxPause
	}
	return v.retryAfter
}

// absurd reports whether v asks for a pause that is too long to sit out.
func (t *Throttle) absurd(v verdict) bool { return v.retryAfter > 4*t.maxPause }

// refuseHopeless refuses all in line who cannot go before their deadlines any
// more. It requires mu.
func (t *Throttle) refuseHopeless(now time.Time) {
	ahead := 0
	for tk := range t.line.All() {
		if tk.refused = t.refusal(tk.deadline, ahead, now); tk.refused != nil {
			t.unlink(tk)
		} else {
			ahead++
		}
	}
}

// tooLate reports whether a retry that joined the line now would be refused for
// ctx's deadline, or whether ctx is done.
func (t *Throttle) tooLate(ctx context.Context) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	deadline, _ := ctx.Deadline()
	retry := ticket{place: t.line.Arrive(nil, retries)}
	return ctx.Err() != nil || t.refusal(deadline, t.ahead(&retry), t.now()) != nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
