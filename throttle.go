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

// A Limiter is asked before each wire request, for a limit that is kept
// outside this process. [*rate.Limiter] is one.
//
// A Throttle calls Wait for the first in its line alone, one call at a time.
// When Wait returns nil, whoever is first then goes: a more
// urgent request may have come meanwhile, and the one that Wait was called for
// keeps its place. If a pause has begun, the permission lapses and Wait is
// called again after the pause. The context ends when the request's does, and
// when a pause begins. An error of Wait refuses the request that it was called
// for, and comes back wrapped (errors.Is and errors.As see it).
//
// A Limiter may have more methods. They must not block for long:
//
//	Agree(limit int, window, transit time.Duration) error
//	                                 called before the first Wait, with what the
//	                                 Throttle keeps to (transit is negative if
//	                                 Throttle.Transit is); an error panics, as
//	                                 other invalid fields do
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
	return fmt.Sprintf("clarifaihttp: rate limit wait of at least %v would exceed the deadline", e.Wait)
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

// A Throttle keeps the requests of one account within its rate limit. All
// Transports that use the account must share it ([WithThrottle]). The zero value
// is ready and stands for Clarifai's documented limits. A Throttle is safe for
// concurrent use. Its fields must not be changed after the first use, and it must
// not be copied. A negative or absurd field panics at the first use, with a
// message that names it.
//
// At most Limit requests arrive at the server in any Window: each holds one of
// Limit slots from its start until Window + 10 ms after it has surely arrived,
// which is when its answer comes, or
//
//   - Transit after it was written, if its body has at most 64 KiB;
//   - Transit after the other end of its connection has acknowledged all of it,
//     where the system says so: on Linux, for TCP connections, plain or under TLS.
//     A small request that is not acknowledged Transit after it was written waits
//     for that, too;
//   - a minute after it was written;
//   - Transit after it failed or was canceled. If nothing of it was sent, its slot
//     is free at once.
//
// What net/http sends again by itself holds a slot of its own. A request that
// waits for a dial gives its slot back after Window + 10 ms, and one whose body
// is not written whole a minute after it got its connection does, too: it gets a
// slot anew before it goes on. So what never answers stops nobody else.
//
// After CONN_THROTTLED all requests pause, for Backoff or for the answer's
// Retry-After. Then one goes alone, the probe; the others wait until it is
// answered, or Window after it was written (throttled responses come fast), or
// Backoff after its start. A probe that is throttled begins a pause twice as
// long, up to MaxBackoff. From the first throttled response on, starts are
// spaced, too, by a rate that comes back along the curve of RFC 9438, section
// 4.2; an hour without one lifts it.
//
// A 429 without a Clarifai status, as a gateway's, is taken for a throttled
// response on suspicion: its own request waits, for Backoff, twice as long each
// time up to MaxBackoff, or for its Retry-After. The account pauses only when
// three requests, one directly after the other, come back so. With ten retries
// such a request may wait for nine minutes before its 429 is handed back.
//
// # The line
//
// All waiting happens in one line. A request's Priority header (RFC 9218,
// section 4.1) says how urgent it is: from u=0, the most urgent, to u=7,
// background. A request without that header, or with a malformed one, has
// urgency 3. Nothing else of the header is read, and it travels on unchanged.
//
// The more urgent requests go first. Of the same urgency, retries go before
// newcomers, and then the order of arrival counts. What net/http sends again goes
// ahead of all, because it may hold a connection that the others need.
//
// This order is strict: a request waits as long as more urgent ones do, if need
// be for ever. Give background requests a deadline where that must not be, and
// send them anew with a higher urgency.
//
// A request that cannot go before its context's deadline is refused at once by a
// [WaitError], on joining or when a pause begins or is extended. The Throttle
// knows only those who are ahead at that time: when more urgent requests overtake
// one later, its context ends its wait.
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

	// Transit bounds the time from a request's being written, or acknowledged by
	// the other end of its connection, to its arrival where the server counts. Zero
	// means 250 ms. Negative: there is no bound, only answers free a slot (and
	// 250 ms stand for requests that fail). A proxy near the client that takes more
	// than it passes on needs a negative one.
	Transit time.Duration

	// Limiter is asked before each wire request, in addition. Nil means none.
	Limiter Limiter

	mu   sync.Mutex // guards the set-up
	gate atomic.Pointer[gate.Gate]

	watch arrival.Watch // over what was written
}

// Stats is what a Throttle counted since its first use, and where it stands.
// Attempts, Throttled, Pauses, Refused, HandedBack and Waited never decrease.
type Stats struct {
	Attempts         int           // wire requests let go
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
	l, ok := t.Limiter.(interface {
		Agree(limit int, window, transit time.Duration) error
	})
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
