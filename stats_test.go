package clarifaihttp_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// lateLimiter permits the first request, and calls all others late.
type lateLimiter struct{ asked *atomic.Int32 }

func (l lateLimiter) Wait(context.Context) error {
	if l.asked.Add(1) > 1 {
		return &clarifaihttp.WaitError{Wait: time.Minute}
	}
	return nil
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := &clarifaihttp.Throttle{Limit: 1}
		check := func(when string, want clarifaihttp.Stats) {
			t.Helper()
			synctest.Wait()
			got := th.Stats()
			got.Waited, got.PausedUntil, want.Limit = 0, time.Time{}, 1
			if got != want {
				t.Errorf("%s:\n%+v, want\n%+v", when, got, want)
			}
		}
		attempts := 0
		l := newLineup(t, th, func(string, int) *http.Response {
			attempts++
			switch attempts {
			case 1:
				return throttled("")
			case 2:
				return throttled("1000") // handed back
			case 3:
				return respond(http.StatusTooManyRequests, "slow down") // its retry rests
			}
			return ok()
		})
		soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()

		l.send(t.Context(), "first", "u=2")
		l.send(t.Context(), "second", "")
		l.send(t.Context(), "third", "u=3")
		l.send(t.Context(), "background", "u=7")
		l.send(soon, "late", "u=7, i")
		check("in line", clarifaihttp.Stats{Attempts: 1, Waiting: 4, WaitingByUrgency: [8]int{3: 2, 7: 2}, Held: 1})

		time.Sleep(100 * ms)
		check("paused", clarifaihttp.Stats{Attempts: 1, Throttled: 1, Pauses: 1, Refused: 1,
			Waiting: 4, WaitingByUrgency: [8]int{2: 1, 3: 2, 7: 1}, Held: 1})

		time.Sleep(15*time.Second + 100*ms)
		check("paused again", clarifaihttp.Stats{Attempts: 2, Throttled: 2, Pauses: 2, Refused: 1, HandedBack: 1,
			Waiting: 3, WaitingByUrgency: [8]int{3: 2, 7: 1}, Held: 1})

		time.Sleep(time.Minute + 100*ms)
		check("a retry rests", clarifaihttp.Stats{Attempts: 3, Throttled: 3, Pauses: 2, Refused: 1, HandedBack: 1,
			Waiting: 3, WaitingByUrgency: [8]int{3: 2, 7: 1}, Held: 1})

		l.wg.Wait()
		time.Sleep(time.Minute)
		check("in the end", clarifaihttp.Stats{Attempts: 6, Throttled: 3, Pauses: 2, Refused: 1, HandedBack: 1})
	})
}

// TestStatsOfLimiter has a Limiter refuse a newcomer and a retry.
func TestStatsOfLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := &clarifaihttp.Throttle{Limiter: lateLimiter{new(atomic.Int32)}}
		l := newLineup(t, th, func(string, int) *http.Response { return throttled("") })
		l.send(t.Context(), "retry", "")
		l.send(t.Context(), "newcomer", "")
		l.wg.Wait()
		if s := th.Stats(); s.Refused != 1 || s.HandedBack != 1 {
			t.Errorf("%+v, want one refused, one handed back", s)
		}
	})
}

// TestCountersNeverDecrease reads Stats all the time while everything happens.
func TestCountersNeverDecrease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := &clarifaihttp.Throttle{Limit: 3, Backoff: 2 * time.Second}
		l := newLineup(t, th, func(_ string, attempt int) *http.Response {
			switch {
			case attempt%17 == 0:
				return throttled("1000")
			case attempt%7 == 0:
				return throttled("")
			case attempt%5 == 0:
				return respond(http.StatusTooManyRequests, "")
			}
			return ok()
		})
		for i := range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Second)
			defer cancel()
			l.send(ctx, "request", []string{"u=0", "u=3", "u=7"}[i%3])
		}
		done := make(chan struct{})
		go func() { l.wg.Wait(); close(done) }()
		last := th.Stats()
		for ended := false; !ended; {
			select {
			case <-done:
				ended = true
			case <-time.After(30 * ms):
			}
			s := th.Stats()
			if s.Attempts < last.Attempts || s.Throttled < last.Throttled || s.Pauses < last.Pauses ||
				s.Refused < last.Refused || s.HandedBack < last.HandedBack || s.Waited < last.Waited {
				t.Fatalf("%+v after %+v", s, last)
			}
			sum := 0
			for _, n := range s.WaitingByUrgency {
				sum += n
			}
			if sum != s.Waiting {
				t.Fatalf("%+v: urgencies do not add up", s)
			}
			last = s
		}
		if last.Refused == 0 || last.HandedBack == 0 || last.Pauses == 0 || last.Waiting != 0 {
			t.Errorf("in the end %+v", last)
		}
	})
}
