package redisthrottle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
)

const (
	// block is how long Redis keeps a BLMOVE waiting; it may take up to 100 ms
	// more. A call that takes longer than patience means that Redis is away. A
	// permission is used within patience of its being asked for.
	block    = 900 * time.Millisecond
	patience = 1080 * time.Millisecond

	// A request is written this long after its token was taken, at the latest,
	// if its process is cut off from Redis, or killed, or frozen meanwhile.
	grace = 3 * time.Second

	// A process that waits calls the script at least this often.
	maxTick = 1500 * time.Millisecond
)

// ErrClosed is what Wait returns after Close.
var ErrClosed = errors.New("redisthrottle: limiter is closed")

// A Limiter is the [clarifaihttp.Limiter] of a process that shares an account
// with others. It is safe for concurrent use, by several Throttles too.
//
// # Tokens
//
// Redis holds N = Limit tokens for the account. Each is in one of three lists:
// free, taken, or parked during a pause. A request needs one: BLMOVE moves it
// from free to taken, for those who wait in the order in which they came. It
// goes back W after the request has arrived: W is Window plus 10 ms, the
// arrival is known at the answer or Transit after the request was written, and
// the time is measured on the process's own clock, which is monotonic.
//
// So of N+1 requests one got its token from one of the others, after W from
// that one's arrival: no N+1 arrive within one window. This is the proof of
// [clarifaihttp.Throttle] with tokens for slots. No clock of Redis is used for
// it.
//
// A token's name has a generation, which changes whenever the token leaves
// taken, or is kept there for long. One script does all of that, and names what it moves by name and
// generation. So a call that is sent again after a lost reply, or that a
// frozen Redis executes when it wakes, does nothing: no token is ever there
// twice. Each call of the script counts the three lists; other than N tokens,
// of whatever cause, are all thrown away and made anew.
//
// # Silence
//
// D = 3 s + Transit + W is the time after which a request of a process that
// was not heard of counts no more: it is let go within 1.1 s of asking for
// the token, or else gives it back, has been written when 3 s are over, and
// arrives by Transit later. Whoever is alive and keeps a token for longer
// gives it a new generation every D/3. What a process has not seen itself, since
// Redis was away or it was stopped, is no silence.
//
//   - A token of one generation that a waiting process has seen in taken for
//     D, with Redis answering all the time, is lost: its process died, or the
//     reply that gave it did not come. It goes back to free.
//   - Tokens that were thrown away or not found (a first start, FLUSHALL,
//     eviction, another Redis by restart or failover: its run_id is another)
//     are made anew after D in which no process had a request that could still
//     arrive.
//
// # Pause
//
// A throttle parks the tokens that are free and those that come back. When the
// pause is over one token is freed, as the probe: whoever takes it, W after
// its arrival it lets the others go. After a throttle tokens are freed no
// faster than the pace allows, which is the core's for one process. Pause and
// pace use Redis's clock.
//
// # Where it ends
//
// Redis has to be one: two masters that serve at once give out N tokens each. A
// failover that loses the last writes and that clients do not notice can give
// out tokens twice for up to 1.5 s. A process that is frozen or cut off from
// Redis after Wait let a request go, for more than 3 s before it is written, or
// before an answer that alone bounds its arrival (bodies of more than 64 KiB),
// sends one request per token too many.
//
// # When Redis is away
//
// No error, no delay, no missing key ever permits a request. A call that fails
// or takes longer than 1.1 s means that Redis is away; from then on Wait makes
// no calls, one goroutine tries every second at most. Requests wait until their
// contexts end; see Config.Fallback for another way.
type Limiter struct {
	client redis.UniversalClient
	config Config
	keys   []string // pool, free, taken, parked
	hold   time.Duration
	gone   time.Duration // D
	tick   time.Duration
	turn   chan struct{} // held by the one who waits

	mu      sync.Mutex // guards all below; nothing is awaited or called back under it
	changed chan struct{}
	lines   []line
	closed  bool

	waiting bool  // somebody has the turn
	asked   *take // BLMOVE under way, whose reply is waited for
	granted *take // for the one who waits

	held  []*token // in the order in which they came
	timer *time.Timer

	syncing bool // the script's call is under way, or is about to be repeated
	again   bool // call it once more
	tried   time.Time
	retry   time.Duration // between tries, while Redis is away
	synced  time.Time
	seen    time.Time // taken was looked at

	view    view
	watched time.Time            // view.watch is the same since then
	others  map[string]time.Time // tokens in taken: seen first
	pause   time.Time            // end of one that Redis does not know yet

	away      error // of the latest call; nil: Redis answers
	awaySince time.Time
	alone     bool      // the share of its own is in use
	quiet     time.Time // until then nothing is sent, after a return from that
}

