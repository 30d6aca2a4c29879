package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/simnet"
	"example.com/clarifaihttp/throttletest"
)

// flood sends requests from so many workers through each of the transports for
// the time given.
func flood(t *testing.T, d time.Duration, workers int, transports ...http.RoundTripper) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, rt := range transports {
		for range workers {
			wg.Go(func() {
				for ctx.Err() == nil {
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server/", nil)
					if err != nil {
						t.Error(err)
						return
					}
					resp, err := rt.RoundTrip(req)
					switch {
					case errors.Is(err, context.Canceled) && ctx.Err() != nil:
						return
					case err != nil:
						t.Error(err)
						return
					case resp.StatusCode != http.StatusOK:
						t.Errorf("status %d", resp.StatusCode)
						return
					}
					resp.Body.Close()
				}
			})
		}
	}
	time.Sleep(d)
	cancel()
	wg.Wait()
}

// simulates skips a test that computes for long where time is short.
func simulates(t *testing.T) {
	if testing.Short() {
		t.Skip("computes all requests of many virtual minutes")
	}
}

func TestGoodput(t *testing.T) {
	simulates(t)
	const ms = time.Millisecond
	for _, tt := range []struct {
		name     string
		throttle func() *clarifaihttp.Throttle
		limit    int // 0: 15
		window   time.Duration
		jitter   time.Duration
		service  func(*rand.Rand) time.Duration
		workers  int
		time     time.Duration
		least    float64 // of the limit
	}{
		{name: "jitter 0", least: 0.94},
		{name: "jitter 20ms", jitter: 20 * ms, least: 0.92},
		{name: "jitter 100ms", jitter: 100 * ms, least: 0.86},
		{name: "jitter 300ms", jitter: 300 * ms, least: 0.77,
			throttle: func() *clarifaihttp.Throttle { return &clarifaihttp.Throttle{Transit: 300 * ms} }},
		{name: "inference of 2 to 30 s", workers: 512, service: simnet.Between(2*time.Second, 30*time.Second), least: 0.78},
		{name: "limit 100", limit: 100, least: 0.92,
			throttle: func() *clarifaihttp.Throttle { return &clarifaihttp.Throttle{Limit: 100} }},
		{name: "15 per minute", window: time.Minute, time: time.Hour, least: 0.99,
			throttle: func() *clarifaihttp.Throttle { return &clarifaihttp.Throttle{Window: time.Minute} }},
	} {
		for _, algorithm := range []throttletest.Algorithm{throttletest.SlidingLog, throttletest.FixedWindow, throttletest.TokenBucket, throttletest.GCRA} {
			t.Run(fmt.Sprint(tt.name, "/", algorithm), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					tt := tt
					if tt.throttle == nil {
						tt.throttle = func() *clarifaihttp.Throttle { return new(clarifaihttp.Throttle) }
					}
					if tt.limit == 0 {
						tt.limit = 15
					}
					if tt.window == 0 {
						tt.window = time.Second
					}
					if tt.service == nil {
						tt.service = simnet.Fixed(50 * ms)
					}
					if tt.workers == 0 {
						tt.workers = max(64, 2*tt.limit)
					}
					if tt.time == 0 {
						tt.time = 300 * time.Second
					}
					server := &throttletest.Handler{Limit: tt.limit, Window: tt.window, Algorithm: algorithm}
					th := tt.throttle()
					flood(t, tt.time, tt.workers, clarifaihttp.NewTransport(simnet.New(server, tt.jitter, tt.service), clarifaihttp.WithThrottle(th)))
					stats := server.Stats()
					goodput := float64(stats.Served) / (float64(tt.limit) * float64(tt.time) / float64(tt.window))
					t.Logf("goodput %.1f %%, %+v", 100*goodput, stats)
					if goodput < tt.least {
						t.Errorf("goodput %.2f %%, want %.0f %%", 100*goodput, 100*tt.least)
					}
					if stats.Throttled != 0 {
						t.Errorf("%d throttled", stats.Throttled)
					}
					if stats.Peak > tt.limit {
						t.Errorf("%d arrivals in a window of %v, want %d at most", stats.Peak, tt.window, tt.limit)
					}
				})
			})
		}
	}
}

// TestForeignProcesses has several processes share an account and not know of
// each other: pause, probe and pace are all they have.
func TestForeignProcesses(t *testing.T) {
	simulates(t)
	const d, runs = 1500 * time.Second, 4
	for processes, least := range map[int]float64{2: 0.76, 4: 0.70, 8: 0.58} {
		t.Run(fmt.Sprint(processes), func(t *testing.T) {
			var sum float64
			for run := range runs {
				synctest.Test(t, func(t *testing.T) {
					server := &throttletest.Handler{Limit: 15}
					var transports []http.RoundTripper
					for i := range processes {
						n := simnet.New(server, 20*time.Millisecond, simnet.Fixed(50*time.Millisecond))
						n.Rand = rand.New(rand.NewPCG(uint64(run), uint64(i)))
						transports = append(transports, clarifaihttp.NewTransport(n, clarifaihttp.WithLogger(quiet)))
					}
					flood(t, d, 64, transports...)
					sum += float64(server.Stats().Served) / (15 * d.Seconds())
					t.Logf("run %d: %.1f %%, %+v", run, float64(server.Stats().Served)/(15*d.Seconds())*100, server.Stats())
				})
			}
			if mean := sum / runs; mean < least {
				t.Errorf("goodput %.1f %%, want %.0f %%", 100*mean, 100*least)
			}
		})
	}
}

