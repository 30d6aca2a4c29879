package gate

import "iter"

// The ranks of the line. Who holds a connection is ahead of all: whoever went
// before it might need that connection. Then, by urgency, retries before
// newcomers.
const (
	holder     = 0
	urgencies  = 8
	ranks      = 1 + 2*urgencies
	newcomer   = 2 // of urgency 0
	perUrgency = 2
)

// rankOf returns the rank of a call's ticket.
func rankOf(urgency int, retry bool) int {
	rank := newcomer + perUrgency*urgency
	if retry {
		rank--
	}
	return rank
}

// A line holds tickets by rank, all of a rank in the order of their numbers.
type line struct {
	ranks   [ranks]list
	waiting [urgencies]int // tickets in line, by urgency
	aside   [ranks]int     // tickets that stand aside for a probe
}

func (l *line) len() (n int) { return l.before(ranks) }

func (l *line) has(tk *Ticket) bool { return tk.links[inLine].in }

// before returns how many of a lower rank are in line.
func (l *line) before(rank int) (n int) {
	for i := range rank {
		n += l.ranks[i].n
	}
	return n
}

// all yields the tickets in order. The one it yields may leave meanwhile.
func (l *line) all() iter.Seq[*Ticket] {
	return func(yield func(*Ticket) bool) {
		for i := range l.ranks {
			for tk := range l.ranks[i].all() {
				if !yield(tk) {
					return
				}
			}
		}
	}
}

// ahead returns how many are ahead of tk, be it in line or not, and how many of
// these stand aside for a probe.
func (l *line) ahead(tk *Ticket) (n, aside int) {
	n, aside, _ = l.find(tk)
	return n, aside
}

func (l *line) join(tk *Ticket) {
	_, _, next := l.find(tk)
	l.ranks[tk.rank].insert(tk, next)
	l.waiting[tk.urgency]++
	if tk.standsAside() {
		l.aside[tk.rank]++
	}
}

// leave takes tk out, if it is in.
func (l *line) leave(tk *Ticket) {
	if l.has(tk) {
		l.waiting[tk.urgency]--
		if tk.standsAside() {
			l.aside[tk.rank]--
		}
		l.ranks[tk.rank].remove(tk)
	}
}

// find is ahead, and returns who is next to tk, if anyone. A new arrival is last
// in its rank; those that come back are few, and near the front.
func (l *line) find(tk *Ticket) (ahead, aside int, next *Ticket) {
	ahead = l.before(tk.rank)
	for _, n := range l.aside[:tk.rank] {
		aside += n
	}
	rank := &l.ranks[tk.rank]
	if rank.last == nil || rank.last.number < tk.number {
		return ahead + rank.n, aside + l.aside[tk.rank], nil
	}
	for next = rank.first; next.number < tk.number; next = rank.next(next) {
		ahead++
		if next.standsAside() {
			aside++
		}
	}
	return ahead, aside, next
}
