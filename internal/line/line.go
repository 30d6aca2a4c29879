// Package line keeps waiters in order.
package line

import (
	"container/list"
	"iter"
)

// A Line holds waiters: retries ahead of others, and both in the order of their
// arrival. The zero value is empty. It is not safe for concurrent use.
type Line[W any] struct {
	retries, others list.List // of *Place[W]
	arrived         uint64
}

// A Place is one waiter's.
type Place[W any] struct {
	waiter W
	part   *list.List
	number uint64        // order of arrival
	elem   *list.Element // nil: not in line
}

// Taken reports whether the waiter is in line.
func (p *Place[W]) Taken() bool { return p.elem != nil }

// Arrive returns a place for w, which is w's for good: it may be left and taken
// again.
func (l *Line[W]) Arrive(w W, retry bool) Place[W] {
	l.arrived++
	p := Place[W]{waiter: w, part: &l.others, number: l.arrived}
	if retry {
		p.part = &l.retries
	}
	return p
}

// Len returns how many are in line.
func (l *Line[W]) Len() int { return l.retries.Len() + l.others.Len() }

// Front returns the first in a line that is not empty.
func (l *Line[W]) Front() W {
	front := l.retries.Front()
	if front == nil {
		front = l.others.Front()
	}
	return front.Value.(*Place[W]).waiter
}

// All yields the waiters in order. The one it yields may leave meanwhile.
func (l *Line[W]) All() iter.Seq[W] {
	return func(yield func(W) bool) {
		for _, part := range []*list.List{&l.retries, &l.others} {
			for e := part.Front(); e != nil; {
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
		p.elem = p.part.InsertBefore(p, next)
	} else {
		p.elem = p.part.PushBack(p)
	}
}

// Leave takes p's waiter out of the line.
func (l *Line[W]) Leave(p *Place[W]) {
	p.part.Remove(p.elem)
	p.elem = nil
}

// find returns how many are ahead of p, and who is next to it, if anyone. A new
// arrival is last in its part; those that come back are few, and near the front.
func (l *Line[W]) find(p *Place[W]) (ahead int, next *list.Element) {
	if p.part == &l.others {
		ahead = l.retries.Len()
	}
	number := func(e *list.Element) uint64 { return e.Value.(*Place[W]).number }
	if last := p.part.Back(); last == nil || number(last) < p.number {
		return ahead + p.part.Len(), nil
	}
	for next = p.part.Front(); number(next) < p.number; next = next.Next() {
		ahead++
	}
	return ahead, next
}
