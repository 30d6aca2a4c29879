package clarifaihttp_test

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// A modelPace is RFC 9438's curve.
type modelPace struct {
	scale                   float64
	cutAt, resumed, lastBad time.Time
	wmax, low               float64
	last                    time.Time // start
	least, most             float64   // rates since then
}

func (p *modelPace) rate(at time.Time) float64 {
	if p.cutAt.IsZero() || at.Sub(p.lastBad) >= time.Hour {
		return math.Inf(1)
	}
	const k = 140
	x := max(at.Sub(p.resumed).Seconds(), 0) - k
	c := (p.wmax - p.low) / (k * k * k)
	if x > 0 {
		c = max(c, 1e-6*p.scale)
	}
	return min(p.wmax+c*x*x*x, 14*p.scale)
}

// change notes the rates before and after f.
func (p *modelPace) change(at time.Time, f func()) {
	before := p.rate(at)
	f()
	p.least = min(p.least, before, p.rate(at))
	p.most = max(p.most, before, p.rate(at))
}

func (p *modelPace) cut(at time.Time, before float64) {
	factor := 0.8
	if !p.cutAt.IsZero() && at.Sub(p.cutAt) < 30*time.Second {
		factor = 0.5
	}
	p.wmax = min(before, 14*p.scale)
	p.low = max(factor*p.wmax, 0.5*p.scale)
	p.cutAt = at
}

func (p *modelPace) start(at time.Time) {
	p.last = at
	p.least, p.most = p.rate(at), p.rate(at)
}

// surely returns when the next start may be for sure.
func (p *modelPace) surely(at time.Time) time.Time {
	least := min(p.least, p.rate(at))
	if p.last.IsZero() || math.IsInf(least, 1) {
		return p.last
	}
	return p.last.Add(time.Duration(1/least*1e9) + 3*time.Microsecond)
}

// never reports whether a start now is too early for sure.
func (p *modelPace) never(at time.Time) bool {
	most := max(p.most, p.rate(at))
	return !p.last.IsZero() && !math.IsInf(most, 1) && at.Sub(p.last).Seconds()*most < 1-1e-6
}

// join puts c in the line, or has it refused.
func (m *model) join(c *caller) {
	now := time.Now()
	c.underWay = false
	ahead := 0
	for _, other := range m.line {
		if before(other, c) < 0 && !m.goesBefore(c, other) {
			ahead++
		}
	}
	if m.late(c, ahead, now) {
		m.refuse(c, ahead, now)
		return
	}
	m.line = append(m.line, c)
	slices.SortFunc(m.line, before)
}

func before(a, b *caller) int {
	return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.number, b.number))
}

// queue puts c in the line as the last of a class.
func (m *model) queue(c *caller, class int) {
	m.arrivals++
	c.place = place{class, m.arrivals}
	m.join(c)
}

// leave takes c out of the line, and reports whether it was in.
func (m *model) leave(c *caller) bool {
	i := slices.Index(m.line, c)
	if i >= 0 {
		m.line = slices.Delete(m.line, i, i+1)
	}
	return i >= 0
}

// earliest is the bound for one with so many ahead, who has time until by.
func (m *model) earliest(ahead int, by, now time.Time) time.Time {
	limit := m.limit
	if !m.restored.After(by) {
		limit = m.configured
	}
	resumed := now
	if m.pausedUntil.After(now) {
		resumed = m.pausedUntil
	}
	at := resumed.Add(time.Duration(ahead/limit) * m.hold)

	free := max(limit-m.held(now), 0)
	soonest := now.Add(m.hold)
	for _, w := range m.wires {
		if !m.holds(w, now) {
			continue
		}
		if !w.got {
			free++ // it may fail at once
		}
		switch {
		case connecting(w) && w.lapses.Before(soonest):
			soonest = w.lapses
		case !w.until.IsZero() && w.until.Add(m.hold).Before(soonest):
			soonest = w.until.Add(m.hold)
		}
	}
	if p := ahead - free; p >= 0 {
		if slot := soonest.Add(time.Duration(p/limit) * m.hold); slot.After(at) {
			at = slot
		}
	}
	if paced := resumed.Add(time.Duration(float64(ahead) / m.pace.rate(by) * 1e9)); paced.After(at) {
		at = paced
	}
	return at
}

func (m *model) late(c *caller, ahead int, now time.Time) bool {
	return !c.deadline.IsZero() && c.class != holders && m.earliest(ahead, c.deadline, now).After(c.deadline)
}

func (m *model) refuse(c *caller, ahead int, now time.Time) {
	if c.throttled > 0 {
		m.ends(c, result{status: 429})
	} else {
		m.ends(c, result{wait: m.earliest(ahead, c.deadline, now).Sub(now)})
	}
}

