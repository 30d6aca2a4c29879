package redisthrottle_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/redisthrottle"
)

// TestWaitAfterClose has a Wait whose context has ended come after Close: it finds
// the turn free or its context ended, by chance.
func TestWaitAfterClose(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	client := connect(t, server.Addr)
	var j journal
	config := fast
	config.Logger = slog.New(slog.NewTextHandler(&j, nil))
	l := redisthrottle.New(connect(t, server.Addr), config)
	wait(t, l, 10*time.Second)
	l.Arrived()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second) // the connections are closed
	called, lines := calls(t, client), len(j.lines())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		l.Wait(ctx)
		time.Sleep(10 * ms)
	}
	if n := calls(t, client) - called; n > 0 {
		t.Errorf("%d calls after Close", n)
	}
	if text := j.lines()[lines:]; len(text) > 0 {
		t.Errorf("log: %q", text)
	}
}

// TestCloseAfterFallback closes when a request of the process's own share has just
// arrived: there is no token to give back.
func TestCloseAfterFallback(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	l := redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Limit: 3, Window: 2 * time.Second, Transit: 10 * ms, Fallback: 2, Logger: quiet})
	wait(t, l, 10*time.Second)
	l.Arrived()
	idle(t, l)
	server.Kill()
	wait(t, l, 30*time.Second)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	var refusal *clarifaihttp.WaitError // Redis is back, and nothing is sent for a while
	for begin := time.Now(); !errors.As(l.Wait(expired(t, 10*ms)), &refusal); {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("Redis is not back")
		}
	}
	l.Arrived()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// wrapped is a client of another type, which the Limiter uses itself.
type wrapped struct{ redis.UniversalClient }

// TestWrappedClient has Redis go away for a while, with a BLMOVE under way, and
// the same client before and after.
func TestWrappedClient(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	admin := connect(t, server.Addr)
	var j journal
	l := redisthrottle.New(wrapped{connect(t, server.Addr)}, redisthrottle.Config{Limit: 1, Logger: slog.New(slog.NewTextHandler(&j, nil))})
	wait(t, l, 10*time.Second)
	l.Arrived() // its token goes back 1 s later: the call fails
	time.Sleep(500 * ms)
	go func() {
		time.Sleep(300 * ms) // the next is in line
		admin.ConfigSet(t.Context(), "maxmemory", "1")
		j.await(t, 0, "WARN")
		admin.ConfigSet(t.Context(), "maxmemory", "0")
	}()
	wait(t, l, 10*time.Second)
	l.Arrived()
	for begin := time.Now(); l.Asked() != 0; time.Sleep(10 * ms) {
		if time.Since(begin) > 5*time.Second {
			t.Fatalf("%d BLMOVEs under way", l.Asked())
		}
	}
	if err := l.Close(); err != nil {
		n.slow(t, "%v", err)
	}
}

// TestForeignPause has a process that waits because others use another window be
// told to pause: it does, as soon as its own window is in force.
func TestForeignPause(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	client := connect(t, server.Addr)
	others := redisthrottle.New(connect(t, server.Addr), fast)
	wait(t, others, 10*time.Second)
	config := fast
	config.Window = 20 * ms
	l := redisthrottle.New(connect(t, server.Addr), config)
	refused(t, l, 300*ms)
	called := calls(t, client)
	l.Throttled(time.Minute)
	time.Sleep(300 * ms)
	if n := calls(t, client) - called; n > 2 {
		t.Errorf("%d calls within 300 ms", n)
	}
	others.Arrived()
	others.Close()
	var refusal *clarifaihttp.WaitError
	if err := l.Wait(expired(t, 10*time.Second)); !errors.As(err, &refusal) || refusal.Wait < 40*time.Second {
		t.Errorf("%v, want a refusal for a minute", err)
	}
}
