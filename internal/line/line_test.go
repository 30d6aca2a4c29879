package line

import (
	"slices"
	"testing"
)

func TestLine(t *testing.T) {
	var l Line[string]
	places := map[string]*Place[string]{}
	take := func(name string, rank, ahead int) {
		t.Helper()
		p := l.Arrive(name, rank)
		places[name] = &p
		if got := l.Ahead(&p); got != ahead {
			t.Errorf("%d ahead of %s, want %d", got, name, ahead)
		}
		l.Take(&p)
	}
	check := func(want ...string) {
		t.Helper()
		if got := slices.Collect(l.All()); !slices.Equal(got, want) || l.Len() != len(want) || l.Front() != want[0] {
			t.Errorf("line %v, front %s, length %d; want %v", got, l.Front(), l.Len(), want)
		}
	}
	take("a", 2, 0)
	take("b", 2, 1)
	take("R", 1, 0)
	take("c", 2, 3)
	take("S", 1, 1)
	take("0", 0, 0)
	check("0", "R", "S", "a", "b", "c")

	for _, name := range []string{"0", "R", "S", "a", "b"} {
		l.Leave(places[name])
	}
	check("c")
	if places["a"].Taken() || !places["c"].Taken() {
		t.Error("Taken is wrong")
	}
	// Whoever comes back gets its old place, in whichever order they do.
	if n := l.Ahead(places["b"]); n != 0 {
		t.Errorf("%d ahead of b, want 0", n)
	}
	for _, name := range []string{"b", "S", "a", "R"} {
		l.Take(places[name])
	}
	check("R", "S", "a", "b", "c")

	for name := range l.All() {
		if name != "b" {
			l.Leave(places[name])
		}
	}
	check("b")
}