// scan looks through the line for those who are too late now.
func (m *model) scan() {
	now := time.Now()
	var stay []*caller
	for _, c := range m.line {
		ahead := 0
		for _, other := range stay {
			if !m.goesBefore(c, other) {
				ahead++
			}
		}
		if m.late(c, ahead, now) {
			m.refuse(c, ahead, now)
		} else {
			stay = append(stay, c)
		}
	}
	m.line = stay
	m.scanned = m.pausedUntil
}

// ends notes how c's RoundTrip must have ended now.
func (m *model) ends(c *caller, r result) {
	r.at = time.Now()
	m.expected[c] = r
	c.over, c.underWay = true, false
}

// letGo compares those who were sent with those who may go.
func (m *model) letGo() { m.letGoBefore(time.Now().Add(1)) }

// letGoBefore is letGo for those who were sent before now, if end is now.
func (m *model) letGoBefore(end time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		at := time.Now()
		for _, start := range m.started {
			if start.Before(at) {
				at = start
			}
		}
		if !at.Before(end) {
			return
		}
		m.tick(at)
		if len(m.line) == 0 {
			return
		}
		c := m.next()
		start, gone := m.started[c]
		gone = gone && start.Equal(at)
		why := m.blocked(at)
		sure := why == "" && !m.pace.surely(at).After(at)
		if m.takesBack(c, at) {
			continue
		}
		from := m.lender(c, at)
		if from != nil && from.pauses != m.pauses {
			from = nil
		}
		// Where the pace is not known, who has more slots than before was let go.
		takesOver := from != nil && (m.th.Limiter != nil || why != "" || !sure && m.th.Stats().Held <= m.held(at))
		switch {
		case takesOver && !gone:
			m.failf("the first in line holds a connection and waits, although it could take over a slot")
		case takesOver:
			m.giveBack(from)
		case gone && why != "":
			m.failf("the first in line was sent at %v, %s", m.since(at), why)
		case !gone && sure:
			m.failf("the first in line waits, although it could go")
		case !gone:
			return
		default:
			m.pace.start(at)
		}
		delete(m.started, c)
		m.leave(c)
		m.send(c, at)
	}
}

// next returns who is first in line. A probe that failed, and a call that had a
// bare 429, are no probe if there is anyone else.
func (m *model) next() *caller {
	for _, c := range m.line {
		if m.probing && m.probe == nil && c.standsAside() {
			continue
		}
		return c
	}
	return m.line[0]
}

// standsAside reports whether others are to be the probe.
func (c *caller) standsAside() bool { return c.badProbe || c.bare > 0 }

// goesBefore reports whether c may be the probe, and other, which is ahead of it,
// not.
func (m *model) goesBefore(c, other *caller) bool {
	return m.probing && other.standsAside() && !c.standsAside()
}

// blocked returns why nobody may go.
func (m *model) blocked(at time.Time) string {
	switch {
	case at.Before(m.pausedUntil):
		return "during the pause"
	case m.probe != nil:
		return "beside the probe"
	case m.held(at) >= m.limit:
		return "without a slot"
	case m.pace.never(at):
		return "faster than the pace"
	}
	return ""
}

// lender returns whom c takes over from: who was let go last of those who wait
// for a connection, if c holds one. But nothing goes in the pause, or beside a
// probe.
func (m *model) lender(c *caller, at time.Time) (last *wireRequest) {
	if c.class != holders || at.Before(m.pausedUntil) {
		return nil
	}
	for _, w := range m.wires {
		if connecting(w) && (last == nil || w.order > last.order) {
			last = w
		}
	}
	if m.probe != nil && m.probe != last {
		return nil
	}
	return last
}

// takesBack has the lender for c give back its slot, if it must wait again itself,
// after a pause, and the slot is needed. It reports whether it does.
func (m *model) takesBack(c *caller, at time.Time) bool {
	from := m.lender(c, at)
	if from == nil || from.pauses == m.pauses || m.held(at) < m.limit && m.th.Limiter == nil {
		return false
	}
	m.giveBack(from)
	return true
}

// send has c sent, or sent on the connection that it holds.
func (m *model) send(c *caller, at time.Time) {
	w := c.wire
	m.take(c, at)
	switch {
	case m.probing && m.probe == nil:
		w.probe = true
		m.probe, m.probeEnd = w, at.Add(m.backoff)
	case c.bare == 0:
		w.probe = false
		m.run = append(m.run, w)
	default:
		w.probe = false
	}
}

// take gives c a slot.
func (m *model) take(c *caller, at time.Time) {
	w := c.wire
	m.letGos++
	w.start, w.order, w.pauses = at, m.letGos, m.pauses
	w.slot, w.until = true, time.Time{}
	if c.class == holders || m.th.Transit >= 0 {
		w.until = at.Add(time.Minute)
	}
	if !w.counted {
		w.counted = true
		m.attempts++
	}
	c.underWay, c.patience = true, time.Time{}
}
