package gate

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

func newTestGate(limit int) *Gate {
	return New(Config{Limit: limit, Window: time.Second, Backoff: 15 * time.Second, MaxBackoff: time.Minute, Transit: 250 * ms})
}

// TestUrgentBehindABatch has 100 000 background requests in line while slots
// come free one by one, every 10 ms. Whoever is more urgent goes with the next.
func TestUrgentBehindABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, batch = 100, 100_000
		g := newTestGate(limit)
		begin := time.Now()
		var sent, waiting []*Ticket
		for i := range limit + batch {
			tk := NewTicket(7, time.Time{})
			if err := g.enter(tk); err != nil {
				t.Fatal(err)
			}
			if i < limit {
				sent = append(sent, tk)
			} else {
				waiting = append(waiting, tk)
			}
		}
		// Slot i is free at W + 10 ms * i.
		for i, tk := range sent {
			time.AfterFunc(time.Duration(i)*10*ms, func() { g.Answered(tk) })
		}
		gone := func() (n int) {
			g.mu.Lock()
			defer g.mu.Unlock()
			for n < len(waiting) && waiting[n].gone {
				n++
			}
			return n
		}

		type request struct {
			name    string
			urgency int
			retry   bool
			resend  bool
			at      time.Duration // joins
			want    time.Duration // goes
		}
		const w = time.Second + guard
		requests := []request{
			{name: "urgent", urgency: 0, at: 500 * ms, want: w},
			{name: "at the same time as a slot", urgency: 3, at: w + 20*ms, want: w + 30*ms},
			// All of these join at once, with a slot at +100 ms, +110 ms, ...
			{name: "background newcomer", urgency: 6, at: w + 95*ms, want: w + 160*ms},
			{name: "background retry", urgency: 6, retry: true, at: w + 95*ms, want: w + 150*ms},
			{name: "usual newcomer", urgency: 3, at: w + 95*ms, want: w + 140*ms},
			{name: "usual retry", urgency: 3, retry: true, at: w + 95*ms, want: w + 130*ms},
			{name: "urgent newcomer", urgency: 0, at: w + 95*ms, want: w + 120*ms},
			{name: "urgent retry", urgency: 0, retry: true, at: w + 95*ms, want: w + 110*ms},
			{name: "background resend", urgency: 7, resend: true, at: w + 95*ms, want: w + 100*ms},
		}
		for i, r := range requests {
			go func() {
				time.Sleep(r.at + time.Duration(i)) // in this order
				tk := NewTicket(r.urgency, time.Time{})
				if r.retry {
					tk = tk.Retry(0)
				}
				var err error
				if r.resend {
					tk.asked, tk.got, tk.over = true, true, true // its first wire request has failed
					_, err = g.Resent(t.Context(), nil, tk, Hold{})
				} else {
					err = g.Start(t.Context(), nil, tk)
				}
				if err != nil {
					t.Errorf("%s: %v", r.name, err)
				}
				if at := time.Since(begin); at != r.want {
					t.Errorf("%s: went at %v, want %v", r.name, at, r.want)
				}
			}()
		}
		time.Sleep(w + 200*ms)
		synctest.Wait()
		// Slots 0 to 20; nine of them were others'.
		if n := gone(); n != 21-len(requests) {
			t.Errorf("%d of the batch are gone, want %d", n, 21-len(requests))
		}
	})
}

// BenchmarkJoin has one request join and leave a line of so many background
// requests: ahead of all, behind all, and at its old place at the front.
func BenchmarkJoin(b *testing.B) {
	for _, n := range []int{0, 1000, 100_000} {
		for _, way := range []struct {
			name    string
			urgency int
			number  int64
		}{
			{"ahead", 0, 0},
			{"behind", 7, 0},
			{"back", 7, 1},
		} {
			b.Run(fmt.Sprintf("%s/%d", way.name, n), func(b *testing.B) {
				g := newTestGate(1)
				for range 1 + n {
					if err := g.enter(NewTicket(7, time.Time{})); err != nil {
						b.Fatal(err)
					}
				}
				tk := NewTicket(way.urgency, time.Now().Add(1000*time.Hour))
				b.ReportAllocs()
				for b.Loop() {
					g.mu.Lock()
					g.arrived++
					tk.number = g.arrived
					if way.number != 0 {
						tk.number = way.number
					}
					if err := g.join(tk); err != nil {
						b.Fatal(err)
					}
					g.leaveLine(tk)
					g.unlock()
				}
			})
		}
	}
}
