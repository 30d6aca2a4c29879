package redisthrottle

import "slices"

// Idle reports whether no token is on its way to l, nor waits there for a request.
func (l *Limiter) Idle() bool {
	l.lock()
	defer l.unlock()
	return !l.waiting && !l.syncing && l.asked == 0 &&
		!slices.ContainsFunc(l.held, func(t *token) bool { return t.how == "unused" })
}

// Asked returns how many BLMOVEs are under way.
func (l *Limiter) Asked() int {
	l.lock()
	defer l.unlock()
	return l.asked
}

// UnderWay returns the names of the tokens that requests use.
func (l *Limiter) UnderWay() (names []string) {
	l.lock()
	defer l.unlock()
	for _, t := range l.held {
		if t.underWay() {
			names = append(names, t.name)
		}
	}
	return names
}
