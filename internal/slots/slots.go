// Package slots keeps account of the slots in use.
package slots

import (
	"container/heap"
	"time"
)

// Never is the instant at which a slot is free that nothing bounds yet.
var Never = time.Unix(1<<40, 0)

// A Slot is one slot in use. The zero value is in no Set.
type Slot struct {
	free time.Time
	at   int // index in Set.heap, plus 1
}

// Held reports whether s is in a Set.
func (s *Slot) Held() bool { return s.at != 0 }

// Free returns when s is free.
func (s *Slot) Free() time.Time { return s.free }

// A Set is the slots in use, in a heap: all methods but Expire cost O(log n)
// at most. It is not safe for concurrent use.
type Set struct{ heap slots }

// Len returns how many slots are in use.
func (s *Set) Len() int { return len(s.heap) }

// Soonest returns when the first slot of a Set that is not empty is free.
func (s *Set) Soonest() time.Time { return s.heap[0].free }

// Add puts slot in use until Free is called for it, and so long after that.
func (s *Set) Add(slot *Slot) {
	slot.free = Never
	heap.Push(&s.heap, slot)
}

// Free sets when slot, which is in use, is free.
func (s *Set) Free(slot *Slot, at time.Time) {
	slot.free = at
	heap.Fix(&s.heap, slot.at-1)
}

// Remove frees slot, which is in use, at once.
func (s *Set) Remove(slot *Slot) { heap.Remove(&s.heap, slot.at-1) }

// Expire drops the slots that are free now.
func (s *Set) Expire(now time.Time) {
	for len(s.heap) > 0 && !s.heap[0].free.After(now) {
		heap.Pop(&s.heap)
	}
}

type slots []*Slot

func (h slots) Len() int           { return len(h) }
func (h slots) Less(i, j int) bool { return h[i].free.Before(h[j].free) }

func (h slots) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i+1, j+1
}

func (h *slots) Push(x any) {
	slot := x.(*Slot)
	*h = append(*h, slot)
	slot.at = len(*h)
}

func (h *slots) Pop() any {
	last := len(*h) - 1
	slot := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	slot.at = 0
	return slot
}
