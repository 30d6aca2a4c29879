package gate

import "time"

const (
	learnedFor    = time.Hour
	learnedAtMost = 24 * time.Hour
)

// A limit is the number of slots: the configured one, or a lower one for a time,
// if the server named it.
type limit struct {
	configured int
	learned    int // the latest
	now        int // in force
	keep       time.Duration
	until      time.Time // of the learned one, if that is in force
}

func newLimit(n int) limit { return limit{configured: n, now: n} }

// learn notes that the server named n. It reports whether that lowers the limit.
func (l *limit) learn(n int, now time.Time) (lowered bool) {
	lowered = n < l.now
	switch {
	case lowered && n == l.learned:
		l.keep = min(2*l.keep, learnedAtMost) // it was restored too early
	case lowered:
		l.learned, l.keep = n, learnedFor
	case n > l.now || l.now == l.configured:
		return false
	}
	l.now = min(l.now, n)
	l.until = now.Add(l.keep)
	return lowered
}

// tick restores the configured limit when it is time. It reports whether it did.
func (l *limit) tick(now time.Time) (restored bool) {
	if l.now == l.configured || now.Before(l.until) {
		return false
	}
	l.now = l.configured
	return true
}

// restores returns when the configured limit is restored, or never.
func (l *limit) restores() time.Time {
	if l.now == l.configured {
		return never
	}
	return l.until
}

// by returns the highest limit until the instant given.
func (l *limit) by(at time.Time) int {
	if l.restores().After(at) {
		return l.now
	}
	return l.configured
}
