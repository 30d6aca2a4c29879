package gate

import (
	"testing"
	"time"
)

// BenchmarkLongestHold has 1000 requests under way be throttled one after the
// other, while 100 000 wait with deadlines: how long is the lock held at most?
// The baseline looks at each who waits once for each answer.
func BenchmarkLongestHold(b *testing.B) {
	const limit, waiters = 1000, 100_000
	for _, bb := range []struct {
		name     string
		deadline time.Duration
	}{
		{"nobody is refused", time.Hour},
		{"all are refused", 10 * time.Second},
	} {
		for _, way := range []string{"scan once", "scan for each answer"} {
			b.Run(bb.name+"/"+way, func(b *testing.B) {
				var longest, all time.Duration
				for b.Loop() {
					b.StopTimer()
					g := New(Config{Limit: limit, Window: time.Second, Backoff: 15 * time.Second, MaxBackoff: time.Minute, Transit: 250 * time.Millisecond})
					now := time.Now()
					var sent []*Ticket
					for i := range limit + waiters {
						tk := NewTicket(3, now.Add(time.Hour))
						if err := g.enter(tk); err != nil {
							b.Fatal(err)
						}
						if i < limit {
							g.Asked(tk, true)
							g.Connected(b.Context(), nil, tk, Hold{})
							g.Written(tk, now.Add(g.transit))
							sent = append(sent, tk)
						}
						tk.deadline = now.Add(bb.deadline)
					}
					b.StartTimer()
					for i, tk := range sent {
						if i == 50 && way != "scan once" {
							break // it is the longest that counts
						}
						if way != "scan once" {
							g.scanned = time.Time{}
						}
						begin := time.Now()
						g.Throttled(tk, Verdict{})
						held := time.Since(begin)
						longest, all = max(longest, held), all+held
						if bb.deadline < time.Minute && g.line.len() > 0 {
							b.Fatal("not refused")
						}
					}
				}
				b.ReportMetric(float64(longest)/float64(time.Millisecond), "ms/longest")
				b.ReportMetric(all.Seconds()/float64(b.N), "s/all")
			})
		}
	}
}

// BenchmarkStandAside has requests join the line during a pause whose calls had
// bare 429s. It costs the same for each, however many they are.
func BenchmarkStandAside(b *testing.B) {
	g := New(Config{Limit: 1000, Window: time.Second, Backoff: time.Hour, MaxBackoff: time.Hour, Transit: 250 * time.Millisecond})
	tk := NewTicket(3, time.Time{})
	if err := g.enter(tk); err != nil {
		b.Fatal(err)
	}
	g.Throttled(tk, Verdict{})
	for b.Loop() {
		if err := g.enter(tk.Retry(time.Second)); err != nil {
			b.Fatal(err)
		}
	}
}

// enter puts tk in the line, without anybody who waits for it.
func (g *Gate) enter(tk *Ticket) error {
	g.mu.Lock()
	defer g.unlock()
	g.arrived++
	tk.number = g.arrived
	if err := g.join(tk); err != nil {
		return err
	}
	tk.ready = make(chan struct{})
	return nil
}
