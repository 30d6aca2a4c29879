package redisthrottle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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

// TestEarlyEnd has somebody end a BLMOVE before its time: the next one does not
// come as late after a step as after one that found free empty for all that time.
func TestEarlyEnd(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	admin := connect(t, server.Addr)
	network := newProxy(t, server.Addr)
	l := redisthrottle.New(connect(t, network.Addr), redisthrottle.Config{Limit: 1, Logger: quiet})
	other := redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Limit: 1, Logger: quiet})
	wait(t, other, 10*time.Second)
	begin := time.Now()
	other.Arrived() // its token is free about 1 s later, by the last step before
	time.Sleep(700 * ms)
	refused(t, l, 50*ms)
	for line := range strings.Lines(admin.Do(t.Context(), "client", "list").Val().(string)) {
		var id int
		if _, err := fmt.Sscanf(line, "id=%d", &id); err == nil && strings.Contains(line, "cmd=blmove") {
			admin.Do(t.Context(), "client", "unblock", id)
		}
	}
	time.Sleep(time.Until(begin.Add(2120 * ms)))
	wait(t, l, 10*time.Second)
	network.stick(true) // it dies, and writes its request 3 s later at most
	let := time.Now()
	wait(t, other, 20*time.Second)
	if d := time.Since(let); d < gone-20*ms {
		n.slow(t, "the token is back %v after it was asked for, want %v", d, gone)
	}
}

// TestArrivedShare has a request of the process's own share arrive while another
// one has a token: that one keeps it.
func TestArrivedShare(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	l := redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Limit: 3, Fallback: 2, Logger: quiet})
	wait(t, l, 10*time.Second) // it does not arrive
	server.Kill()
	wait(t, l, 30*time.Second)
	l.Arrived()
	time.Sleep(1100 * ms)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for begin := time.Now(); time.Since(begin) < 14*time.Second; {
		if l.Wait(expired(t, time.Second)) == nil {
			n++
		}
	}
	if n < 2 || n > 3 { // one of the share, before Redis is found to be back
		t.Errorf("%d let go besides the first, want 2", n)
	}
}
