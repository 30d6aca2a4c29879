package clarifaihttp_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	searchFor  = flag.Duration("search", 0, "how long TestSearch takes seeds that nobody has seen; 0: some known ones (needs -timeout, too)")
	searchSeed = flag.Uint64("seed", 0, "the seed that TestSearch replays; 0: as -search says")
)

const (
	knownSeeds = 40 // 1 to this one

	lateAt        = 24 * time.Hour // all has ended long before
	maxBackoff    = time.Minute
	longestDial   = 10 * time.Second
	longestStream = 3 * time.Second

	watchdog      = 3 * time.Minute                                                // of real time, for one run
	maxEvents     = 250                                                            // in what is printed of a failure
	maxPrinted    = 3                                                              // failures that are printed in full
	searchCommand = "go test -run 'TestSearch$' -seed=%d -v -count=20 -failfast ." // instants are virtual, but not all order is fixed
)

// TestSearch looks for what nobody has thought of. From a seed it draws a
// server, a network, a base and callers (search_plan_test.go) and runs them
// twice in virtual time: with the base alone and with ours over it. Whatever
// is drawn, what search_holds_test.go says must hold.
func TestSearch(t *testing.T) {
	switch {
	case *searchSeed != 0:
		search(t, *searchSeed, true)
	case *searchFor != 0:
		var failed []uint64
		seed := rand.Uint64N(1 << 40)
		t.Logf("seeds from %d on", seed)
		n := 0
		for begin := time.Now(); time.Since(begin) < *searchFor; n++ {
			if !search(t, seed, len(failed) < maxPrinted) {
				failed = append(failed, seed)
			}
			seed++
		}
		t.Logf("%d seeds, %d of them fail: %v", n, len(failed), failed)
	default:
		printed, n := 0, uint64(knownSeeds)
		if testing.Short() {
			n = knownSeeds / 5
		}
		for seed := range n {
			if !search(t, seed+1, printed < maxPrinted) {
				printed++
			}
		}
	}
}

// search runs the plan of a seed. It reports whether all holds.
func search(t *testing.T, seed uint64, printed bool) bool {
	p := newPlan(seed)
	bare := newBare(p)
	run(t, bare)
	ours := newOurs(p, bare)
	run(t, ours)
	bare.holds()
	ours.holds()
	for _, w := range []*world{bare, ours} {
		if len(w.failures) > 0 {
			t.Errorf("seed %d, %s: %s\nagain: "+searchCommand, seed, w.name(), strings.Join(w.failures, "\n\t"), seed)
		}
		if len(w.failures) > 0 && printed || testing.Verbose() && *searchSeed != 0 {
			t.Log(w.story())
		}
	}
	return len(bare.failures)+len(ours.failures) == 0
}

// run runs w in a bubble of its own.
func run(t *testing.T, w *world) {
	// What blocks on a mutex lets virtual time stand still.
	dog := time.AfterFunc(watchdog, func() {
		fmt.Fprintf(os.Stderr, "seed %d hangs in real time, again: "+searchCommand+"\n%s\n%s\n", w.seed, w.seed, w.story(), stacks("synctest bubble"))
		os.Exit(2)
	})
	defer dog.Stop()
	defer func() {
		w.end()
		if r := recover(); r != nil { // all goroutines that are left are blocked
			w.fail("%v:\n%s", r, stacks("durable, synctest bubble"))
		}
	}()
	synctest.Test(t, func(*testing.T) {
		w.start()
		w.run()
	})
}

// run has all callers do their jobs, and then everything end.
func (w *world) run() {
	w.serve()
	all, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	rts := w.roundTrippers()
	var wg sync.WaitGroup
	for _, j := range w.jobs {
		wg.Go(func() { w.do(all, rts[j.n%len(rts)], j) })
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	if !w.isBare() {
		go w.watch(done)
	}
	if !w.wait(done, lateAt) {
		w.late()
		cancel(errLate)
		if !w.wait(done, time.Minute) {
			w.fail("1: canceling does not end %v", w.underWay())
			w.eachLink((*link).reset)
			w.wait(done, time.Minute)
		}
	}
	if !w.h2 { // net/http does not end a Read that blocks
		for _, j := range w.jobs {
			w.giveUp(j)
		}
		time.Sleep(time.Second)
	}
	w.nothingLeft(rts)
	close(w.over)
	w.eachLink((*link).reset)
	w.base.CloseIdleConnections()
	time.Sleep(time.Minute)
}

// wait reports whether all callers are done within d.
func (w *world) wait(done <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// end tells that virtual time has ended.
func (w *world) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
}

// name is which of the two runs w is.
func (w *world) name() string {
	if w.isBare() {
		return "bare"
	}
	return "ours"
}

// story is what happened.
func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v\n", w.name(), w.plan)
	for i, e := range w.events {
		if len(w.events) > maxEvents && i == maxEvents/2 {
			fmt.Fprintf(&b, "... %d events more ...\n", len(w.events)-maxEvents)
		}
		if i < maxEvents/2 || i >= len(w.events)-maxEvents/2 || strings.HasPrefix(e.what, "FAILS") || testing.Verbose() {
			fmt.Fprintf(&b, "%12.6f  %s\n", e.at.Seconds(), e.what)
		}
	}
	return b.String()
}

// stacks are those of the goroutines whose first line has the words given.
func stacks(words string) string {
	buf := make([]byte, 4<<20)
	var b strings.Builder
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if first, _, _ := strings.Cut(stack, "\n"); strings.Contains(first, words) && b.Len() < 20_000 {
			b.WriteString(stack + "\n\n")
		}
	}
	return b.String()
}
