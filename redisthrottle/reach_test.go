package redisthrottle_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/redisthrottle"
)

// A load is requests that are sent as fast as limiters permit.
type load struct {
	answer time.Duration // after the arrival
	mu     sync.Mutex
	times  []time.Time
}

// run has l's requests sent until the test ends, or the function that it returns
// is called.
func (ld *load) run(t testing.TB, l *redisthrottle.Limiter) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if l.Wait(ctx) != nil {
				time.Sleep(10 * ms)
				continue
			}
			ld.mu.Lock()
			ld.times = append(ld.times, time.Now())
			ld.mu.Unlock()
			time.AfterFunc(ld.answer, l.Arrived)
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// all returns the instants since begin, in order.
func (ld *load) all(begin time.Time) []time.Time {
	ld.mu.Lock()
	defer ld.mu.Unlock()
	times := slices.Clone(ld.times)
	slices.SortFunc(times, time.Time.Compare)
	i, _ := slices.BinarySearchFunc(times, begin, time.Time.Compare)
	return times[i:]
}

// await waits until n requests have been sent since begin.
func (ld *load) await(t testing.TB, begin time.Time, n int, within time.Duration) {
	t.Helper()
	for len(ld.all(begin)) < n {
		if time.Since(begin) > within {
			t.Fatalf("no %d requests within %v", n, within)
		}
		time.Sleep(5 * ms)
	}
}

// rate measures the requests per second over d, in whole rounds of limit.
func (ld *load) rate(d time.Duration, limit int) float64 {
	begin := time.Now()
	time.Sleep(d)
	times := ld.all(begin)
	rounds := (len(times) - 1) / limit
	if rounds < 1 {
		return float64(len(times)) / d.Seconds()
	}
	return float64(rounds*limit) / times[rounds*limit].Sub(times[0]).Seconds()
}

// check fails the test if more than limit were sent within a second.
func (ld *load) check(t testing.TB, begin time.Time, limit int) {
	t.Helper()
	times, most := ld.all(begin), 0
	for i, j := 0, 0; i < len(times); i++ {
		for times[i].Sub(times[j]) >= time.Second {
			j++
		}
		most = max(most, i-j+1)
	}
	if most > limit {
		t.Errorf("%d requests in one second", most)
	}
}

// pass shifts the pool's clock as if Redis had run for so long, unused.
func pass(t *testing.T, client *redis.Client, d time.Duration) {
	t.Helper()
	if err := client.HIncrByFloat(t.Context(), "clarifaihttp:{default}:pool", "now", -float64(d.Milliseconds())).Err(); err != nil {
		t.Fatal(err)
	}
}

var quiet = slog.New(slog.DiscardHandler)

// TestFirstUse has clients that are less patient than the silence of an empty
// Redis is long.
func TestFirstUse(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	for _, timeout := range []time.Duration{4 * time.Second, 1500 * ms} {
		t.Run(fmt.Sprint(timeout), func(t *testing.T) {
			t.Parallel()
			n := listen(t)
			l := redisthrottle.New(connect(t, startRedis(t).Addr), redisthrottle.Config{Logger: quiet})
			client := &http.Client{Timeout: timeout, Transport: clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Limiter: l}))}
			begin := time.Now()
			for i := range 2 {
				time.Sleep(time.Until(begin.Add(time.Duration(i) * 8 * time.Second)))
				resp, err := client.Get(server.URL)
				if err == nil {
					resp.Body.Close()
				}
				t.Logf("request %d: %v", i, err)
				if i == 1 && err != nil {
					n.slow(t, "%v", err)
				}
			}
		})
	}
}

