// Command example has several processes share an account by Redis, and shows
// who gets what. The server with the limit is built in; it throttles as
// Clarifai does. Run it in the module's directory:
//
//	go run ./example [-processes 5] [-workers 8] [-for 20s] [-redis localhost:6379]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/redisthrottle"
	"example.com/clarifaihttp/redisthrottle/internal/redisserver"
	"example.com/clarifaihttp/throttletest"
)

var (
	processes = flag.Int("processes", 5, "number of processes")
	workers   = flag.Int("workers", 8, "requests at a time in each process")
	runFor    = flag.Duration("for", 20*time.Second, "how long to run")
	addr      = flag.String("redis", "", "address of a Redis; empty: start a redis-server")

	process = flag.Int("process", 0, "be this process (used by the program itself)")
	url     = flag.String("url", "", "server's address (used by the program itself)")
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("example: ")
	flag.Parse()
	if *process > 0 {
		send()
		return
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

// send is one of the processes: this is how clarifaihttp and redisthrottle are
// used together. It ends when its standard input does.
func send() {
	client := redis.NewClient(&redis.Options{Addr: *addr})
	limiter := redisthrottle.New(client, redisthrottle.Config{
		Account: "example",
		Logger:  slog.New(slog.DiscardHandler),
	})
	defer limiter.Close()
	throttle := &clarifaihttp.Throttle{Limiter: limiter}
	httpClient := &http.Client{Transport: clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(throttle))}

	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range *workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := get(ctx, httpClient); err != nil && ctx.Err() == nil {
					log.Print(err)
					time.Sleep(time.Second)
				}
			}
		})
	}
	io.Copy(io.Discard, os.Stdin)
	stop()
	wg.Wait()
}

func get(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, *url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Process", strconv.Itoa(*process))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// An account is the server, which counts the requests of each process.
type account struct {
	throttletest.Handler
	mu     sync.Mutex
	counts []int
}

func newAccount() *account {
	a := &account{counts: make([]int, *processes)}
	a.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i, err := strconv.Atoi(r.Header.Get("Process")); err == nil && i > 0 && i <= len(a.counts) {
			a.mu.Lock()
			a.counts[i-1]++
			a.mu.Unlock()
		}
		time.Sleep(50 * time.Millisecond)
		io.WriteString(w, "{}")
	})
	return a
}

func (a *account) snapshot() []int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]int(nil), a.counts...)
}

// run starts Redis, the server and the processes, and watches.
func run() error {
	if *processes < 1 || *workers < 1 || *runFor < time.Second {
		return errors.New("-processes and -workers must be 1 at least, -for 1s")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	fmt.Printf("%d processes with %d workers each share 15 requests per second.\n", *processes, *workers)
	where := *addr
	if where == "" {
		fmt.Println("Starting a redis-server of its own.")
		server, err := redisserver.Start()
		if err != nil {
			return fmt.Errorf("%w; or give the address of a Redis by -redis", err)
		}
		defer server.Close()
		where = server.Addr
	}
	client := redis.NewClient(&redis.Options{Addr: where})
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("the Redis at %s: %w", where, err)
	}

	a := newAccount()
	server := httptest.NewServer(a)
	defer server.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for i := range *processes {
		child := exec.Command(self, "-process", strconv.Itoa(i+1), "-url", server.URL, "-redis", where, "-workers", strconv.Itoa(*workers))
		child.Stderr = os.Stderr
		stdin, err := child.StdinPipe()
		if err != nil {
			return err
		}
		if err := child.Start(); err != nil {
			return err
		}
		defer child.Wait()
		defer stdin.Close()
	}
	watch(ctx, a, client)
	return nil
}

// watch prints a line per second, and a summary.
func watch(ctx context.Context, a *account, client *redis.Client) {
	fmt.Print("An account that Redis does not know is used after 4.3 s.\n\n   time ")
	for i := range *processes {
		fmt.Printf("%5s", "p"+strconv.Itoa(i+1))
	}
	fmt.Println("    all  most in 1 s  throttled")

	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begin, last := time.Now(), a.snapshot()
	var first time.Time
	firstCalls, firstServed := 0, 0
	for ctx.Err() == nil && time.Since(begin) < *runFor {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		counts, all := a.snapshot(), 0
		fmt.Printf("%5.0f s ", time.Since(begin).Seconds())
		for i, n := range counts {
			fmt.Printf("%5d", n-last[i])
			all += n - last[i]
		}
		s := a.Stats()
		fmt.Printf("%7d%13d%11d\n", all, s.Peak, s.Throttled)
		last = counts
		if first.IsZero() && s.Served > 0 {
			first, firstServed, firstCalls = time.Now(), s.Served, calls(client)
		}
	}

	s := a.Stats()
	if s.Served == firstServed {
		fmt.Println("\nnothing was sent")
		return
	}
	var sum, squares float64
	for _, n := range last {
		sum += float64(n)
		squares += float64(n) * float64(n)
	}
	n := s.Served - firstServed
	fmt.Printf("\n%.1f requests/s, %d throttled, at most %d in one second\n"+
		"Jain's fairness %.3f, %.2f calls of Redis per request\n",
		float64(n)/time.Since(first).Seconds(), s.Throttled, s.Peak, sum*sum/(float64(*processes)*squares),
		float64(calls(client)-firstCalls)/float64(n))
}

// calls returns how often Redis was called for tokens, by anyone.
func calls(client *redis.Client) (n int) {
	info := client.Info(context.Background(), "commandstats").Val()
	for line := range strings.Lines(info) {
		for _, name := range []string{"blmove", "evalsha", "eval"} {
			var k int
			if _, err := fmt.Sscanf(line, "cmdstat_"+name+":calls=%d", &k); err == nil {
				n += k
			}
		}
	}
	return n
}
