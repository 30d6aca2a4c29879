package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/internal/simnet"
	"example.com/clarifaihttp/throttletest"
)

const (
	noHalt = -1

	workers = 64

	// A worker whose call failed takes its next one so much later.
	afterError = time.Second

	// phase is when clients start, after a boundary of the server's windows:
	// nothing tells them where these are.
	phase = 900 * time.Millisecond

	// defaultTransit is Throttle.Transit's.
	defaultTransit = 250 * time.Millisecond

	// usualJitter is the network of all workloads but the flood, which goes
	// through all of them.
	usualJitter = 20 * time.Millisecond
)

var (
	algorithms = []throttletest.Algorithm{throttletest.SlidingLog, throttletest.FixedWindow, throttletest.TokenBucket}
	jitters    = []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond}
)

// A setting is a server and the way to it.
type setting struct {
	algorithm throttletest.Algorithm
	halt      time.Duration // noHalt: only what is over the limit is throttled
	jitter    time.Duration
	service   func(*rand.Rand) time.Duration
}

// usual is the setting of all workloads but the flood.
var usual = setting{algorithm: throttletest.SlidingLog, halt: backoff, jitter: usualJitter, service: simnet.Fixed(50 * time.Millisecond)}

// A world is one client in one setting, in virtual time.
type world struct {
	server  *throttletest.Handler
	ctx     context.Context // ends the workers
	cancel  context.CancelFunc
	workers sync.WaitGroup
	clients []*http.Client // one per process
	begin   time.Time

	mu     sync.Mutex  // guards all below
	calls  []call      // finished ones
	served []time.Time // when requests arrived that the server served; complete at the end
}

// A call is what a caller of the client sees.
type call struct {
	at, took time.Duration
	ok       bool
}

// errStatus is the outcome of a call that was answered, but not served.
var errStatus = errors.New("status is not 200")

// play plays a script with c in s and returns the world after it.
func play(t *testing.T, c client, s setting, script func(*world)) *world {
	t.Helper()
	var w *world
	synctest.Test(t, func(t *testing.T) {
		w = &world{server: &throttletest.Handler{Limit: limit, Window: window, Halt: s.halt, Algorithm: s.algorithm}}
		network := simnet.New(w.server, s.jitter, s.service)
		time.Sleep(phase)
		w.begin = time.Now()
		q := quota{limit: limit, window: window}
		if s.jitter > defaultTransit {
			q.transit = s.jitter
		}
		for _, rt := range c.open(network, q) {
			w.clients = append(w.clients, &http.Client{Transport: rt})
		}
		w.ctx, w.cancel = context.WithCancel(t.Context())
		script(w)
		w.cancel()
		w.workers.Wait()
		w.served = network.Served()
	})
	return w
}

// call sends the i-th request through the client and reports whether it was
// served.
func (w *world) call(ctx context.Context, i int) (ok bool) {
	at := time.Since(w.begin)
	err := get(ctx, w.clients[i%len(w.clients)], "http://server/")
	return w.note(at, err)
}

// note notes a call that began at the time given, unless the end of the world
// interrupted it, and reports whether it was served.
func (w *world) note(at time.Duration, err error) (ok bool) {
	if w.ctx.Err() != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, call{at, time.Since(w.begin) - at, err == nil})
	return err == nil
}

func get(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	return do(c, req)
}

// do sends req and returns nil if it was served.
func do(c *http.Client, req *http.Request) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errStatus
	}
	return nil
}

// flood has so many workers send as fast as the client lets them.
func (w *world) flood(workers int) {
	for i := range workers {
		w.workers.Go(func() {
			for w.ctx.Err() == nil {
				if !w.call(w.ctx, i) {
					simnet.Sleep(w.ctx, afterError)
				}
			}
		})
	}
}

// Flood: what a client gets out of the limit.

func flooded(t *testing.T, c client, s setting, workers int, d time.Duration) *world {
	t.Helper()
	return play(t, c, s, func(w *world) {
		w.flood(workers)
		time.Sleep(d)
	})
}