// TestDeath has a process die with all tokens, and another that sends one
// request each 6 s, with a deadline of 3 s.
func TestDeath(t *testing.T) {
	for _, tt := range []struct {
		name  string
		seen  bool          // the other called while the tokens were taken
		lived time.Duration // from then to the death
		next  time.Duration // from the death to the other's next request
	}{
		{"after steps, just before a request", true, 3 * time.Second, 100 * ms},
		{"after steps, 2 s before a request", true, 3 * time.Second, 2100 * ms},
		{"after steps, just after a request", true, 3 * time.Second, 5900 * ms},
		{"after a step, 2 s before a request", true, 0, 2100 * ms},
		{"after a step, 2.5 s before a request", true, 0, 2500 * ms},
		{"after a step, just after a request", true, 0, 5900 * ms},
		{"unseen, just before a request", false, 0, 100 * ms},
		{"unseen, 1.7 s before a request", false, 0, 1700 * ms},
		{"unseen, 2 s before a request", false, 0, 2100 * ms},
		{"unseen, 2.5 s before a request", false, 0, 2500 * ms},
		{"unseen, just after a request", false, 0, 5900 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server, n := startRedis(t), listen(t)
			network := newProxy(t, server.Addr)
			dying := redisthrottle.New(connect(t, network.Addr), redisthrottle.Config{Logger: quiet})
			other := redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Logger: quiet})
			for range 15 {
				wait(t, dying, 10*time.Second)
			}
			if tt.seen {
				refused(t, other, 500*ms)
			}
			time.Sleep(tt.lived)
			network.stick(true)
			death := time.Now()
			for next := death.Add(tt.next); ; next = next.Add(6 * time.Second) {
				time.Sleep(time.Until(next))
				if other.Wait(expired(t, 3*time.Second)) == nil {
					break
				}
				if time.Since(death) > 30*time.Second {
					t.Fatal("no request succeeds")
				}
			}
			d := time.Since(death)
			t.Logf("the first request %v after the death", d)
			if d > 8*time.Second {
				n.slow(t, "want 8 s")
			}
		})
	}
}

// TestShortLives has a program that runs once a minute and never calls Close.
func TestShortLives(t *testing.T) {
	for _, deadline := range []time.Duration{4 * time.Second, time.Second} {
		t.Run(fmt.Sprint(deadline), func(t *testing.T) {
			t.Parallel()
			server, n := startRedis(t), listen(t)
			client := connect(t, server.Addr)
			wait(t, redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Logger: quiet}), 10*time.Second)
			var most time.Duration
			for i := range 30 {
				network := newProxy(t, server.Addr)
				l := redisthrottle.New(connect(t, network.Addr), redisthrottle.Config{Logger: quiet})
				begin := time.Now()
				if err := l.Wait(expired(t, deadline)); err != nil {
					n.slow(t, "run %d: %v", i, err)
				}
				most = max(most, time.Since(begin))
				network.stick(true)
				pass(t, client, time.Minute)
			}
			t.Logf("the longest wait was %v", most)
		})
	}
}

// TestIdleNight has an account unused for a night, and for a month.
func TestIdleNight(t *testing.T) {
	t.Parallel()
	const distance = 20 * ms
	server := startRedis(t)
	client := connect(t, server.Addr)
	l := redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Logger: quiet})
	wait(t, l, 10*time.Second)
	l.Arrived()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	pass(t, client, 12*time.Hour)
	for _, key := range client.Keys(t.Context(), "*").Val() {
		if ttl := client.TTL(t.Context(), key).Val(); ttl < 30*24*time.Hour {
			t.Errorf("%s expires in %v", key, ttl)
		}
	}
	network := newFarProxy(t, server.Addr, distance)
	l = redisthrottle.New(connect(t, network.Addr), redisthrottle.Config{Logger: quiet})
	begin, called := time.Now(), calls(t, client)
	wait(t, l, 10*time.Second)
	t.Logf("the first permission after %v, at %v from Redis; %d pieces sent", time.Since(begin), distance, network.tries.Load()-1)
	if n := calls(t, client) - called; n != 1 {
		t.Errorf("%d calls, want 1", n)
	}
}

// TestFlushUnderWay flushes Redis while a long upload is under way: the others
// get the rest of the limit.
func TestFlushUnderWay(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	client := connect(t, server.Addr)
	upload := redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Logger: quiet})
	wait(t, upload, 10*time.Second)
	var ld load
	ld.run(t, redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Logger: quiet}))
	ld.await(t, time.Now(), 30, 20*time.Second)
	flushed := time.Now()
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * ms) // those that had a token already
	begin := time.Now()
	ld.await(t, begin, 1, 20*time.Second)
	d := ld.all(begin)[0].Sub(flushed)
	t.Logf("the others go on %v after the flush", d)
	if d > 6*time.Second {
		n.slow(t, "want 6 s")
	}
	time.Sleep(6 * time.Second)
	ld.check(t, begin, 14)
	upload.Arrived()
	time.Sleep(1500 * ms)
	n = listen(t)
	if r := ld.rate(4*time.Second, 15); r < 14 {
		n.slow(t, "%.1f requests/s after the upload", r)
	}
	ld.check(t, time.Time{}, 15)
	conserved(t, client)
}

