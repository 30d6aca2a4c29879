package throttletest_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/throttletest"
)

const (
	ms = time.Millisecond
	s  = time.Second
)

// A step has n requests arrive at an instant, counted from midnight, after do.
type step struct {
	at        time.Duration
	do        func(*throttletest.Handler)
	n, served int
}

// run takes the steps in virtual time.
func run(t *testing.T, h *throttletest.Handler, steps []step) {
	synctest.Test(t, func(t *testing.T) {
		midnight := time.Now()
		for i, step := range steps {
			time.Sleep(step.at - time.Since(midnight))
			if step.do != nil {
				step.do(h)
			}
			served := 0
			for range step.n {
				if h.Allow(time.Now()) {
					served++
				}
			}
			if served != step.served {
				t.Errorf("step %d, at %v: %d of %d served, want %d", i, step.at, served, step.n, step.served)
			}
		}
	})
}

func TestAlgorithms(t *testing.T) {
	bucket := []step{
		{at: 0, n: 16, served: 15},
		{at: 66_666_666, n: 1, served: 0},
		{at: 66_666_667, n: 2, served: 1},
		{at: 133_333_333, n: 1, served: 0},
		{at: 133_333_334, n: 2, served: 1},
		{at: 1_133_333_333, n: 16, served: 14},
		{at: 1_133_333_334, n: 2, served: 1},
		{at: 3 * s, n: 16, served: 15},
		{at: 1000 * time.Hour, n: 16, served: 15},
	}
	for _, tt := range []struct {
		name  string
		h     *throttletest.Handler
		steps []step
	}{
		{
			name: "sliding log",
			steps: []step{
				{at: 0, n: 16, served: 15},
				{at: s - 1, n: 1, served: 0},
				{at: s, n: 16, served: 15},
				{at: 2*s - 1, n: 1, served: 0},
				{at: 2 * s, n: 1, served: 1},
			},
		},
		{
			name: "sliding log, requests leave it one by one",
			steps: []step{
				{at: 0, n: 1, served: 1},
				{at: 500 * ms, n: 15, served: 14},
				{at: s - 1, n: 1, served: 0},
				{at: s, n: 2, served: 1},
				{at: 1500*ms - 1, n: 1, served: 0},
				{at: 1500 * ms, n: 15, served: 14},
				{at: 2 * s, n: 2, served: 1},
			},
		},
		{
			name: "fixed window, from the clock and not from the first request",
			h:    &throttletest.Handler{Algorithm: throttletest.FixedWindow},
			steps: []step{
				{at: 900 * ms, n: 16, served: 15},
				{at: s - 1, n: 1, served: 0},
				{at: s, n: 16, served: 15},
				{at: 2*s - 1, n: 1, served: 0},
				{at: 5 * s, n: 16, served: 15},
			},
		},
		{
			name: "fixed window of an hour",
			h:    &throttletest.Handler{Algorithm: throttletest.FixedWindow, Limit: 2, Window: time.Hour},
			steps: []step{
				{at: 59 * time.Minute, n: 3, served: 2},
				{at: time.Hour - 1, n: 1, served: 0},
				{at: time.Hour, n: 3, served: 2},
			},
		},
		{name: "token bucket", h: &throttletest.Handler{Algorithm: throttletest.TokenBucket}, steps: bucket},
		{name: "GCRA", h: &throttletest.Handler{Algorithm: throttletest.GCRA}, steps: bucket},
		{
			name: "token bucket of one",
			h:    &throttletest.Handler{Algorithm: throttletest.TokenBucket, Limit: 1, Window: time.Minute},
			steps: []step{
				{at: 0, n: 2, served: 1},
				{at: time.Minute - 1, n: 1, served: 0},
				{at: time.Minute, n: 2, served: 1},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.h == nil {
				tt.h = new(throttletest.Handler)
			}
			tt.h.Halt = -1
			run(t, tt.h, tt.steps)
		})
	}
}

// TestFixedWindowOrigin has windows that do not divide a day.
func TestFixedWindowOrigin(t *testing.T) {
	h := &throttletest.Handler{Algorithm: throttletest.FixedWindow, Limit: 1, Window: 7 * s, Halt: -1}
	boundary := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC).Truncate(7 * s)
	for i, want := range []bool{true, false, true, false, false, true} {
		now := boundary.Add([]time.Duration{-1, -1, 0, 1, 7*s - 1, 7 * s}[i])
		if got := h.Allow(now); got != want {
			t.Errorf("%d: Allow = %t, want %t", i, got, want)
		}
	}
}

// TestModels compares what is served with the algorithms as textbooks have them.
func TestModels(t *testing.T) {
	const limit, window = 7, int64(s) // one request each window/limit, which is no whole number
	models := map[throttletest.Algorithm]func() func(now int64) bool{
		throttletest.SlidingLog: func() func(int64) bool {
			var served []int64
			return func(now int64) bool {
				n := 0
				for _, at := range served {
					if at > now-window {
						n++
					}
				}
				if n < limit {
					served = append(served, now)
				}
				return n < limit
			}
		},
		throttletest.FixedWindow: func() func(int64) bool {
			served := make(map[int64]int)
			return func(now int64) bool {
				served[now/window]++
				return served[now/window] <= limit
			}
		},
		throttletest.TokenBucket: func() func(int64) bool {
			tokens, last := limit*window, int64(0) // in units of 1/window
			return func(now int64) bool {
				tokens = min(limit*window, tokens+(now-last)*limit)
				last = now
				if tokens < window {
					return false
				}
				tokens -= window
				return true
			}
		},
		throttletest.GCRA: func() func(int64) bool {
			var tat int64 // in units of 1/limit ns
			return func(now int64) bool {
				now *= limit
				if now < tat-(limit-1)*window {
					return false
				}
				tat = max(now, tat) + window
				return true
			}
		},
	}
	for algorithm, model := range models {
		t.Run(algorithm.String(), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			for range 20 {
				h := &throttletest.Handler{Algorithm: algorithm, Limit: limit, Halt: -1}
				serves, begin, now := model(), time.Unix(0, 0), int64(0)
				for i := range 1000 {
					switch rng.IntN(4) {
					case 0:
						now += rng.Int64N(window)
					case 1: // to where a decision changes
						now += window/limit + rng.Int64N(3) - 1
					case 2:
						now += (window - now%window) - rng.Int64N(2)
					}
					if got, want := h.Allow(begin.Add(time.Duration(now))), serves(now); got != want {
						t.Fatalf("request %d, at %d ns: served %t, want %t", i, now, got, want)
					}
				}
			}
		})
	}
}

func TestAlgorithmString(t *testing.T) {
	for algorithm, want := range map[throttletest.Algorithm]string{
		throttletest.SlidingLog:  "sliding log",
		throttletest.FixedWindow: "fixed window",
		throttletest.TokenBucket: "token bucket",
		throttletest.GCRA:        "GCRA",
		4:                        "Algorithm(4)",
		-1:                       "Algorithm(-1)",
	} {
		if got := fmt.Sprint(algorithm); got != want {
			t.Errorf("Algorithm %d is %q, want %q", int(algorithm), got, want)
		}
	}
}
