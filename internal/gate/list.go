package gate

import "iter"

// The lists that a ticket can be in, each with links of its own in the ticket,
// so that joining one costs no memory.
const (
	inLine     = iota
	connecting // holds a slot and waits for a connection
	inRun      // may be part of a run of bare 429s
	lists
)

type links struct {
	prev, next *Ticket
	in         bool
}

// A list is a doubly linked list of tickets by their links of one kind.
type list struct {
	kind        int
	first, last *Ticket
	n           int
}

func (l *list) has(tk *Ticket) bool { return tk.links[l.kind].in }

func (l *list) next(tk *Ticket) *Ticket { return tk.links[l.kind].next }

func (l *list) prev(tk *Ticket) *Ticket { return tk.links[l.kind].prev }

// insert puts tk before next, or last if that is nil.
func (l *list) insert(tk, next *Ticket) {
	prev := l.last
	if next != nil {
		prev = l.prev(next)
	}
	tk.links[l.kind] = links{prev, next, true}
	l.link(prev, tk)
	l.link(tk, next)
	l.n++
}

// remove takes tk out, if it is in.
func (l *list) remove(tk *Ticket) {
	if !l.has(tk) {
		return
	}
	l.link(l.prev(tk), l.next(tk))
	tk.links[l.kind] = links{}
	l.n--
}

// link makes b follow a. Nil stands for the list's ends.
func (l *list) link(a, b *Ticket) {
	if a != nil {
		a.links[l.kind].next = b
	} else {
		l.first = b
	}
	if b != nil {
		b.links[l.kind].prev = a
	} else {
		l.last = a
	}
}

// all yields the tickets in order. The one it yields may be removed meanwhile.
func (l *list) all() iter.Seq[*Ticket] {
	return func(yield func(*Ticket) bool) {
		for tk := l.first; tk != nil; {
			next := l.next(tk)
			if !yield(tk) {
				return
			}
			tk = next
		}
	}
}
