// Package line keeps waiters in order.
package line

import (
	"container/list"
	"iter"
)

// Ranks is how many ranks there are.
const Ranks = 3

// A Line holds waiters: those of rank 0 ahead of those of rank 1 and so on, all
// of a rank in the order of their arrival. The zero value is empty. It is not
// safe for concurrent use.
type Line[W any] struct {
	ranks   [Ranks]list.List // of *Place[W]
	arrived uint64
}

// A Place is one waiter's.
type Place[W any] struct {
	waiter W
	rank   int
	number uint64        // order of arrival
	elem   *list.Element // nil: not in line
}

// Taken reports whether the waiter is in line.
func (p *Place[W]) Taken() bool { return p.elem != nil }

// Arrive returns a place for w, which is w's for good: it may be left and taken
// again.
func (l *Line[W]) Arrive(w W, rank int) Place[W] {
	l.arrived++
	return Place[W]{waiter: w, rank: rank, number: l.arrived}
}

// Len returns how many are in line.
func (l *Line[W]) Len() int { return l.before(Ranks) }

// before returns how many of a lower rank are in line.
func (l *Line[W]) before(rank int) (n int) {
	for i := range rank {
		n += l.ranks[i].Len()
	}
	return n
}

// Front returns the first in a line that is not empty.
func (l *Line[W]) Front() (front W) {
	for front = range l.All() {
		break
	}
	return front
}

// All yields the waiters in order. The one it yields may leave meanwhile.
func (l *Line[W]) All() iter.Seq[W] {
	return func(yield func(W) bool) {
		for i := range l.ranks {
			for e := l.ranks[i].Front(); e != nil; {
				next := e.Next()
				if !yield(e.Value.(*Place[W]).waiter) {
					return
				}
				e = next
			}
		}
	}
}

// Ahead returns how many are ahead of p, be it taken or not.
func (l *Line[W]) Ahead(p *Place[W]) int {
	n, _ := l.find(p)
	return n
}

// Take puts p's waiter in line.
func (l *Line[W]) Take(p *Place[W]) {
	if _, next := l.find(p); next != nil {
		p.elem = l.ranks[p.rank].InsertBefore(p, next)
	} else {
		p.elem = l.ranks[p.rank].PushBack(p)
	}
}

// Leave takes p's waiter out of the line.
func (l *Line[W]) Leave(p *Place[W]) {
	l.ranks[p.rank].Remove(p.elem)
	p.elem = nil
}

// find returns how many are ahead of p, and who is next to it, if anyone. A new
// arrival is last in its rank; those that come back are few, and near the front.
func (l *Line[W]) find(p *Place[W]) (ahead int, next *list.Element) {
	ahead = l.before(p.rank)
	rank := &l.ranks[p.rank]
	number := func(e *list.Element) uint64 { return e.Value.(*Place[W]).number }
	if last := rank.Back(); last == nil || number(last) < p.number {
		return ahead + rank.Len(), nil
	}
	for next = rank.Front(); number(next) < p.number; next = next.Next() {
		ahead++
	}
	return ahead, next
}
