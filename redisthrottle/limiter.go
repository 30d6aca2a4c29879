package redisthrottle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/gate"
)

const (
	// block is the longest wait of a BLMOVE; Redis may take 100 ms more. A BLMOVE
	// that takes longer than patience means that Redis is away. A token is used
	// within patience of the beginning of its BLMOVE.
	block        = 1000 * time.Millisecond
	patience     = 1180 * time.Millisecond
	callPatience = 800 * time.Millisecond // for the script, a connection included; longer if Redis is far

	// A request is written within grace of the process's asking for its token, if
	// the process is cut off from Redis, killed or frozen. This is an assumption.
	grace = 3 * time.Second

	// A process renews the tokens it keeps at least this often, and lets a request
	// go only this long after a call.
	maxTick = 1500 * time.Millisecond
)

// ErrClosed is what Wait returns after Close.
var ErrClosed = errors.New("redisthrottle: limiter is closed")

// A Limiter is the [clarifaihttp.Limiter] of a process that shares an account
// with others. [New] makes one; there is no zero value to use. It is safe for
// concurrent use, by several Throttles too.
//
// Redis holds Limit tokens. A request takes one, and the Limiter gives it back
// Window + 10 ms after the request has arrived. So no window of the server sees
// more than Limit requests, whatever the processes, their clocks or the network do.
// The proof is in pool.go.
//
// # Where it ends
//
// There must be one Redis: two masters that serve at once give out N tokens each. A
// failover that loses the last writes and keeps the clients' connections can give
// out tokens twice for up to 1.5 s. A process that is frozen or cut off from Redis
// sends one request per token too many if it writes the request more than 3 s after
// it asked for the token, which is at least 1.8 s after Wait returned. If an answer
// alone bounds the arrival (bodies of more than 64 KiB), the answer counts instead.
// If Redis's clock jumps forward just before the first call of a new process, the
// tokens of a process that died meanwhile may come back 1.9 s after it was heard of.
//
// # When Redis is away
//
// No error, no delay, no missing key ever permits a request. Redis is away when a
// call fails or takes too long: 1.2 s for BLMOVE, 0.8 s for the script, or up to
// 1.2 s if Redis is more than 200 ms away. Then one goroutine tries new connections,
// after 0.1 s at first, later every second. Requests wait until their contexts end;
// see Config.Fallback for another way.
type Limiter struct {
	config  Config
	keys    []string      // pool, free, taken, parked, seen
	turn    chan struct{} // a Wait holds it
	dial    func() redis.UniversalClient
	hangUp  func(redis.UniversalClient)
	secure  string      // address, if the client uses TLS
	outside atomic.Bool // run_id is asked for outside the script

	mu      sync.Mutex // guards all below; nothing is awaited or called back under it
	changed chan struct{}
	lines   []line
	closed  bool

	hold, silence, tick time.Duration // W, D; 0 before the first use

	client    redis.UniversalClient
	connected time.Time // a connection was made
	losses    int       // connections given up so far
	hungUp    bool      // after Close

	waiting    bool      // a Wait has the turn
	idle       time.Time // end of the latest Wait
	busy       bool      // this Wait began within spare of it
	asked      int       // BLMOVEs under way
	takes      int       // BLMOVEs so far
	askBy      time.Time // no BLMOVE begins later
	held       []*token  // in the order in which they came
	turnOfNext time.Time // of those that are delayed by the pace

	timer    *time.Timer // calls the script
	syncing  bool        // a call is under way
	tried    time.Time
	retry    time.Duration // between tries, while Redis is away
	synced   time.Time     // sending of the latest call that was answered
	distance time.Duration // how long that call took

	view        reply     // of the latest call
	pausedUntil time.Time // by this process's clock
	pace        gate.State
	pause       time.Time // end of a pause that Redis does not know yet

	away      error // of the latest call; nil: Redis answers
	awaySince time.Time
	alone     bool      // Fallback is in use
	quiet     time.Time // nothing is sent until then: Redis has come back
}

var (
	_ clarifaihttp.ArrivalLimiter  = (*Limiter)(nil)
	_ clarifaihttp.PauseLimiter    = (*Limiter)(nil)
	_ clarifaihttp.SettingsLimiter = (*Limiter)(nil)
)

