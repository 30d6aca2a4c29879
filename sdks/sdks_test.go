package sdks

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/clarifaihttp/throttletest"
)

var (
	quiet   = slog.New(slog.DiscardHandler)
	scratch string // a folder for the time of the tests
)

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests wait most of the time.
	flag.Set("test.parallel", "1000")
	os.Exit(func() int {
		var err error
		if scratch, err = os.MkdirTemp("", "sdks"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(scratch)
		defer stopNode()
		return m.Run()
	}())
}

// loaded is the transit time where answers prove arrivals fast enough. The
// default, 250 ms, may not hold while this machine is busy with the tests.
const loaded = 5 * time.Second

// each has each client call a fake of its own, at the same time.
func each(t *testing.T, newFake func() *fake, run func(*testing.T, *fake, caller)) {
	for _, c := range connections {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake().start(t)
			run(t, f, c.ours(t, f))
		})
	}
}

// work has 64 workers call for d. No call may fail.
func work(t *testing.T, d time.Duration, call func(context.Context) error) {
	t.Helper()
	if err := call(t.Context()); err != nil { // which connects
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	time.AfterFunc(d, cancel)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := call(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// within checks that the account was never over its limit.
func within(t *testing.T, f *fake) throttletest.Stats {
	t.Helper()
	s := f.account.Stats()
	if s.Peak > 15 || s.Throttled > 0 {
		t.Errorf("%+v", s)
	}
	return s
}

// busy is how late timers are on a machine on which figures of speed say
// nothing.
const busy = 100 * time.Millisecond

// lateness watches how late timers are.
func lateness(t *testing.T) func() time.Duration {
	var late atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		const tick = 10 * time.Millisecond
		for ctx.Err() == nil {
			begin := time.Now()
			time.Sleep(tick)
			late.Store(max(late.Load(), int64(time.Since(begin)-tick)))
		}
	}()
	return func() time.Duration { return time.Duration(late.Load()) }
}

// fast checks the rate at which calls were served.
func fast(t *testing.T, s throttletest.Stats, d time.Duration, want float64, late func() time.Duration) {
	t.Helper()
	rate := float64(s.Served) / d.Seconds()
	t.Logf("%.1f calls/s, at most %d in a second", rate, s.Peak)
	switch {
	case rate >= want:
	case late() > busy:
		t.Logf("this machine is too busy: its timers are %v late", late())
	default:
		t.Errorf("%.1f calls/s, want %.0f", rate, want)
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	const d = 20 * time.Second
	each(t, func() *fake { return &fake{transit: loaded} }, func(t *testing.T, f *fake, c caller) {
		late := lateness(t)
		work(t, d, c.list)
		fast(t, within(t, f), d, 13, late)
	})
}

// TestHalt has somebody else halt the account for 15 s.
func TestHalt(t *testing.T) {
	t.Parallel() // with TestLimit
	const halt = 15 * time.Second
	each(t, func() *fake { return &fake{haltAt: 20, halt: halt, transit: loaded} }, func(t *testing.T, f *fake, c caller) {
		work(t, 20*time.Second, c.list)
		s, arrivals := f.account.Stats(), f.arrived()
		if s.Throttled == 0 || s.Throttled > 15 || s.Peak > 15 {
			t.Errorf("%+v", s)
		}
		longest := 0 // the gap before arrivals[longest] is
		gap := func(i int) time.Duration { return arrivals[i].Sub(arrivals[i-1]) }
		for i := 1; i < len(arrivals); i++ {
			if longest == 0 || gap(i) > gap(longest) {
				longest = i
			}
		}
		before, after := longest, len(arrivals)-longest
		t.Logf("%d throttled, nothing sent for %v, then %d calls", s.Throttled, gap(longest).Round(time.Millisecond), after)
		if before != 19+s.Throttled || gap(longest) < halt-time.Second || after < 10 {
			t.Errorf("%d arrivals before the pause, %d after it", before, after)
		}
	})
}

// TestSlowAnswers has answers that take 2 s.
func TestSlowAnswers(t *testing.T) {
	const d = 20 * time.Second
	each(t, func() *fake { return &fake{delay: 2 * time.Second, transit: 250 * time.Millisecond} }, func(t *testing.T, f *fake, c caller) {
		late := lateness(t)
		work(t, d, func(ctx context.Context) error { return c.post(ctx, 100) })
		if late := late(); late > busy {
			t.Skipf("this machine is too busy: its timers are %v late, and a Transit of 250 ms does not hold", late)
		}
		fast(t, within(t, f), d, 11, late)
	})
}

// TestLarge sends and receives 3 MiB.
func TestLarge(t *testing.T) {
	each(t, func() *fake { return &fake{transit: loaded} }, func(t *testing.T, f *fake, c caller) {
		large(t, c)
		within(t, f)
	})
}

// TestLargeThrottled has messages of 3 MiB throttled, which the server does
// before it has read them.
func TestLargeThrottled(t *testing.T) {
	each(t, func() *fake {
		return &fake{account: throttletest.Handler{RetryAfter: "1"}, haltAt: 1, halt: time.Second, transit: loaded}
	}, func(t *testing.T, f *fake, c caller) {
		large(t, c)
		s := f.account.Stats()
		t.Logf("%d throttled", s.Throttled)
		if s.Throttled == 0 || s.Peak > 15 {
			t.Errorf("%+v", s)
		}
	})
}

func large(t *testing.T, c caller) {
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := c.post(t.Context(), 3<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestGoAway has the server leave its connections all the time.
func TestGoAway(t *testing.T) {
	each(t, func() *fake { return &fake{goAway: 7, delay: 50 * time.Millisecond, transit: loaded} }, func(t *testing.T, f *fake, c caller) {
		var left atomic.Int32
		left.Store(100)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					if err := c.list(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		within(t, f)
	})
}

// TestCancel has the server see that a client has left.
func TestCancel(t *testing.T) {
	each(t, func() *fake { return &fake{delay: time.Hour} }, func(t *testing.T, f *fake, c caller) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for f.calls.Load() == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			cancel()
		}()
		if err := c.list(ctx); err == nil {
			t.Error("no error")
		}
		select {
		case <-f.gone:
		case <-time.After(10 * time.Second):
			t.Error("the server does not know")
		}
	})
}

// TestStreams compares when the first message of a server's stream comes, and
// the header of a stream whose client waits for it, with the bare client. It
// runs alone.
func TestStreams(t *testing.T) {
	for _, c := range connections {
		t.Run(c.name, func(t *testing.T) {
			f := (&fake{}).start(t)
			f.account.Limit = 1000
			bare, ours := c.bare(t, f), c.ours(t, f)
			late := lateness(t)
			for what, call := range map[string]func(caller) (time.Duration, error){
				"first message": func(c caller) (time.Duration, error) { return c.generate(t.Context()) },
				"header":        func(c caller) (time.Duration, error) { return c.stream(t.Context()) },
			} {
				b, o := fastest(t, bare, call), fastest(t, ours, call)
				t.Logf("%s after %v, bare %v", what, o.Round(time.Millisecond), b.Round(time.Millisecond))
				if o > b+50*time.Millisecond && late() <= busy {
					t.Errorf("%s: %v later than bare", what, o-b)
				}
			}
		})
	}
}

func fastest(t *testing.T, c caller, call func(caller) (time.Duration, error)) time.Duration {
	t.Helper()
	var took []time.Duration
	for range 3 {
		d, err := call(c)
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, d)
	}
	return slices.Min(took)
}
