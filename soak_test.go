package clarifaihttp_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

var soakFor = flag.Duration("soak", 5*time.Second, "how long TestSoak takes")

// TestSoak has 200 workers send all kinds of requests to a server that throttles
// and fails at random, and cancel some of them. The server counts.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("shows something only after some seconds of real time")
	}
	labeled(t, func() {
		const (
			workers = 200
			limit   = 20
			window  = 10 * ms
		)
		account := &throttletest.Handler{Limit: limit, Window: window, Halt: 20 * ms, RetryAfter: "0"}
		var served, broken atomic.Int64
		account.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err == nil && r.ContentLength >= 0 && n != r.ContentLength {
				t.Errorf("%d bytes came, want %d", n, r.ContentLength)
			}
			switch rand.IntN(50) {
			case 0:
				if rand.IntN(5) == 0 {
					account.HaltFor(0) // the next are throttled
				}
			case 1:
				broken.Add(1)
				panic(http.ErrAbortHandler)
			case 2:
				broken.Add(1)
				w.Header().Set("Content-Length", "100")
				io.WriteString(w, "cut")
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			case 3:
				w.WriteHeader(http.StatusInternalServerError)
			case 4:
				time.Sleep(rand.N(100 * ms))
			case 5:
				w.Header().Set("Connection", "close")
			}
			served.Add(1)
			io.WriteString(w, okBody)
		})
		srv := httptest.NewServer(account)
		defer srv.Close()
		base := &http.Transport{MaxIdleConnsPerHost: workers}
		defer base.CloseIdleConnections()
		th := &clarifaihttp.Throttle{Limit: limit, Window: window, Backoff: 50 * ms, MaxBackoff: 100 * ms, Transit: time.Second}
		client := &http.Client{Transport: over(base, th)}

		ctx, cancel := context.WithCancel(t.Context()) // a deadline would have requests refused
		defer cancel()
		time.AfterFunc(*soakFor, cancel)
		lateness := watchLateness()
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := soakOnce(ctx, client, srv.URL); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}
			})
		}

		// The least of what is seen in a third is what it comes down to.
		var goroutines [3]int
		var heaps [3]uint64
		for third := range 3 {
			goroutines[third], heaps[third] = 1<<30, 1<<60
			for range 10 {
				time.Sleep(*soakFor / 40)
				goroutines[third] = min(goroutines[third], runtime.NumGoroutine())
				heaps[third] = min(heaps[third], heap())
			}
		}
		wg.Wait()
		late := lateness()

		t.Logf("%d served, %d broken, account %+v, throttle %+v, %d goroutines, heap of %d, up to %v late", served.Load(), broken.Load(), account.Stats(), th.Stats(), goroutines, heaps, late)
		if s := account.Stats(); s.Throttled == 0 || broken.Load() == 0 || served.Load() < workers {
			judge(t, late, th.Transit)("this shows nothing")
		}
		if goroutines[2] > goroutines[0]+workers/2 {
			t.Errorf("%d goroutines in the first, second and last third", goroutines)
		}
		if heaps[2] > heaps[0]+heaps[0]/2+2<<20 {
			t.Errorf("heap of %d bytes in the first, second and last third", heaps)
		}
		eventually(t, func() string {
			if s := th.Stats(); s.Held != 0 || s.Waiting != 0 {
				return fmt.Sprintf("in the end: %+v", s)
			}
			return ""
		})
		if s, failf := account.Stats(), judge(t, late, th.Transit); s.Peak > limit {
			failf("%d arrivals in %v, want %d at most", s.Peak, window, limit)
		}
	})
}

// soakOnce sends one request of a random kind. It returns an error that should
// not be.
func soakOnce(ctx context.Context, client *http.Client, url string) error {
	kind := rand.IntN(10)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var body io.Reader
	switch kind {
	case 0: // canceled somewhere
		defer time.AfterFunc(rand.N(300*ms), cancel).Stop()
	case 1: // refused, or ends somewhere
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, rand.N(2*time.Second))
		defer stop()
	case 2:
		body = strings.NewReader(strings.Repeat("x", rand.IntN(10_000)))
	case 3: // of unknown length, without GetBody
		body = io.LimitReader(strings.NewReader(strings.Repeat("x", 10_000)), rand.Int64N(10_000))
	}
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if late, ok := errors.AsType[*clarifaihttp.WaitError](err); ok && kind != 1 {
			return late
		}
		return nil
	}
	defer resp.Body.Close()
	if kind != 4 { // else closed unread
		io.Copy(io.Discard, resp.Body)
	}
	if resp.StatusCode == 429 && kind > 3 {
		return fmt.Errorf("kind %d: a throttle was handed back", kind)
	}
	return nil
}