// Wait returns nil when a request may be sent. It returns the cause of ctx if
// that ends first, a [*clarifaihttp.WaitError] if it is known to end first, and
// [ErrClosed] after Close. While Redis is away it waits. Trouble that time does
// not cure comes back as an error, unless Config.Fallback is set: a missing right,
// a wrong password or certificate, a key of another type.
func (l *Limiter) Wait(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.lock()
	defer l.unlock()
	l.settle()
	l.waiting, l.busy = true, time.Since(l.idle) < spare
	defer func() {
		l.waiting, l.idle = false, time.Now()
		l.plan(l.idle)
	}()
	alarm := time.NewTimer(maxDuration)
	defer alarm.Stop()
	for {
		now := time.Now()
		if ctx.Err() != nil {
			if l.away == nil && !l.closed && now.Sub(l.synced) > time.Second {
				l.sync() // the next Wait profits: the pool's clock advances
			}
			return context.Cause(ctx)
		}
		if l.closed {
			return ErrClosed
		}
		if l.away != nil && l.config.Fallback == 0 && hopeless(l.away) && now.Sub(l.tried) < retryLate {
			return fmt.Errorf("redisthrottle: %w", l.away)
		}
		ok, askAt, notBefore := l.next(now)
		if ok {
			return nil
		}
		if deadline, has := ctx.Deadline(); has && notBefore.After(now) && deadline.Before(notBefore) {
			return &clarifaihttp.WaitError{Wait: notBefore.Sub(now)}
		}
		alarm.Reset(max(askAt.Sub(now), 0))
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

// next reports whether the request that waits may go now. If not, it returns when
// to ask again, and an instant before which the request will not go. It requires mu.
func (l *Limiter) next(now time.Time) (ok bool, askAt, notBefore time.Time) {
	if l.away != nil {
		ok, askAt = l.share(now)
		return ok, askAt, now
	}
	// A call is due every 2 s, when the pool expects one, when a pause ends, and
	// when a new connection may lead to another Redis.
	due := l.synced.Add(min(l.tick*7/5, time.Duration(l.view.Wait+1)*time.Millisecond))
	known := now.Before(due) && l.connected.Before(l.synced) && (l.view.Left == 0 || now.Before(l.pausedUntil))
	if !known {
		l.sync()
		due = never // its end wakes
	}
	paused := later(l.pause, l.pausedUntil)
	switch t := l.granted(now); {
	case now.Before(l.quiet):
		return false, earlier(due, l.quiet), l.quiet
	case l.view.State == foreign:
		return false, due, now
	case now.Before(paused):
		return false, earlier(due, paused), paused
	case !known:
	case t != nil && l.view.State == ready && now.Before(l.synced.Add(l.tick)):
		l.letGo(t)
		return true, now, now
	case t != nil && l.view.State == ready:
		l.sync()
	case now.Before(l.askBy):
		l.take()
	case l.asked == 0:
		l.sync()
	}
	return false, due, now
}

// Arrived reports that a request that Wait permitted has arrived at the server. Its
// token goes back Window + 10 ms later.
func (l *Limiter) Arrived() {
	l.lock()
	defer l.unlock()
	now := time.Now()
	if i := slices.IndexFunc(l.held, (*token).underWay); i >= 0 {
		l.held[i].due = now.Add(l.hold)
	}
	if l.alone {
		l.wake() // it is known now when the share has room
	}
	l.plan(now)
}

// Throttled pauses all processes: the server told the account to wait.
func (l *Limiter) Throttled(wait time.Duration) {
	l.lock()
	defer l.unlock()
	l.settle()
	now := time.Now()
	l.pause = later(l.pause, now.Add(wait))
	l.plan(now)
}

// Close ends the waits and gives the tokens back, which takes up to Window +
// 1.2 s. It returns an error if Redis is away meanwhile. Tokens of requests
// that have not arrived yet follow as long as the process lives; otherwise they
// come back as those of a process that died. Close may be called again.
func (l *Limiter) Close() error {
	l.lock()
	defer l.unlock()
	l.closed = true
	l.settle()
	l.plan(time.Now())
	l.wake()
	end := time.After(l.hold + patience)
	returning := func(t *token) bool { return t.name != "" && !t.underWay() && t.how != "delayed" }
	for l.away == nil && (l.asked > 0 || l.syncing || slices.ContainsFunc(l.held, returning)) {
		changed := l.changed
		l.unlock()
		select {
		case <-changed:
			l.lock()
		case <-end:
			l.lock()
			return errors.New("redisthrottle: tokens were not given back in time")
		}
	}
	if l.away != nil {
		return fmt.Errorf("redisthrottle: tokens were not given back: %w", l.away)
	}
	return nil
}

// wake wakes all who wait for a change. It requires mu.
func (l *Limiter) wake() {
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
