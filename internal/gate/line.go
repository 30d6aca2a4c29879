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

// ahead returns how many are ahead of tk, be it in line or not.
func (l *line) ahead(tk *Ticket) int {
	n, _ := l.find(tk)
	return n
}

// asideBefore returns how many in line stand aside for a probe, of tk's rank and
// the lower ones.
func (l *line) asideBefore(tk *Ticket) (n int) {
	for _, m := range l.aside[:tk.rank+1] {
		n += m
	}
	return n
}

func (l *line) join(tk *Ticket) {
	_, next := l.find(tk)
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

// find returns how many are ahead of tk, and who is next to it, if anyone. A new
// arrival is last in its rank; those that come back are few, and near the front.
func (l *line) find(tk *Ticket) (ahead int, next *Ticket) {
	rank := &l.ranks[tk.rank]
	ahead = l.before(tk.rank)
	if rank.last == nil || rank.last.number < tk.number {
		return ahead + rank.n, nil
	}
	for next = rank.first; next.number < tk.number; next = rank.next(next) {
		ahead++
	}
	return ahead, next
}
