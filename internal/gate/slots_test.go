package gate

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestSlots compares slots with a plain list, over random steps.
func TestSlots(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	var set slots
	var plain []*Ticket
	for range 20_000 {
		switch step := rng.IntN(4); {
		case step == 0 || len(plain) == 0:
			tk := new(Ticket)
			set.add(tk)
			plain = append(plain, tk)
			if !tk.held() || tk.slot.free != never {
				t.Fatal("a new slot is not held for ever")
			}
		case step == 1:
			set.set(plain[rng.IntN(len(plain))], now.Add(time.Duration(rng.IntN(1000))))
		case step == 2:
			i := rng.IntN(len(plain))
			set.remove(plain[i])
			if plain[i].held() {
				t.Fatal("held after remove")
			}
			plain = slices.Delete(plain, i, i+1)
		case step == 3:
			now = now.Add(time.Duration(rng.IntN(100)))
			for len(set) > 0 && !set.soonest().After(now) {
				set.remove(set[0])
			}
			plain = slices.DeleteFunc(plain, func(tk *Ticket) bool { return !tk.slot.free.After(now) })
		}
		if len(set) != len(plain) {
			t.Fatalf("%d slots in use, want %d", len(set), len(plain))
		}
		for _, tk := range plain {
			if !tk.held() || tk.slot.free.Before(set.soonest()) {
				t.Fatal("not the soonest, or lost")
			}
		}
	}
	if set = nil; set.soonest() != never {
		t.Error("an empty set has a soonest")
	}
}
