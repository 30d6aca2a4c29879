package gate

import (
	"math"
	"testing"
	"time"
)

// TestCurve holds the rate against figures computed by hand from RFC 9438's
// curve, w(t) = c (t-K)^3 + wmax.
func TestCurve(t *testing.T) {
	begin := time.Now()
	for _, tt := range []struct {
		name string
		pace *Pace
		cuts []time.Duration // when; each pause is 15 s
		at   time.Duration   // after the end of the last pause
		want float64
	}{
		{name: "none before the first cut", pace: NewPace(15, time.Second), want: math.Inf(1)},
		{name: "first cut", pace: NewPace(15, time.Second), cuts: []time.Duration{0}, want: 11.2},
		{name: "half way to K", pace: NewPace(15, time.Second), cuts: []time.Duration{0}, at: 70 * time.Second, want: 14 - 2.8/8},
		{name: "at K", pace: NewPace(15, time.Second), cuts: []time.Duration{0}, at: 140 * time.Second, want: 14},
		{name: "not beyond the ceiling", pace: NewPace(15, time.Second), cuts: []time.Duration{0}, at: 1000 * time.Second, want: 14},
		{name: "deep cut", pace: NewPace(15, time.Second), cuts: []time.Duration{0, 29 * time.Second}, want: 0.5 * (14 - 2.8*math.Pow(126.0/140, 3))},
		{name: "30 s later", pace: NewPace(15, time.Second), cuts: []time.Duration{0, 30 * time.Second}, want: 0.8 * (14 - 2.8*math.Pow(125.0/140, 3))},
		{name: "floor", pace: NewPace(15, time.Second), cuts: make([]time.Duration, 20), want: 0.5},
		{name: "growth beyond wmax", pace: NewPace(15, time.Second), cuts: make([]time.Duration, 20), at: 240 * time.Second, want: 0.5 + 1e-6*1e6},
		{name: "scaled by the limit", pace: NewPace(30, time.Second), cuts: []time.Duration{0}, want: 22.4},
		{name: "scaled by the window", pace: NewPace(15, time.Minute), cuts: []time.Duration{0}, want: 11.2 / 60},
		{name: "an hour after the throttle", pace: NewPace(15, time.Second), cuts: []time.Duration{0}, at: time.Hour - 15*time.Second, want: math.Inf(1)},
		{name: "and just before", pace: NewPace(15, time.Second), cuts: []time.Duration{0}, at: time.Hour - 15*time.Second - 1, want: 14},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := begin
			for _, cut := range tt.cuts {
				now = begin.Add(cut)
				tt.pace.Throttled(now)
				tt.pace.Cut(now)
				now = now.Add(15 * time.Second)
				tt.pace.Resume(now)
			}
			now = now.Add(tt.at)
			if tt.pace.Wait(now) != 0 {
				t.Fatal("no token")
			}
			tt.pace.Start(now)
			wait := tt.pace.Wait(now)
			want := time.Duration(float64(time.Second) / tt.want)
			if wait < want || wait > want+time.Microsecond {
				t.Errorf("next start after %v, want %v (%.3f/s)", wait, want, tt.want)
			}
			if tt.pace.Wait(now.Add(wait)) != 0 {
				t.Error("Wait was too short")
			}
		})
	}
}