var _ clarifaihttp.Limiter = (*Limiter)(nil)

// Wait returns nil when a request may be sent. It returns the cause of ctx if
// that ends first, a [*clarifaihttp.WaitError] if it is known to end first, and
// [ErrClosed] after Close. The trouble that Redis has is never an error of
// Wait's: it waits.
func (l *Limiter) Wait(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.lock()
	defer l.unlock()
	l.waiting = true
	defer func() {
		l.waiting = false
		if l.granted != nil {
			l.refuse(l.granted)
		}
	}()
	alarm := time.NewTimer(maxDuration)
	defer alarm.Stop()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if l.closed {
			return ErrClosed
		}
		now := time.Now()
		ok, again, not := l.next(now)
		if ok {
			return nil
		}
		if deadline, has := ctx.Deadline(); has && deadline.Before(not) {
			return &clarifaihttp.WaitError{Wait: not.Sub(now)}
		}
		alarm.Reset(max(again.Sub(now), 0))
		changed := l.changed
		l.unlock()
		select {
		case <-changed:
		case <-alarm.C:
		case <-ctx.Done():
		}
		l.lock()
	}
}

// next is the one decision: may the one who waits go now, and if not, when must
// it be asked again, unless something happens before, and before when does it
// certainly not go? It requires mu.
func (l *Limiter) next(now time.Time) (ok bool, again, not time.Time) {
	far := now.Add(maxDuration)
	switch {
	case l.away != nil:
		ok, again = l.share(now)
		return ok, again, now
	case l.granted != nil:
		t := l.granted
		if now.Sub(t.asked) <= patience && !now.Before(l.quiet) {
			l.granted = nil
			l.hand(t.name, now)
			return true, now, now
		}
		l.refuse(t)
	}
	v, due, silent := &l.view, l.synced.Add(l.tick), l.watched.Add(l.gone)
	switch {
	case l.syncing: // and then asks again
	case !now.Before(due), v.state != ready && !now.Before(silent), v.paused && !now.Before(v.pausedUntil):
		l.sync()
	case now.Before(l.quiet):
		if again = earlier(due, l.quiet); v.state != ready {
			again = earlier(again, silent)
		}
		return false, again, l.quiet
	case v.state != ready:
		if v.state == silence {
			l.take() // to be in line when it is over
		}
		return false, earlier(due, silent), now
	case v.paused:
		return false, v.pausedUntil, v.pausedUntil
	default:
		l.take()
	}
	return false, far, now
}

// Arrived notes that one of the requests that Wait permitted has arrived at the
// server: W later its token goes back.
func (l *Limiter) Arrived() {
	l.lock()
	defer l.unlock()
	now := time.Now()
	for _, t := range l.held {
		if t.sent && t.due.IsZero() {
			t.due = now.Add(l.hold)
			break
		}
	}
	if l.alone {
		l.change() // it is known now when the share has room
	}
	l.schedule(now)
}

// Throttled pauses all processes: the server told the account to wait.
func (l *Limiter) Throttled(wait time.Duration) {
	l.lock()
	defer l.unlock()
	l.pause = later(l.pause, time.Now().Add(wait))
	l.sync()
}

// Close ends the waits and gives the tokens back, which takes up to Window +
// 1.1 s. It returns an error if Redis is away meanwhile. Tokens of requests
// that have not arrived yet follow as long as the process lives; otherwise they
// come back as those of a process that died. Close may be called again.
func (l *Limiter) Close() error {
	l.lock()
	defer l.unlock()
	l.closed = true
	l.change()
	end := time.NewTimer(l.hold + patience)
	defer end.Stop()
	for l.away == nil && (l.asked != nil || l.syncing || l.returning()) {
		changed := l.changed
		l.unlock()
		select {
		case <-changed:
			l.lock()
		case <-end.C:
			l.lock()
			return errors.New("redisthrottle: tokens are not back in time")
		}
	}
	if l.away != nil {
		return fmt.Errorf("redisthrottle: tokens are not back: %w", l.away)
	}
	return nil
}

// change wakes all who wait for one. It requires mu.
func (l *Limiter) change() {
	close(l.changed)
	l.changed = make(chan struct{})
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
