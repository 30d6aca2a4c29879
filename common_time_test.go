package clarifaihttp_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/simnet"
)

// sleep waits for d or the end of ctx.
var sleep = simnet.Sleep

// A timeline records when things happened, since it was made.
type timeline struct {
	begin time.Time
	mu    sync.Mutex
	at    []time.Duration
}

func newTimeline() *timeline { return &timeline{begin: time.Now()} }

// mark records an event and returns its number, from 0.
func (l *timeline) mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = append(l.at, time.Since(l.begin))
	return len(l.at) - 1
}

// len returns the number of events.
func (l *timeline) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.at)
}

// peak returns the most events in less than a second.
func (l *timeline) peak() (most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Sorted(slices.Values(l.at))
	for i, j := 0, 0; i < len(at); i++ {
		for at[i]-at[j] >= time.Second {
			j++
		}
		most = max(most, i-j+1)
	}
	return most
}

func (l *timeline) check(t *testing.T, what string, want ...time.Duration) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.at)
	if !slices.Equal(l.at, want) {
		t.Errorf("%s at %v, want %v", what, l.at, want)
	}
}

// times returns n times d.
func times(n int, d time.Duration) []time.Duration { return slices.Repeat([]time.Duration{d}, n) }

// watchLateness watches how late goroutines run. The function that it returns
// ends that and returns the worst.
func watchLateness() func() time.Duration {
	var late time.Duration
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			due := time.Now().Add(5 * ms)
			select {
			case <-done:
				return
			case <-time.After(5 * ms):
				late = max(late, time.Since(due))
			}
		}
	}()
	return sync.OnceValue(func() time.Duration { close(done); <-ended; return late })
}

// judge returns what t fails with, unless the machine was too busy for a test of
// what holds within transit: a server in this process that is late by the order
// of that counts late what has arrived in time.
func judge(t *testing.T, late, transit time.Duration) func(format string, args ...any) {
	if late > transit/4 {
		return t.Skipf
	}
	return t.Errorf
}

// eventually fails t if wrong goes on to tell what is wrong.
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		s := wrong()
		if s == "" {
			return
		}
		if time.Now().After(end) {
			t.Error(s)
			return
		}
		time.Sleep(5 * ms)
	}
}

// idle checks that in the end nobody waits and no slot is in use.
func idle(t *testing.T, th *clarifaihttp.Throttle) {
	t.Helper()
	time.Sleep(3 * time.Minute) // longer than anything holds a slot
	synctest.Wait()
	if s := th.Stats(); s.Held != 0 || s.Waiting != 0 {
		t.Errorf("in the end: %+v", s)
	}
}

// labeled runs f, and then waits for all goroutines to end that it has started.
func labeled(t *testing.T, f func()) {
	pprof.Do(t.Context(), pprof.Labels("test", t.Name()), func(context.Context) {
		f()
		eventually(t, func() string {
			if n, all := goroutines(t.Name()); n > 1 {
				return fmt.Sprintf("%d goroutines left:\n%s", n-1, all)
			}
			return ""
		})
	})
}

// goroutines returns how many run that a function labeled so has started, itself
// included.
func goroutines(label string) (n int, all string) {
	var b bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&b, 1)
	for block := range strings.SplitSeq(b.String(), "\n\n") {
		if strings.Contains(block, fmt.Sprintf("{%q:%q}", "test", label)) {
			var k int
			fmt.Sscanf(block, "%d", &k)
			n += k
			all += block + "\n\n"
		}
	}
	return n, all
}
