package gate

import "time"

// bareRun is how many bare 429s, one directly after the other, stand for a
// throttled account. One alone may be the fault of its own request.
const bareRun = 3

// The outcomes of a ticket, as far as a run of bare 429s is concerned.
const (
	pending = iota
	bare    // a bare 429
	other   // any other answer: it ends a run
)

// A run looks for bare 429s to requests that were let go one directly after the
// other: bareRun of them mean that the account is throttled, not a single endpoint.
// It has the tickets in the order in which they were let go, newcomers alone: the
// retries of two broken endpoints must not confirm each other.
//
// A ticket that was answered otherwise ends a run. One without an answer is left out
// for window after it was written, and then ends a run, too: a gateway's answers come
// fast. There are at most so many tickets: of two neighbours that end a run only
// one is kept, and then the oldest go.
type run struct {
	list
	window time.Duration
	most   int
}

func newRun(limit int, window time.Duration) run {
	return run{list{kind: inRun}, window, max(2*limit, 64)}
}

// letGo adds tk as the last.
func (r *run) letGo(tk *Ticket) {
	if tk.suspect {
		return
	}
	tk.outcome = pending
	r.insert(tk, nil)
	if r.n > r.most {
		r.remove(r.first)
	}
}

// served notes that tk was answered otherwise.
func (r *run) served(tk *Ticket) {
	if !r.has(tk) {
		return
	}
	tk.outcome = other
	next := r.next(tk)
	if next != nil && next.outcome == other {
		r.remove(next)
	}
	if prev := r.prev(tk); prev == nil || prev.outcome == other {
		r.remove(tk)
	}
}

// throttled notes that tk was answered with a bare 429. It reports whether that
// makes a run.
func (r *run) throttled(tk *Ticket, now time.Time) bool {
	if !r.has(tk) {
		return false
	}
	tk.outcome = bare
	n := 1
	for _, step := range []func(*Ticket) *Ticket{r.prev, r.next} {
		for t := step(tk); t != nil && n < bareRun && !r.ends(t, now); t = step(t) {
			if t.outcome == bare {
				n++
			}
		}
	}
	return n == bareRun
}

// ends reports whether tk ends a run.
func (r *run) ends(tk *Ticket, now time.Time) bool {
	return tk.outcome == other || tk.outcome == pending && !tk.written.IsZero() && now.Sub(tk.written) >= r.window
}

// clear forgets all.
func (r *run) clear() {
	for tk := range r.all() {
		r.remove(tk)
	}
}
