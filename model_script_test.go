package clarifaihttp_test

import (
	"cmp"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// A permitter is a Limiter that permits all and counts.
type permitter struct{ permitted, arrived atomic.Int64 }

func (p *permitter) Wait(context.Context) error { p.permitted.Add(1); return nil }
func (p *permitter) Arrived()                   { p.arrived.Add(1) }

// follow turns bytes into a script and follows it.
func follow(t *testing.T, script []byte) {
	next := func() (b int) {
		if len(script) > 0 {
			b, script = int(script[0]), script[1:]
		}
		return b
	}
	durations := []time.Duration{0, ms, 10 * ms, 50 * ms, 100 * ms, 250 * ms, 300 * ms, 500 * ms, 1000 * ms, hold, 1260 * ms,
		2 * time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second, 61 * time.Second, 2 * time.Minute, time.Hour}

	config := next()
	th := &clarifaihttp.Throttle{Limit: []int{1, 2, 3, 15}[config&3]}
	switch config >> 2 & 3 {
	case 1:
		th.Transit = -1
	case 2:
		th.Window, th.Transit = 100*ms, time.Second
	case 3:
		th.Window, th.Transit = 10*time.Second, ms
	}
	if th.Window == 100*ms {
		durations[len(durations)-1] = time.Minute // an hour has too many windows
	}
	switch config >> 4 & 3 {
	case 1:
		th.Backoff, th.MaxBackoff = 500*ms, 2*time.Second
	case 2:
		th.Backoff = 70 * time.Second
	}
	if config>>6&1 != 0 {
		th.Limit = 4
	}
	limiter := new(permitter)
	if config>>7 != 0 {
		th.Limiter = limiter
	}
	more := next()
	m := &model{
		blind: more&1 != 0,
		t:     t, th: th, maxRetries: 1 + 9*(more>>1&1),
		limit: th.Limit, configured: th.Limit,
		window:   cmp.Or(th.Window, time.Second),
		transit:  cmp.Or(max(th.Transit, 0), 250*ms),
		backoff:  cmp.Or(th.Backoff, 15*time.Second),
		started:  make(map[*caller]time.Time),
		returned: make(map[*caller]result),
		expected: make(map[*caller]result),
	}
	m.hold = m.window + 10*ms
	m.maxBackoff = cmp.Or(th.MaxBackoff, max(60*time.Second, m.backoff))
	m.absurd = 4 * m.maxBackoff
	m.pace.scale = float64(th.Limit) / 15 / m.window.Seconds()
	m.rt = clarifaihttp.NewTransport(roundTripperFunc(m.base), clarifaihttp.WithThrottle(th),
		clarifaihttp.WithLogger(quiet), clarifaihttp.WithMaxRetries(m.maxRetries))

	// one of those who are at a stage; nil if there is none
	choose := func(stage func(*caller) bool) *caller {
		var among []*caller
		for _, c := range m.callers {
			if !c.over && stage(c) {
				among = append(among, c)
			}
		}
		n := next()
		if len(among) == 0 {
			return nil
		}
		return among[n%len(among)]
	}
	underWay := func(c *caller) bool { return c.underWay }
	asking := func(c *caller) bool { return c.underWay && !c.wire.asked }
	connecting := func(c *caller) bool { return c.underWay && !c.wire.got }
	connected := func(c *caller) bool { return c.underWay && c.wire.got }
	anyone := func(*caller) bool { return true }
	kind := func() int { return next() % kinds }
	throttled := func() refusal {
		n := next()
		return refusal{
			retryAfter: []time.Duration{-1, -1, -1, 0, time.Second, 7 * time.Second, 30 * time.Second, 1000 * time.Second}[n&7],
			limit:      []int{1000, 1000, 1000, 1000, 0, 10, 2, 1}[n>>3&7],
			bare:       n>>6 == 0,
		}
	}
	// So few callers that a run of bare 429s has them all.
	for len(script) > 0 && len(m.callers) < 45 {
		op := next()
		switch op % 25 {
		case 0, 1:
			m.arrive(false, 0)
		case 2:
			m.arrive(next()%4 == 0, durations[next()%len(durations)])
		case 3:
			for range next() % 20 {
				m.arrive(false, 0)
			}
		case 4, 5:
			m.pass(durations[next()%len(durations)] + time.Duration(next())*ms)
		case 6:
			if c := choose(asking); c != nil {
				m.ask(c)
			}
		case 7:
			for _, c := range m.callers {
				if asking(c) {
					m.ask(c)
				}
			}
		case 8, 9:
			if c := choose(connecting); c != nil {
				m.connect(c, kind())
				if op > 127 && connected(c) {
					m.write(c)
				}
			}
		case 10:
			if c := choose(func(c *caller) bool { return connected(c) && c.wire.written.IsZero() }); c != nil {
				m.write(c)
			}
		case 11:
			if c := choose(underWay); c != nil {
				m.answer(c, op > 127)
			}
		case 12, 13:
			if c := choose(underWay); c != nil {
				m.throttle(c, throttled())
			}
		case 14, 15:
			if c := choose(connected); c != nil {
				m.resend(c, kind())
			}
		case 16:
			if c := choose(underWay); c != nil {
				m.fail(c)
			}
		case 17:
			if c := choose(anyone); c != nil {
				m.cancel(c)
			}
		case 18:
			if c := choose(underWay); c != nil {
				m.throttle(c, refusal{bare: true, retryAfter: -1})
			}
		case 19: // one after the other
			r := throttled()
			r.bare = true
			n := next() % 4
			for _, c := range m.callers {
				if n > 0 && c.underWay {
					m.throttle(c, r)
					n--
				}
			}
		case 20: // one among several does not come back
			n := 0
			for _, c := range m.callers {
				switch {
				case n > 4 || !asking(c):
				case n == 1:
					m.connect(c, reused)
					if connected(c) {
						m.write(c)
					}
					m.pass(min(m.window, time.Duration(next())*10*ms))
					n++
				default:
					m.throttle(c, refusal{bare: true, retryAfter: -1})
					n++
				}
			}
		case 21: // a dial takes long, and then the server closes the connection
			if c := choose(asking); c != nil {
				m.ask(c)
				m.pass(durations[next()%11])
				if connecting(c) {
					m.connect(c, fresh)
				}
				m.pass(time.Second)
			}
		case 22: // a limit is named again and again
			limit := 1 + next()%2
			for range next() % 4 {
				if c := choose(underWay); c != nil {
					m.throttle(c, refusal{retryAfter: -1, limit: limit})
				}
				if m.limit == m.configured {
					break
				}
				m.pass([]time.Duration{30 * time.Minute, 59 * time.Minute, time.Hour, 2 * time.Hour}[next()%4])
			}
		case 23: // shortly before something ends
			end := m.pausedUntil
			if op > 127 {
				end = m.restored
				m.pass(max(0, time.Until(end.Add(-durations[next()%len(durations)]))))
			}
			if left := time.Until(end); left > 0 {
				m.arrive(false, left+time.Duration(next())*ms)
			}
		case 24: // throttled together
			for range next() % 4 {
				if c := choose(underWay); c != nil {
					m.throttle(c, refusal{retryAfter: -1, limit: 1000})
					m.pass(time.Duration(next()) * ms)
				}
			}
		}
	}
	m.finish()
	if p, a := limiter.permitted.Load(), limiter.arrived.Load(); p != a {
		t.Errorf("the Limiter gave %d permissions and was told of %d arrivals", p, a)
	}
}

// FuzzThrottle turns bytes into a script: requests arrive, are written,
// answered, throttled, canceled, fail, are sent again; time passes.
func FuzzThrottle(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for config := range 256 {
		script := []byte{byte(config), byte(rng.Uint32())}
		for range 20 + rng.IntN(200) {
			script = append(script, byte(rng.Uint32()))
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) { follow(t, script[:min(len(script), 1000)]) })
	})
}
