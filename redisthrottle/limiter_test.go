package redisthrottle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/redisthrottle"
)

// fast has short silences: D is 3.03 s.
var fast = redisthrottle.Config{Limit: 3, Window: 10 * ms, Transit: 10 * ms, Logger: slog.New(slog.DiscardHandler)}

// wait fails the test unless l permits within the time given.
func wait(t *testing.T, l *redisthrottle.Limiter, within time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := l.Wait(ctx); err != nil {
		t.Fatalf("Wait: %v", err)
	}
}

// refused fails the test unless l refuses, at the context's end.
func refused(t *testing.T, l *redisthrottle.Limiter, after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	begin := time.Now()
	err := l.Wait(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Wait: %v", err)
	}
	if d := time.Since(begin); d > after+2*time.Second {
		t.Errorf("Wait returned after %v, want %v", d, after)
	}
}

// idle waits until l has no token that came for nobody, and none on its way: a
// request that comes next needs one of Redis.
func idle(t *testing.T, l *redisthrottle.Limiter) {
	t.Helper()
	for begin := time.Now(); !l.Idle(); time.Sleep(ms) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("not idle")
		}
	}
}

// A journal is a log with the times of its lines.
type journal struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	times []time.Time
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.times = append(j.times, time.Now())
	return j.buf.Write(p)
}

func (j *journal) lines() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(strings.Lines(j.buf.String()))
}

// await waits for a line that has the text, and is not one of the first n.
func (j *journal) await(t *testing.T, n int, text string) (at time.Time) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(ms) {
		lines := j.lines()
		if i := slices.IndexFunc(lines[n:], func(s string) bool { return strings.Contains(s, text) }); i >= 0 {
			j.mu.Lock()
			defer j.mu.Unlock()
			return j.times[n+i]
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("no line with %q: %q", text, lines)
		}
	}
}

