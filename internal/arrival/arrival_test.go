package arrival

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

const (
	ms      = time.Millisecond
	transit = 250 * ms
)

// A script is a request whose other end does as it says. It notes the looks and
// what is proven, in time since it was written.
type script struct {
	small   bool
	acked   time.Duration // when it is acknowledged; 0: never
	gone    time.Duration // when its connection is closed; 0: never
	unknown bool          // the system cannot be asked
	stop    time.Duration // when it is stopped; 0: never

	Request
	begin  time.Time
	looks  []time.Duration
	proven []time.Duration
}

func (s *script) ask() answer {
	age := time.Since(s.begin)
	s.looks = append(s.looks, age)
	switch {
	case s.unknown:
		return unknown
	case s.gone > 0 && age >= s.gone:
		return gone
	case s.acked > 0 && age >= s.acked:
		return acked
	}
	return notYet
}

func (s *script) Arrived(by time.Time) {
	s.proven = append(s.proven, by.Sub(s.begin))
}

// scripted returns a Watch over scripts.
func scripted() *Watch {
	return &Watch{ask: func(to Arriver) answer { return to.(*script).ask() }}
}

// start has w watch s. Its connection is none that is asked for real.
func (s *script) start(w *Watch) (by time.Duration) {
	s.begin = time.Now()
	latest := w.Written(&s.Request, s, new(net.TCPConn), s.small, transit)
	if s.stop > 0 {
		time.AfterFunc(s.stop, func() { w.Stop(&s.Request) })
	}
	return latest.Sub(s.begin)
}

func TestLooks(t *testing.T) {
	if _, ok := newLook(new(net.TCPConn)); !ok {
		t.Skip("this system is not asked")
	}
	for _, test := range []struct {
		name string
		script
		looks  []time.Duration // the first of them
		count  int             // 0: the looks above are all
		proven time.Duration   // 0: nothing is
	}{
		{name: "small, acknowledged at once",
			script: script{small: true, acked: ms},
			looks:  []time.Duration{transit}, proven: transit},
		{name: "small, acknowledged just in time",
			script: script{small: true, acked: transit},
			looks:  []time.Duration{transit}, proven: transit},
		{name: "small, acknowledged late",
			script: script{small: true, acked: 251 * ms},
			looks:  []time.Duration{transit, 312_500 * time.Microsecond}, proven: 312_500*time.Microsecond + transit},
		{name: "small, answered",
			script: script{small: true, acked: ms, stop: 249 * ms}},
		{name: "small, closed",
			script: script{small: true, gone: ms},
			looks:  []time.Duration{transit}},
		{name: "small, of a system that does not say",
			script: script{small: true, unknown: true},
			looks:  []time.Duration{transit}, proven: transit},
		{name: "large, acknowledged at once",
			script: script{acked: ms},
			looks:  []time.Duration{5 * ms}, proven: 5*ms + transit},
		{name: "large, acknowledged after 22 ms",
			script: script{acked: 22 * ms},
			looks:  []time.Duration{5 * ms, 10 * ms, 15 * ms, 20 * ms, 25 * ms}, proven: 25*ms + transit},
		{name: "large, answered",
			script: script{acked: 22 * ms, stop: 12 * ms},
			looks:  []time.Duration{5 * ms, 10 * ms}},
		{name: "large, closed",
			script: script{gone: 12 * ms},
			looks:  []time.Duration{5 * ms, 10 * ms, 15 * ms}},
		{name: "large, of a system that does not say",
			script: script{unknown: true},
			looks:  []time.Duration{5 * ms}},
		{name: "large, never acknowledged",
			script: script{},
			looks:  []time.Duration{5 * ms, 10 * ms, 15 * ms, 20 * ms, 25 * ms, 31_250 * time.Microsecond}, count: 257},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := scripted()
				s := &test.script
				if by := s.start(w); by != time.Minute {
					t.Errorf("arrived by %v, want a minute", by)
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				looks := s.looks
				if test.count > 0 && len(looks) == test.count {
					for i, at := range looks[1:] {
						if gap := at - looks[i]; gap > mostBetween {
							t.Errorf("no look for %v", gap)
						}
					}
					looks = looks[:len(test.looks)]
				}
				if !slices.Equal(looks, test.looks) {
					t.Errorf("%d looks, at %v; want %v", len(looks), looks, test.looks)
				}
				want := []time.Duration{test.proven}
				if test.proven == 0 {
					want = nil
				}
				if !slices.Equal(s.proven, want) {
					t.Errorf("proven at %v, want %v", s.proven, want)
				}
				if len(w.pending) > 0 || !w.fires.IsZero() {
					t.Errorf("%d are pending, the timer is set for %v", len(w.pending), w.fires)
				}
				if s.Request != (Request{over: true}) {
					t.Errorf("%+v is held", s.Request)
				}
			})
		})
	}
}