// TestDistance has one process far from Redis use the account alone.
func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		distance time.Duration
		limit    int
		want     float64 // share of the limit
	}{
		{0, 15, 0.90}, {41 * ms, 15, 0.90}, {61 * ms, 15, 0.88}, {77 * ms, 15, 0.85}, {300 * ms, 15, 0.55},
		{12 * ms, 100, 0.85}, {22 * ms, 100, 0.85},
	} {
		t.Run(fmt.Sprint(tt.limit, " at ", tt.distance), func(t *testing.T) {
			t.Parallel()
			server := startRedis(t)
			network := newFarProxy(t, server.Addr, tt.distance)
			n := listen(t)
			ld := load{answer: 50 * ms}
			ld.run(t, redisthrottle.New(connect(t, network.Addr), redisthrottle.Config{Limit: tt.limit, Logger: quiet}))
			ld.await(t, time.Now(), 2*tt.limit, 30*time.Second)
			time.Sleep(3 * time.Second)
			share := ld.rate(12*time.Second, tt.limit) / float64(tt.limit)
			t.Logf("%.1f %% of the limit of %d at %v", 100*share, tt.limit, tt.distance)
			if share < tt.want {
				n.exact(t, "want %.0f %%", 100*tt.want)
			}
			if share < tt.want-0.03 {
				n.slow(t, "want %.0f %%", 100*tt.want)
			}
			ld.check(t, time.Time{}, tt.limit)
		})
	}
}

// TestReadTimeout uses a client whose time-outs suit other commands.
func TestReadTimeout(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: startRedis(t).Addr, ReadTimeout: 500 * ms, PoolSize: 1})
	t.Cleanup(func() { client.Close() })
	var ld load
	var j journal
	ld.run(t, redisthrottle.New(client, redisthrottle.Config{Logger: slog.New(slog.NewTextHandler(&j, nil))}))
	ld.await(t, time.Now(), 30, 30*time.Second)
	n := listen(t)
	r := ld.rate(5*time.Second, 15)
	t.Logf("%.2f requests/s", r)
	if r < 14 {
		n.slow(t, "want 14")
	}
	if text := strings.Join(j.lines(), ""); strings.Contains(text, "WARN") {
		n.slow(t, "log: %s", text)
	}
	ld.check(t, time.Time{}, 15)
}

// TestVanished has Redis vanish without a word on its connections, and another
// be there for new ones.
func TestVanished(t *testing.T) {
	t.Parallel()
	server, next := startRedis(t), startRedis(t)
	network := newProxy(t, server.Addr)
	client := connect(t, network.Addr)
	var wg sync.WaitGroup
	for range 20 { // connections of the application's
		wg.Go(func() { client.BLPop(t.Context(), time.Second, "none") })
	}
	wg.Wait()
	var j journal
	var ld load
	ld.run(t, redisthrottle.New(client, redisthrottle.Config{Logger: slog.New(slog.NewTextHandler(&j, nil))}))
	ld.await(t, time.Now(), 30, 30*time.Second)
	network.vanish(next.Addr)
	vanished, n := time.Now(), listen(t)
	time.Sleep(1500 * ms)
	begin := time.Now()
	ld.await(t, begin, 1, 20*time.Second)
	d := ld.all(begin)[0].Sub(vanished)
	lines := j.lines()
	back := slices.IndexFunc(lines, func(s string) bool { return strings.Contains(s, "is back") })
	if back < 0 {
		t.Fatalf("log: %q", lines)
	}
	t.Logf("Redis is back after %v, the first permission came after %v", j.times[back].Sub(vanished), d)
	if d > 6*time.Second {
		n.slow(t, "want 6 s")
	}
	time.Sleep(3 * time.Second)
	ld.check(t, time.Time{}, 15)
}

