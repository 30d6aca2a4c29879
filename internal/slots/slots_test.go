package slots

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestSet compares a Set with a plain list, over random steps.
func TestSet(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	var set Set
	var plain []*Slot
	for range 20_000 {
		switch slot := rng.IntN(4); {
		case slot == 0 || len(plain) == 0:
			s := new(Slot)
			set.Add(s)
			plain = append(plain, s)
			if !s.Held() || s.Free() != Never {
				t.Fatal("a new slot is not held for ever")
			}
		case slot == 1:
			set.Free(plain[rng.IntN(len(plain))], now.Add(time.Duration(rng.IntN(1000))))
		case slot == 2:
			i := rng.IntN(len(plain))
			set.Remove(plain[i])
			if plain[i].Held() {
				t.Fatal("held after Remove")
			}
			plain = slices.Delete(plain, i, i+1)
		case slot == 3:
			now = now.Add(time.Duration(rng.IntN(100)))
			set.Expire(now)
			plain = slices.DeleteFunc(plain, func(s *Slot) bool { return !s.free.After(now) })
		}
		if set.Len() != len(plain) {
			t.Fatalf("%d slots in use, want %d", set.Len(), len(plain))
		}
		for _, s := range plain {
			if !s.Held() || s.Free().Before(set.Soonest()) {
				t.Fatal("not the soonest, or lost")
			}
		}
	}
}
