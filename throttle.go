package clarifaihttp

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"example.com/clarifaihttp/internal/arrival"
	"example.com/clarifaihttp/internal/gate"
)

const (
	defaultLimit      = 15 // Clarifai's documented default, per second and account
	defaultWindow     = time.Second
	defaultBackoff    = 15 * time.Second // what Clarifai recommends after CONN_THROTTLED
	defaultMaxBackoff = 60 * time.Second
	defaultTransit    = 250 * time.Millisecond

	maxLimit    = 1_000_000
	maxDuration = 24 * time.Hour
	minDuration = time.Millisecond // below: a number meant as seconds, most likely
)

// A Limiter is asked before each attempt, in addition to the Throttle's own
// limit: for a limit that several processes share. [*rate.Limiter] is one, and
// the module redisthrottle has another. Wait must be safe for concurrent use. A
// Limiter may also be an [ArrivalLimiter], a [PauseLimiter] or a
// [SettingsLimiter].
//
// Wait returns nil when one request may go. The Throttle calls Wait for the
// first request in its line, one call at a time. The permission is for whoever
// is first when Wait returns: a more urgent request may have come meanwhile. The
// context ends with that of the request, and when a pause begins; then a
// permission lapses, and Wait is called again after the pause. An error refuses
// the request that Wait was called for. Its caller gets it wrapped, for errors.Is
// and errors.As.
type Limiter interface {
	Wait(ctx context.Context) error
}

// An ArrivalLimiter is a [Limiter] that is told when requests have arrived at the
// server: Arrived is called once for each Wait that returned nil, when that
// request can no longer arrive later than now. Arrived must not block.
type ArrivalLimiter interface {
	Limiter
	Arrived()
}

// A PauseLimiter is a [Limiter] that is told when the server throttles the
// account, to pause other processes, too. Wait is how long the pause lasts from
// now on. Throttled must not block.
type PauseLimiter interface {
	Limiter
	Throttled(wait time.Duration)
}

// A SettingsLimiter is a [Limiter] with settings of its own. Agree is called once
// before the first Wait, with what the Throttle keeps to; transit is negative if
// Throttle.Transit is. An error panics, as an invalid field of the Throttle does.
type SettingsLimiter interface {
	Limiter
	Agree(limit int, window, transit time.Duration) error
}

// A WaitError refuses a request at once, because its turn in the line comes after
// the deadline of its context. It is a [context.DeadlineExceeded] for errors.Is,
// and its Timeout method reports true. A [Transport] returns a *WaitError;
// errors.As finds a WaitError, too. A caller that tries again must wait first: a
// loop without a wait of its own spins.
type WaitError struct {
	// Wait is how long the request would have waited at least. A proxy can answer
	// it as Retry-After.
	Wait time.Duration
}

func (e WaitError) Error() string {
	return fmt.Sprintf("clarifaihttp: rate limit wait of at least %v would exceed the deadline", e.Wait.Round(time.Millisecond))
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

// A Throttle is the rate limit of one account, and the line in which its requests
// wait. All Transports that use the account must share it, by [WithThrottle]. The
// zero value is ready and has the limits that Clarifai documents. A Throttle is
// safe for concurrent use. It must not be copied, and its fields must not be
// changed after the first use. A negative or absurd field panics at the first
// use, with a message that names the field.
//
// At most Limit requests arrive at the server within any Window. A request that
// must wait does so in [Transport.RoundTrip]: the more urgent first, then retries,
// then in the order of arrival. A throttled response pauses all of them. The
// package comment has the rules.
type Throttle struct {
	// Limit is how many requests may arrive at the server in one Window. Zero
	// means 15. A process that shares the account with others may hold a share.
	Limit int

	// Window is the time that Limit is for. Zero means 1 s.
	Window time.Duration

	// Backoff is the length of the first pause after a throttled response without
	// Retry-After. Zero means 15 s, or MaxBackoff if that is shorter.
	Backoff time.Duration

	// MaxBackoff bounds the pauses that double. Zero means 60 s, or Backoff if
	// that is longer. A Retry-After is obeyed up to four times MaxBackoff.
	MaxBackoff time.Duration

	// Transit is the longest time between a request's being written, or
	// acknowledged by the other end of its connection, and its arrival where the
	// server counts. Zero means 250 ms. Negative means that only an answer proves
	// the arrival: set it where a proxy near the client takes more than it passes
	// on.
	Transit time.Duration

	// Limiter is asked before each attempt, in addition. Nil means none.
	Limiter Limiter

	mu   sync.Mutex // guards the set-up
	gate atomic.Pointer[gate.Gate]

	watch arrival.Watch // over what was written
}

// Stats is what a [Throttle] has counted since its first use, and its state now.
// Attempts, Throttled, Pauses, Refused, HandedBack and Waited never decrease.
type Stats struct {
	Attempts         int           // requests let go, retries and what net/http sends again included
	Throttled        int           // throttled responses
	Pauses           int           // pauses begun
	Refused          int           // requests refused with a WaitError
	HandedBack       int           // throttled responses that callers got
	Waiting          int           // requests that wait now
	WaitingByUrgency [8]int        // these, from u=0 to u=7
	Held             int           // slots held now
	Limit            int           // limit in force: Throttle.Limit, or lower if the server named a lower one
	PausedUntil      time.Time     // end of the pause; zero if there is none now
	Waited           time.Duration // time that requests have waited, in all
}

// Stats returns a snapshot. It may be called at any time.
func (t *Throttle) Stats() Stats { return Stats(t.ready().Stats()) }

// ready returns the gate, which is made at the first use.
func (t *Throttle) ready() *gate.Gate {
	if g := t.gate.Load(); g != nil {
		return g
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gate.Load() == nil {
		t.check()
		c := t.config()
		t.agree(c)
		t.gate.Store(gate.New(c))
	}
	return t.gate.Load()
}

// check panics if a field is invalid.
func (t *Throttle) check() {
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
}

// agree panics if the Limiter keeps to other settings.
func (t *Throttle) agree(c gate.Config) {
	l, ok := t.Limiter.(SettingsLimiter)
	if !ok {
		return
	}
	if err := l.Agree(c.Limit, c.Window, cmp.Or(t.Transit, c.Transit)); err != nil {
		panic(fmt.Sprintf("clarifaihttp: Throttle.Limiter: %v", err))
	}
}

// config returns the settings with the defaults filled in.
func (t *Throttle) config() gate.Config {
	c := gate.Config{
		Limit:       cmp.Or(t.Limit, defaultLimit),
		Window:      cmp.Or(t.Window, defaultWindow),
		MaxBackoff:  cmp.Or(t.MaxBackoff, max(defaultMaxBackoff, t.Backoff)),
		Transit:     cmp.Or(max(t.Transit, 0), defaultTransit),
		AnswersOnly: t.Transit < 0,
		Limiter:     t.Limiter,
	}
	c.Backoff = cmp.Or(t.Backoff, min(defaultBackoff, c.MaxBackoff))
	return c
}
