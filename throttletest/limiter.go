package throttletest

import (
	"fmt"
	"time"
)

// An Algorithm is a way to count requests against a limit. In all of them
// throttled requests use up nothing.
type Algorithm int

const (
	// SlidingLog serves a request if fewer than Limit were served in the Window
	// before it. One served exactly a Window ago is no longer in it.
	SlidingLog Algorithm = iota

	// FixedWindow serves Limit requests between one multiple of Window and the
	// next, in absolute time as by [time.Time.Truncate]: around a boundary twice
	// the Limit may pass.
	FixedWindow

	// TokenBucket holds at most Limit tokens, as it does at first, and gains Limit
	// per Window, evenly. Each request served takes one.
	TokenBucket

	// GCRA, the generic cell rate algorithm of ITU-T I.371, serves a request if it
	// is not too early against a schedule of one each Window/Limit, with a
	// tolerance for bursts of Limit. It serves the same requests as TokenBucket.
	GCRA
)

var algorithms = [...]string{SlidingLog: "sliding log", FixedWindow: "fixed window", TokenBucket: "token bucket", GCRA: "GCRA"}

// known reports whether a is one of the constants.
func (a Algorithm) known() bool { return a >= 0 && int(a) < len(algorithms) }

func (a Algorithm) String() string {
	if !a.known() {
		return fmt.Sprintf("Algorithm(%d)", int(a))
	}
	return algorithms[a]
}

// A limiter decides, as a function of its state and now, whether a request is
// served, and counts it if so. From call to call now must not go back.
type limiter interface {
	allow(now time.Time) bool
}

func newLimiter(a Algorithm, limit int, window time.Duration) limiter {
	switch a {
	case SlidingLog:
		return &slidingLog{limit: limit, served: recent{window: window}}
	case FixedWindow:
		return &fixedWindow{limit: limit, window: window}
	default:
		return &bucket{limit: time.Duration(limit), window: window}
	}
}

type slidingLog struct {
	limit  int
	served recent
}

func (l *slidingLog) allow(now time.Time) bool {
	if l.served.count(now) >= l.limit {
		return false
	}
	l.served.add(now)
	return true
}

type fixedWindow struct {
	limit  int
	window time.Duration
	start  time.Time // of the current window
	served int       // in it
}

func (l *fixedWindow) allow(now time.Time) bool {
	if start := now.Truncate(l.window); start.After(l.start) {
		l.start, l.served = start, 0
	}
	if l.served >= l.limit {
		return false
	}
	l.served++
	return true
}

// A bucket is both the token bucket and GCRA, which are one rule: a request
// pours window into it, it leaks limit per nanosecond and holds limit * window.
// In these units nothing is rounded. What is missing in it are the tokens; how
// long it takes to run dry is GCRA's theoretical arrival time.
type bucket struct {
	limit, window time.Duration
	level         time.Duration // at the time of the latest request
	at            time.Time
}

func (l *bucket) allow(now time.Time) bool {
	if d := now.Sub(l.at); d < l.window { // else it is dry, and d * limit might overflow
		l.level = max(0, l.level-d*l.limit)
	} else {
		l.level = 0
	}
	l.at = now
	if l.level > (l.limit-1)*l.window {
		return false
	}
	l.level += l.window
	return true
}

// recent is a log of instants that forgets those a window old or older.
type recent struct {
	window time.Duration
	log    []time.Time
}

func (r *recent) add(now time.Time) { r.log = append(r.log, now) }

// count returns how many instants lie less than a window before now.
func (r *recent) count(now time.Time) int {
	for len(r.log) > 0 && now.Sub(r.log[0]) >= r.window {
		r.log = r.log[1:]
	}
	return len(r.log)
}