// TestLearnedLimit has an account whose limit is told by throttles alone.
func TestLearnedLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const d = 300 * time.Second
		server := &throttletest.Handler{Limit: 5}
		flood(t, d, 64, clarifaihttp.NewTransport(simnet.New(server, 20*ms, simnet.Fixed(50*ms)), clarifaihttp.WithLogger(quiet)))
		stats := server.Stats()
		goodput := float64(stats.Served) / (5 * d.Seconds())
		t.Logf("goodput %.1f %%, %+v", 100*goodput, stats)
		if goodput < 0.85 {
			t.Errorf("goodput %.1f %%, want 85 %%", 100*goodput)
		}
		if stats.Throttled != 10 {
			t.Errorf("%d throttled, want the 10 of the first burst that are too many", stats.Throttled)
		}
	})
}

// TestHaltThatRestarts has a server whose halt begins anew at each request and
// is much longer than the first pause.
func TestHaltThatRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &throttletest.Handler{Halt: 40 * time.Second, RestartHalt: true}
		rt := clarifaihttp.NewTransport(simnet.New(server, 20*ms, simnet.Fixed(50*ms)), clarifaihttp.WithLogger(quiet))
		server.HaltFor(0)
		begin := time.Now()
		all(t, rt, 40)
		if d := time.Since(begin); d > 3*time.Minute {
			t.Errorf("40 requests served after %v, want 3m at most", d)
		}
	})
}

// TestNeighbour has another user take a part of the account's limit.
func TestNeighbour(t *testing.T) {
	simulates(t)
	for _, tt := range []struct {
		name    string
		service func(*rand.Rand) time.Duration
		workers int
		least   float64 // of what the neighbour leaves
	}{
		{"fast answers", simnet.Fixed(50 * ms), 64, 0.7},
		// Here no probe is answered before it is waved through.
		{"inference of 2 to 30 s", simnet.Between(2*time.Second, 30*time.Second), 512, 0.6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const d = 600 * time.Second
				server := new(throttletest.Handler)
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					for sleep(ctx, 200*ms) == nil {
						server.Take(1)
					}
				}()
				flood(t, d, tt.workers, clarifaihttp.NewTransport(simnet.New(server, 20*ms, tt.service), clarifaihttp.WithLogger(quiet)))
				cancel()
				stats := server.Stats()
				goodput := float64(stats.Served) / (10 * d.Seconds())
				t.Logf("goodput %.1f %% of what the neighbour leaves, %+v", 100*goodput, stats)
				if goodput < tt.least {
					t.Errorf("goodput %.1f %%, want %.0f %%", 100*goodput, 100*tt.least)
				}
			})
		})
	}
}

// TestGateway has a gateway in front of the server throttle, by 429s without
// Clarifai's status: as these are taken for throttled responses only on
// suspicion, it takes longer to see that all must pause.
func TestGateway(t *testing.T) {
	simulates(t)
	for _, tt := range []struct {
		name   string
		server *throttletest.Handler
		least  float64
	}{
		{"halt of 15 s", &throttletest.Handler{}, 0.88},
		{"halt of 40 s", &throttletest.Handler{Halt: 40 * time.Second}, 0.83},
		{"halt of 40 s that restarts", &throttletest.Handler{Halt: 40 * time.Second, RestartHalt: true}, 0.74},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const d = 600 * time.Second
				n := simnet.New(tt.server, 20*ms, simnet.Fixed(50*ms))
				n.Answer = func(_ *http.Request, served bool) *http.Response {
					if served {
						return nil
					}
					return respond(http.StatusTooManyRequests, "slow down")
				}
				tt.server.HaltFor(0)
				flood(t, d, 64, clarifaihttp.NewTransport(n, clarifaihttp.WithLogger(quiet)))
				stats := tt.server.Stats()
				goodput := float64(stats.Served) / (15 * d.Seconds())
				t.Logf("goodput %.1f %%, %+v", 100*goodput, stats)
				if goodput < tt.least {
					t.Errorf("goodput %.1f %%, want %.0f %%", 100*goodput, 100*tt.least)
				}
			})
		})
	}
}

// TestBrokenEndpoint has one request in a hundred get a bare 429 each time it
// is sent. It pauses nobody.
func TestBrokenEndpoint(t *testing.T) {
	simulates(t)
	synctest.Test(t, func(t *testing.T) {
		const d = 600 * time.Second
		server := new(throttletest.Handler)
		n := simnet.New(server, 20*ms, simnet.Fixed(50*ms))
		n.Answer = func(req *http.Request, _ bool) *http.Response {
			if req.Header.Get("Broken") == "" {
				return nil
			}
			return respond(http.StatusTooManyRequests, "slow down")
		}
		th := new(clarifaihttp.Throttle)
		rt := clarifaihttp.NewTransport(n, clarifaihttp.WithLogger(quiet), clarifaihttp.WithThrottle(th))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			for sleep(ctx, 7*time.Second) == nil { // one of a hundred
				wg.Go(func() {
					req := get(ctx, t)
					req.Header.Set("Broken", "1")
					rt.RoundTrip(req)
				})
			}
		})
		flood(t, d, 64, rt)
		cancel()
		wg.Wait()
		stats := server.Stats()
		goodput := float64(stats.Served-th.Stats().Throttled) / (15 * d.Seconds())
		t.Logf("goodput %.1f %%, %d bare 429s", 100*goodput, th.Stats().Throttled)
		if goodput < 0.7 {
			t.Errorf("goodput %.1f %%, want 70 %%", 100*goodput)
		}
		if !th.Stats().PausedUntil.IsZero() || stats.Throttled != 0 {
			t.Errorf("%+v", stats)
		}
	})
}