// goodput returns the share of the limit that was served to the client in d.
func (w *world) goodput(d time.Duration) float64 {
	return float64(len(w.served)) / (limit * d.Seconds())
}

// perThousand returns how many of 1000 requests the server throttled.
func (w *world) perThousand() float64 {
	s := w.server.Stats()
	return 1000 * float64(s.Throttled) / float64(max(s.Served+s.Throttled, 1))
}

// Halted: the account is halted once, by others, amid a flood.

const (
	haltedAt  = 10 * time.Second
	haltedFor = 75 * time.Second // of which plots show all
)

func halted(t *testing.T, c client, a throttletest.Algorithm) *world {
	t.Helper()
	s := usual
	s.algorithm = a
	return play(t, c, s, func(w *world) {
		w.flood(workers)
		time.Sleep(haltedAt)
		w.server.HaltFor(backoff)
		time.Sleep(haltedFor - haltedAt)
	})
}

// Job: a thousand requests, each sent once.

const jobSize = 1000

func job(t *testing.T, c client) *world {
	t.Helper()
	return play(t, c, usual, func(w *world) {
		next := make(chan int, jobSize)
		for i := range jobSize {
			next <- i
		}
		close(next)
		for range workers {
			w.workers.Go(func() {
				for i := range next {
					if !w.call(w.ctx, i) {
						simnet.Sleep(w.ctx, afterError)
					}
				}
			})
		}
		w.workers.Wait()
	})
}

// Bursts: n requests at once, from idle.

const bursts = 20

func burst(t *testing.T, c client, n int) *world {
	t.Helper()
	return play(t, c, usual, func(w *world) {
		for range bursts {
			for i := range n {
				w.workers.Go(func() { w.call(w.ctx, i) })
			}
			w.workers.Wait()
			time.Sleep(time.Minute)
		}
	})
}

// Inference: answers take from 2 to 30 s.

const inferenceWorkers = 512

func inference(t *testing.T, c client, d time.Duration) *world {
	t.Helper()
	return flooded(t, c, slow, inferenceWorkers, d)
}

// slow is the setting of inference.
var slow = func() setting {
	s := usual
	s.service = simnet.Between(2*time.Second, 30*time.Second)
	return s
}()

// Deadline: calls with a deadline of 10 s while the account is halted.

const (
	deadline      = 10 * time.Second
	deadlineCalls = 20
	deadlineEvery = 200 * time.Millisecond
)

func deadlines(t *testing.T, c client) *world {
	t.Helper()
	return play(t, c, usual, func(w *world) {
		w.server.HaltFor(backoff)
		for i := range deadlineCalls {
			w.workers.Go(func() {
				time.Sleep(time.Duration(i) * deadlineEvery)
				ctx, cancel := context.WithTimeout(w.ctx, deadline)
				defer cancel()
				w.call(ctx, i)
			})
		}
		w.workers.Wait()
	})
}

// Neighbour: someone else takes 5 requests per second of the account.

const neighbours = 5

func neighbour(t *testing.T, c client, s setting, workers int, d time.Duration) *world {
	t.Helper()
	return play(t, c, s, func(w *world) {
		w.workers.Go(func() {
			for w.ctx.Err() == nil {
				w.server.Take(1)
				simnet.Sleep(w.ctx, time.Second/neighbours)
			}
		})
		w.flood(workers)
		time.Sleep(d)
	})
}

// took returns the given quantile of the time that calls took until the caller
// knew: those that were served, or all of them.
func (w *world) took(quantile float64, servedOnly bool) time.Duration {
	var all []time.Duration
	for _, c := range w.calls {
		if c.ok || !servedOnly {
			all = append(all, c.took)
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(int(quantile*float64(len(all))), len(all)-1)]
}

// lost returns how many calls were not served.
func (w *world) lost() (n int) {
	for _, c := range w.calls {
		if !c.ok {
			n++
		}
	}
	return n
}
