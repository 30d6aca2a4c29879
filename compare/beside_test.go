package main

import (
	"testing"
	"time"
)

// TestBeside has an interactive user beside a batch, with each client. It fails
// if the user waits longer than for the next free slot, or if a peer does better
// while the batch goes on.
func TestBeside(t *testing.T) {
	oneProcessor(t)
	const batch = 2000 // the race detector bears some 8000 goroutines
	var ours, without side
	for _, c := range clients {
		if c.ours {
			ours, without = beside(t, c, batch, urgentest), beside(t, c, batch, "")
		}
	}
	// The slots that a burst of 15 took are free within W + 50 ms + its jitter.
	if p99 := ours.quantile(0.99); p99 > 1500*time.Millisecond {
		t.Errorf("the user waits for %v", p99)
	}
	if p50 := without.quantile(0.50); p50 < 100*time.Second {
		t.Errorf("without the header the user waits for %v only", p50)
	}
	if ours.done < batch/2 {
		t.Errorf("the batch: %d of %d served", ours.done, batch)
	}
	for _, c := range peers() {
		s := beside(t, c, batch, urgentest)
		t.Logf("%s: p50 %v, p99 %v, %d of the batch", c.name, s.quantile(0.50), s.quantile(0.99), s.done)
		if s.quantile(0.99) <= ours.quantile(0.99) {
			t.Errorf("%s: the user waits for %v, ours %v", c.name, s.quantile(0.99), ours.quantile(0.99))
		}
	}
	t.Logf("%s: p50 %v, p99 %v, %d of the batch", nameOurs, ours.quantile(0.50), ours.quantile(0.99), ours.done)
}
