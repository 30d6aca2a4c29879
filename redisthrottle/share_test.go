package redisthrottle_test

import (
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	shareFor  = flag.Duration("share.for", 20*time.Second, "how long TestShare measures")
	processes = flag.Int("share.processes", 4, "how many processes it has")
)

// jain is Jain's fairness index of the counts: 1 if all are equal.
func jain(counts map[string]int) float64 {
	var sum, squares float64
	for _, n := range counts {
		sum += float64(n)
		squares += float64(n) * float64(n)
	}
	return sum * sum / (float64(len(counts)) * squares)
}

// calls returns how many commands Redis got from clients of the limiter: both
// are never called from within a script.
func calls(t testing.TB, c *redis.Client) (n int) {
	t.Helper()
	info, err := c.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(info) {
		var k int
		for _, name := range []string{"blmove", "evalsha", "eval"} {
			if _, err := fmt.Sscanf(line, "cmdstat_"+name+":calls=%d", &k); err == nil {
				n += k
			}
		}
	}
	return n
}

// TestShare has four processes of 16 workers each get as much out of an account
// as one process with all the workers does without Redis.
func TestShare(t *testing.T) {
	for _, jitter := range []time.Duration{0, 20 * ms, 100 * ms} {
		t.Run(fmt.Sprint("jitter ", jitter), func(t *testing.T) {
			t.Parallel()
			server := startRedis(t)
			client := connect(t, server.Addr)
			single, shared := newAccount(t, jitter, 0), newAccount(t, jitter, 0)
			for i := range *processes {
				worker{Number: i, URL: shared.URL, Redis: server.Addr, Workers: 16}.start(t)
			}
			worker{URL: single.URL, Workers: 16 * *processes}.start(t)
			shared.await(t, 20, 30*time.Second)
			single.await(t, 20, 30*time.Second)

			n := listen(t)
			was, called := shared.each(), calls(t, client)
			var all, alone float64
			var wg sync.WaitGroup
			wg.Go(func() { all = shared.rate(*shareFor) })
			wg.Go(func() { alone = single.rate(*shareFor) })
			wg.Wait()
			called = calls(t, client) - called
			counts, served := shared.each(), 0
			for k := range counts {
				counts[k] -= was[k]
				served += counts[k]
			}
			perRequest := float64(called) / float64(served)
			t.Logf("%.2f requests/s together, %.2f/s alone, %v, Jain %.4f, %.2f calls per request", all, alone, counts, jain(counts), perRequest)
			if all < 0.95*alone {
				n.slow(t, "%.2f requests/s, want 95 %% of %.2f", all, alone)
			}
			if len(counts) != *processes || jain(counts) < 0.99 {
				n.slow(t, "Jain's index is %.4f for %v", jain(counts), counts)
			}
			if *processes <= 4 && perRequest > 2.3 {
				n.slow(t, "%.2f calls per request", perRequest)
			}
			shared.check(t)
			single.check(t)
			conserved(t, client)
		})
	}
}

// conserved checks that there are 15 tokens, no two of them the same.
func conserved(t *testing.T, c *redis.Client) {
	t.Helper()
	const key = "clarifaihttp:{default}:"
	p := c.TxPipeline()
	var lists []*redis.StringSliceCmd
	for _, name := range []string{"free", "taken", "parked"} {
		lists = append(lists, p.LRange(t.Context(), key+name, 0, -1))
	}
	if _, err := p.Exec(t.Context()); err != nil {
		t.Error(err)
	}
	tokens, n := make(map[string]bool), 0
	for _, l := range lists {
		for _, token := range l.Val() {
			if token == "-" {
				continue
			}
			tokens[token[:strings.LastIndexByte(token, '.')]] = true
			n++
		}
	}
	if n != 15 || len(tokens) != 15 {
		t.Errorf("%d tokens, %d different ones: %v", n, len(tokens), lists)
	}
}

// TestStaticShare has five processes that know nothing of each other, and have
// a share of 3 each.
func TestStaticShare(t *testing.T) {
	t.Parallel()
	a := newAccount(t, 20*ms, 0)
	for i := range 5 {
		worker{Number: i, URL: a.URL, Workers: 8, Limit: 3}.start(t)
	}
	a.await(t, 15, 30*time.Second)
	if r := a.rate(10 * time.Second); r < 13 {
		a.noise.slow(t, "%.2f requests/s", r)
	} else {
		t.Logf("%.2f requests/s, %v", r, a.each())
	}
	a.check(t)
}

// TestHalt has the server halt the account because of somebody else: those that
// are on their way are throttled, then all processes pause, one request goes
// alone, and the others follow.
func TestHalt(t *testing.T) {
	t.Parallel()
	const pause = 3 * time.Second
	server := startRedis(t)
	a := newAccount(t, 0, pause)
	a.frozen += pause // a request may wait with its connection, and is permitted anew
	for i := range 4 {
		worker{Number: i, URL: a.URL, Redis: server.Addr, Workers: 4, Backoff: pause}.start(t)
	}
	a.await(t, 40, 30*time.Second)
	served := a.total()
	a.handlers[0].HaltFor(pause - 100*ms)
	time.Sleep(pause - 200*ms)
	throttled := a.handlers[0].Stats().Throttled
	if throttled == 0 || throttled > 15 {
		t.Errorf("%d throttled", throttled)
	}
	a.await(t, 40, 10*time.Second)
	a.mu.Lock()
	times := a.times[served:]
	t.Logf("%d throttled, then one, %v later the next, %v later the 20th", throttled, times[1].Sub(times[0]), times[19].Sub(times[0]))
	if d := times[1].Sub(times[0]); d < time.Second {
		t.Errorf("the second followed the probe after %v", d)
	}
	if d := times[20].Sub(times[1]); d < 1500*ms { // at 11.2/s
		a.noise.slow(t, "20 within %v", d)
	}
	a.mu.Unlock()
	if s := a.handlers[0].Stats(); s.Throttled != throttled || s.Peak > 15 {
		t.Errorf("%+v", s)
	}
	conserved(t, connect(t, server.Addr))
}