// What cannot be asked is bounded at once, and costs no timer.
func TestNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		for _, test := range []struct {
			small   bool
			transit time.Duration
			want    time.Duration
		}{
			{small: true, transit: transit, want: transit},
			{small: false, transit: transit, want: time.Minute},
			{small: true, transit: time.Hour, want: time.Hour},
			{small: false, transit: time.Hour, want: time.Hour},
		} {
			for _, conn := range []net.Conn{nil, client, struct{ *net.TCPConn }{}} {
				var w Watch
				var r Request
				by := w.Written(&r, nil, conn, test.small, test.transit)
				if got := time.Until(by); got != test.want {
					t.Errorf("small %t, transit %v, %T: arrived by %v, want %v", test.small, test.transit, conn, got, test.want)
				}
				if w.timer != nil || len(w.pending) > 0 {
					t.Errorf("small %t, %T: watched", test.small, conn)
				}
			}
		}
	})
}

// An answer may come before net/http says that the request was written.
func TestStopBeforeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := scripted()
		var s script
		w.Stop(&s.Request)
		s.start(w)
		time.Sleep(time.Hour)
		if len(w.pending) > 0 || len(s.looks) > 0 {
			t.Errorf("is pending, and was looked at at %v", s.looks)
		}
	})
}

// Many requests at a time, stopped at random, are looked at as each alone would
// be.
func TestManyAtATime(t *testing.T) {
	if _, ok := newLook(new(net.TCPConn)); !ok {
		t.Skip("this system is not asked")
	}
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		random := func(within time.Duration) time.Duration {
			if rng.IntN(4) == 0 {
				return 0
			}
			return time.Duration(rng.Int64N(int64(within))) + 1
		}
		w := scripted()
		var scripts []*script
		for range 2000 {
			s := &script{small: rng.IntN(2) == 0, acked: random(2 * time.Second), gone: random(20 * time.Second), stop: random(5 * time.Second)}
			scripts = append(scripts, s)
			s.start(w)
			time.Sleep(random(3 * ms))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		for _, s := range scripts {
			if err := s.check(); err != nil {
				t.Errorf("small %t, acked %v, gone %v, stop %v: %v", s.small, s.acked, s.gone, s.stop, err)
			}
		}
	})
}

// check holds what s saw against the rule. At one instant, a stop and a look may
// come in any order.
func (s *script) check() error {
	age := leastBetween
	if s.small {
		age = transit
	}
	var proven []time.Duration
	for i := 0; ; i++ {
		if age >= s.stop && s.stop > 0 || age >= giveUp {
			if len(s.looks) != i {
				return fmt.Errorf("%d looks, want %d", len(s.looks), i)
			}
			break
		}
		if i >= len(s.looks) || s.looks[i] != age {
			return fmt.Errorf("looks at %v, want one at %v", s.looks, age)
		}
		if s.gone > 0 && age >= s.gone {
			break
		}
		if s.acked > 0 && age >= s.acked {
			if i == 0 && s.small {
				proven = append(proven, age)
			} else {
				proven = append(proven, age+transit)
			}
			break
		}
		age += min(max(leastBetween, age/4), mostBetween)
	}
	if !slices.Equal(proven, s.proven) {
		return fmt.Errorf("proven at %v, want %v", s.proven, proven)
	}
	return nil
}