// TestRolling has a deployment change the limit, one process after the other.
func TestRolling(t *testing.T) {
	for _, limits := range [][2]int{{15, 10}, {10, 15}} {
		t.Run(fmt.Sprint(limits[0], " to ", limits[1]), func(t *testing.T) {
			t.Parallel()
			server, n := startRedis(t), listen(t)
			client := connect(t, server.Addr)
			ld := load{answer: 50 * ms}
			start := func(limit int) (stop func()) {
				l := redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Limit: limit, Logger: quiet})
				end := ld.run(t, l)
				return func() {
					end()
					l.Close()
				}
			}
			var stops []func()
			for range 3 {
				stops = append(stops, start(limits[0]))
			}
			begin := time.Now()
			ld.await(t, begin, 30, 30*time.Second)
			first := time.Now()
			var lower time.Time // the lower limit is in force
			for i, stop := range stops {
				start(limits[1])
				for i == 0 && limits[1] < limits[0] && client.HGet(t.Context(), pool, "limit").Val() != fmt.Sprintf("%d.000", limits[1]) {
					time.Sleep(ms)
				}
				if i == 0 {
					lower = time.Now()
				}
				time.Sleep(2 * time.Second)
				stop()
			}
			time.Sleep(7 * time.Second)
			var longest time.Duration
			times := ld.all(first)
			for i := range times[1:] {
				longest = max(longest, times[i+1].Sub(times[i]))
			}
			t.Logf("at most %v without a request", longest)
			if longest > 5*time.Second {
				n.slow(t, "want 5 s")
			}
			ld.check(t, begin, max(limits[0], limits[1]))
			if limits[1] < limits[0] {
				ld.check(t, lower.Add(1500*ms), limits[1])
			}
			n = listen(t)
			if r := ld.rate(4*time.Second, limits[1]); r < 0.9*float64(limits[1]) {
				n.slow(t, "%.1f requests/s at last", r)
			}
		})
	}
}

// TestCalls counts the calls with processes that always want to send.
func TestCalls(t *testing.T) {
	for n, want := range map[int]float64{1: 1.17, 4: 1.83, 16: 3.16, 64: 8.93} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			server := startRedis(t)
			client := connect(t, server.Addr)
			ld, noise := load{answer: 50 * ms}, listen(t)
			for range n {
				ld.run(t, redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Logger: quiet}))
			}
			ld.await(t, time.Now(), 75, 60*time.Second)
			begin, called := time.Now(), calls(t, client)
			time.Sleep(15 * time.Second)
			sent := len(ld.all(begin))
			perSecond := float64(calls(t, client)-called) / 15
			perRequest := 15 * perSecond / float64(sent)
			t.Logf("%d processes: %.2f calls per request, %.2f calls per process and second, %.1f requests/s", n, perRequest, perSecond/float64(n), float64(sent)/15)
			if perRequest > want {
				noise.exact(t, "want %v", want)
			}
			if perRequest > want+0.6 { // fewer go back together where the machine is busy
				noise.slow(t, "want %v", want)
			}
			ld.check(t, time.Time{}, 15)
		})
	}
}

// TestCallsAfterThrottle counts the calls in the hour after a throttled response,
// with 1 and 4 processes that always want to send.
func TestCallsAfterThrottle(t *testing.T) {
	for n, want := range map[int]float64{1: 2.2, 4: 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			server := startRedis(t)
			client := connect(t, server.Addr)
			ld, noise := load{answer: 50 * ms}, listen(t)
			var l *redisthrottle.Limiter
			for range n {
				l = redisthrottle.New(connect(t, server.Addr), redisthrottle.Config{Logger: quiet})
				ld.run(t, l)
			}
			ld.await(t, time.Now(), 30, 30*time.Second)
			l.Throttled(time.Second)
			time.Sleep(3 * time.Second)
			begin, called := time.Now(), calls(t, client)
			time.Sleep(12 * time.Second)
			sent := len(ld.all(begin))
			perRequest := float64(calls(t, client)-called) / float64(sent)
			t.Logf("%d processes: %.2f calls per request, %.1f requests/s", n, perRequest, float64(sent)/12)
			if perRequest > want {
				noise.slow(t, "want %v", want)
			}
			if sent < 120 || sent > 145 { // 11.2/s by the pace
				noise.slow(t, "%d requests in 12 s", sent)
			}
			ld.check(t, time.Time{}, 15)
		})
	}
}