// TestAway looks at one process when Redis dies in each of the ways.
func TestAway(t *testing.T) {
	for _, tt := range []struct {
		name       string
		kill, wake func(*scene)
	}{
		{"frozen", func(s *scene) { s.server.Signal(syscall.SIGSTOP) }, func(s *scene) { s.server.Signal(syscall.SIGCONT) }},
		{"stuck", func(s *scene) { s.network.stick(true) }, func(s *scene) { s.network.stick(false) }},
		{"killed", func(s *scene) { s.server.Kill() }, func(s *scene) {
			if err := s.server.Restart(); err != nil {
				s.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, n := &scene{T: t, server: startRedis(t)}, listen(t)
			s.network = newProxy(t, s.server.Addr)
			client := connect(t, s.network.Addr)
			var j journal
			config := fast
			config.Logger = slog.New(slog.NewTextHandler(&j, nil))
			l := redisthrottle.New(client, config)
			for range 3 {
				wait(t, l, 10*time.Second)
			}
			refused(t, l, 1500*ms) // no token is free
			before := len(j.lines())
			done := make(chan struct{})
			go func() {
				refused(t, l, 3*time.Second)
				close(done)
			}()
			time.Sleep(300 * ms)
			begin := time.Now()
			tt.kill(s)
			<-done
			d := j.await(t, before, "WARN").Sub(begin)
			if t.Logf("noticed after %v", d); d > 1200*ms {
				n.slow(t, "noticed after %v", d)
			}
			if lines := j.lines(); len(lines) != before+1 {
				n.slow(t, "log: %q", lines)
			}
			was := s.network.tries.Load()
			for range 500 {
				refused(t, l, ms)
			}
			if n := s.network.tries.Load() - was; n > 100 {
				t.Errorf("%d calls for 500 requests while Redis was away", n)
			}
			before = len(j.lines())
			tt.wake(s)
			for range 3 {
				l.Arrived()
			}
			begin = time.Now()
			wait(t, l, 20*time.Second)
			t.Logf("back after %v", time.Since(begin))
			j.await(t, before, "INFO")
		})
	}
}

// TestCanceledWaits gives up Waits at any moment: no token is lost or doubled.
func TestCanceledWaits(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	config := redisthrottle.Config{Window: 10 * ms, Transit: ms}
	var wg sync.WaitGroup
	var limiters []*redisthrottle.Limiter
	for range 4 {
		l := redisthrottle.New(connect(t, server.Addr), config)
		limiters = append(limiters, l)
		wg.Go(func() {
			wait(t, l, 10*time.Second)
			l.Arrived()
			for i := range 1000 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%50)*20*time.Microsecond)
				if l.Wait(ctx) == nil {
					l.Arrived()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	client := connect(t, server.Addr)
	conserved(t, client)
	for _, l := range limiters {
		if err := l.Close(); err != nil {
			n.slow(t, "%v", err)
		}
		if err := l.Wait(t.Context()); err != redisthrottle.ErrClosed {
			t.Errorf("Wait after Close: %v", err)
		}
	}
	if k, err := client.LLen(t.Context(), free).Result(); k != 15 {
		n.slow(t, "%d tokens are free after Close (%v)", k, err)
	}
	for _, key := range client.Keys(t.Context(), "*").Val() {
		if ttl := client.TTL(t.Context(), key).Val(); ttl <= 0 || !strings.HasPrefix(key, "clarifaihttp:{default}:") {
			t.Errorf("%s expires in %v", key, ttl)
		}
	}
}

// TestThrottled has one process report a throttle: all pause, one request goes
// first, and then the others, at the pace.
func TestThrottled(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	config := redisthrottle.Config{Window: 100 * ms, Transit: 10 * ms}
	a, b := redisthrottle.New(connect(t, server.Addr), config), redisthrottle.New(connect(t, server.Addr), config)
	wait(t, a, 10*time.Second)
	wait(t, b, 10*time.Second)
	a.Arrived()
	b.Arrived()

	n := listen(t)
	idle(t, a)
	idle(t, b)
	client := connect(t, server.Addr)
	begin := time.Now()
	a.Throttled(2 * time.Second)
	for client.HGet(t.Context(), pool, "phase").Val() != "paused" {
		time.Sleep(ms)
	}
	err := b.Wait(expired(t, 500*ms))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	var starts []time.Duration
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, l := range []*redisthrottle.Limiter{a, b} {
		wg.Go(func() {
			for range 10 {
				if err := l.Wait(t.Context()); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				starts = append(starts, time.Since(begin))
				first := len(starts) == 1
				mu.Unlock()
				if first {
					time.Sleep(100 * ms) // the probe's answer
				}
				l.Arrived()
			}
		})
	}
	wg.Wait()
	slices.Sort(starts)
	t.Log(starts)
	if d := starts[0]; d < 2*time.Second {
		t.Errorf("the probe went after %v", d)
	} else if d > 2200*ms {
		n.slow(t, "the probe went after %v", d)
	}
	if d := starts[1] - starts[0]; d < 200*ms {
		t.Errorf("the second went %v after the probe", d)
	} else if d > 500*ms {
		n.slow(t, "the second went %v after the probe", d)
	}
	// 15 per 100 ms: the ceiling is 140/s, after the throttle 112/s. Without a pace
	// these 14 would go together. Who sees some of them late sees the others closer.
	if d := starts[14] - starts[1]; d < 60*ms {
		n.slow(t, "13 went within %v, faster than the pace", d)
	}
	if err := (*clarifaihttp.WaitError)(nil); errors.As(b.Wait(expired(t, ms)), &err) {
		t.Errorf("refused without a pause: %v", err)
	}
	b.Throttled(time.Minute)
	if err := (*clarifaihttp.WaitError)(nil); !errors.As(b.Wait(expired(t, time.Second)), &err) || err.Wait < 50*time.Second {
		t.Errorf("not refused during a pause: %v", err)
	}
}

func expired(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestProbeThrottled has the probe throttled: the pause is twice as long.
func TestProbeThrottled(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	config := redisthrottle.Config{Window: 100 * ms, Transit: 10 * ms}
	l := redisthrottle.New(connect(t, server.Addr), config)
	wait(t, l, 10*time.Second)
	l.Arrived()
	l.Throttled(500 * ms)
	wait(t, l, 20*time.Second)
	l.Arrived()
	begin := time.Now()
	l.Throttled(500 * ms)
	wait(t, l, 20*time.Second)
	if d := time.Since(begin); d < 900*ms { // twice what was left of the first when Redis heard of it
		t.Errorf("the second pause took %v", d)
	}
}

// TestOtherSettings has a process with another window wait until the others are
// gone.
func TestOtherSettings(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	a := redisthrottle.New(connect(t, server.Addr), fast)
	wait(t, a, 10*time.Second)
	a.Arrived()
	var j journal
	config := fast
	config.Window = 20 * ms
	config.Logger = slog.New(slog.NewTextHandler(&j, nil))
	b := redisthrottle.New(connect(t, server.Addr), config)
	for range 3 {
		refused(t, b, time.Second)
		wait(t, a, 10*time.Second)
		a.Arrived()
	}
	if text := strings.Join(j.lines(), ""); strings.Count(text, "other settings") != 1 {
		t.Errorf("log: %s", text)
	}
	a.Close()
	begin := time.Now()
	wait(t, b, 30*time.Second)
	t.Logf("the other after %v", time.Since(begin))
	if d := time.Since(begin); d > 4*time.Second {
		n.slow(t, "%v without a request", d)
	}
}

// TestFallback has a process go on with a share of its own.
func TestFallback(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	var j journal
	config := fast
	config.Fallback = 1
	config.Logger = slog.New(slog.NewTextHandler(&j, nil))
	l := redisthrottle.New(connect(t, server.Addr), config)
	wait(t, l, 10*time.Second)
	l.Arrived()
	idle(t, l) // a token that has come may be used, whatever Redis does
	server.Kill()
	begin := time.Now()
	wait(t, l, 30*time.Second)
	if d := time.Since(begin); d < 3*time.Second {
		t.Errorf("the share began after %v", d)
	}
	refused(t, l, 200*ms)
	time.AfterFunc(100*ms, l.Arrived)
	wait(t, l, 10*time.Second)
	l.Arrived()
	restarted := time.Now()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); !strings.Contains(strings.Join(j.lines(), ""), "is back"); time.Sleep(10 * ms) {
		if time.Now().After(end) {
			t.Fatal("not back")
		}
		if ctx := expired(t, 10*ms); l.Wait(ctx) == nil {
			l.Arrived()
		}
	}
	wait(t, l, 20*time.Second)
	if d := time.Since(restarted); d < 3*time.Second {
		t.Errorf("tokens were used after %v", d)
	}
	if text := strings.Join(j.lines(), ""); strings.Count(text, "share of their own") != 1 || strings.Count(text, "is back") != 1 {
		n.slow(t, "log: %s", text)
	}
}

func TestInvalidConfig(t *testing.T) {
	client := connect(t, "127.0.0.1:1")
	for want, f := range map[string]func(){
		"nil client":      func() { redisthrottle.New(nil, redisthrottle.Config{}) },
		"Config.Limit":    func() { redisthrottle.New(client, redisthrottle.Config{Limit: -1}) },
		"Config.Window":   func() { redisthrottle.New(client, redisthrottle.Config{Window: 1}) },
		"Config.Transit":  func() { redisthrottle.New(client, redisthrottle.Config{Transit: -1}) },
		"Config.Fallback": func() { redisthrottle.New(client, redisthrottle.Config{Limit: 15, Fallback: 16}) },
		"Config.Account":  func() { redisthrottle.New(client, redisthrottle.Config{Account: "{a}"}) },
		"Config.Prefix":   func() { redisthrottle.New(client, redisthrottle.Config{Prefix: "}"}) },
	} {
		func() {
			defer func() {
				if s := fmt.Sprint(recover()); !strings.HasPrefix(s, "redisthrottle: ") || !strings.Contains(s, want) {
					t.Errorf("got %q, want one that names %s", s, want)
				}
			}()
			f()
		}()
	}
}
