package gate

import (
	"container/heap"
	"time"
)

// never is the end of a slot that nothing bounds yet.
var never = time.Unix(1<<40, 0)

// A slot is a ticket's share of the limit while it is in use.
type slot struct {
	free time.Time // when it is free again
	at   int       // index in slots, plus 1; 0: not in use
}

// held reports whether tk's slot is in use.
func (tk *Ticket) held() bool { return tk.slot.at != 0 }

// slots are the tickets whose slots are in use, in a heap by the time at which
// they are free.
type slots []*Ticket

// soonest returns when the first slot is free, or never.
func (s slots) soonest() time.Time {
	if len(s) == 0 {
		return never
	}
	return s[0].slot.free
}

func (s *slots) add(tk *Ticket) {
	tk.slot.free = never
	heap.Push(s, tk)
}

func (s *slots) set(tk *Ticket, free time.Time) {
	tk.slot.free = free
	heap.Fix(s, tk.slot.at-1)
}

func (s *slots) remove(tk *Ticket) { heap.Remove(s, tk.slot.at-1) }

// Len, Less, Swap, Push and Pop are for package heap.

func (s slots) Len() int { return len(s) }

func (s slots) Less(i, j int) bool { return s[i].slot.free.Before(s[j].slot.free) }

func (s slots) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].slot.at, s[j].slot.at = i+1, j+1
}

func (s *slots) Push(x any) {
	tk := x.(*Ticket)
	*s = append(*s, tk)
	tk.slot.at = len(*s)
}

func (s *slots) Pop() any {
	last := len(*s) - 1
	tk := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	tk.slot.at = 0
	return tk
}
