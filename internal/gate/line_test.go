package gate

import (
	"slices"
	"testing"
)

func TestLine(t *testing.T) {
	var l line
	tickets := map[string]*Ticket{}
	number := int64(0)
	join := func(name string, rank, ahead int) {
		t.Helper()
		number++
		tk := &Ticket{rank: rank, number: number}
		tickets[name] = tk
		if got, _ := l.ahead(tk); got != ahead {
			t.Errorf("%d ahead of %s, want %d", got, name, ahead)
		}
		l.join(tk)
	}
	check := func(want ...string) {
		t.Helper()
		var got []string
		for tk := range l.all() {
			for name, other := range tickets {
				if other == tk {
					got = append(got, name)
				}
			}
		}
		if !slices.Equal(got, want) || l.len() != len(want) {
			t.Errorf("line %v, length %d; want %v", got, l.len(), want)
		}
	}
	join("a", rankOf(3, false), 0)
	join("b", rankOf(3, false), 1)
	join("R", rankOf(3, true), 0)
	join("c", rankOf(3, false), 3)
	join("S", rankOf(3, true), 1)
	join("0", holder, 0)
	join("urgent", rankOf(0, false), 1)
	join("again", rankOf(0, true), 1)
	join("background", rankOf(7, true), 8)
	check("0", "again", "urgent", "R", "S", "a", "b", "c", "background")

	for _, name := range []string{"0", "R", "S", "a", "b", "urgent", "again", "background"} {
		l.leave(tickets[name])
		l.leave(tickets[name]) // nothing
	}
	check("c")
	if l.has(tickets["a"]) || !l.has(tickets["c"]) {
		t.Error("has is wrong")
	}
	// Whoever comes back gets its old place, in whichever order they do.
	if n, _ := l.ahead(tickets["b"]); n != 0 {
		t.Errorf("%d ahead of b, want 0", n)
	}
	for _, name := range []string{"b", "S", "a", "R"} {
		l.join(tickets[name])
	}
	check("R", "S", "a", "b", "c")

	for tk := range l.all() {
		if tk != tickets["b"] {
			l.leave(tk)
		}
	}
	check("b")
}

// TestLineAside counts those who stand aside: of who comes back only those that are
// ahead of its old place.
func TestLineAside(t *testing.T) {
	var l line
	tickets := []*Ticket{
		{rank: rankOf(3, true), number: 1, badProbe: true},
		{rank: rankOf(3, false), number: 2, suspect: true},
		{rank: rankOf(3, false), number: 3},
		{rank: rankOf(3, false), number: 4, suspect: true},
		{rank: rankOf(4, false), number: 5, suspect: true},
	}
	for _, tk := range tickets {
		l.join(tk)
	}
	for i, want := range []int{0, 1, 2, 2, 3} {
		l.leave(tickets[i])
		if n, aside := l.ahead(tickets[i]); n != i || aside != want {
			t.Errorf("%d ahead of number %d, %d of them stand aside, want %d and %d", n, i+1, aside, i, want)
		}
		l.join(tickets[i])
	}
}
