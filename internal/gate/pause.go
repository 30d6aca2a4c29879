package gate

import "time"

// hungProbes is how many probes may wait for a dial in vain before others go, too.
const hungProbes = 3

// A pause is what the account does after a throttled response. It is in one of four
// states:
//
//	         a throttled response
//	open ───────────────────────────> paused <──────────────┐
//	 ^                                  │ its end           │ the probe is throttled:
//	 │                                  v                   │ twice as long
//	 │                                 due <─────┐          │
//	 │                 a request is let go       │ the probe fails, is canceled, or
//	 │                                  v        │ comes back as a bare 429
//	 └────────────────────────────── probing ────┴──────────┘
//	  the probe is served, or over by time, or the third that hangs
//
// Open, all requests may go. Due, one may go: the probe. Paused and probing, none
// may. Served is each response that is not throttled, a 500, too. Of three probes in
// a row that come back as bare 429s, the third is a throttled probe.
//
// A throttled response to a request that was let go before the latest pause began
// does not begin another one. It may extend that pause while it lasts (see extend).
// If all fields below the settings are zero, the state is open.
type pause struct {
	backoff, max, window time.Duration // settings

	count      int       // pauses begun; a ticket keeps the number of when it was let go
	until      time.Time // end of the latest
	row        int       // throttled probes in a row
	unproven   bool      // nothing was served since the latest began
	suspicious bool      // the latest began for bare 429s: others may extend it
	wanted     bool      // after until, the state is due or probing, not open
	probe      *Ticket   // under way; nil: none
	over       time.Time // when the probe is over by time
	bare       int       // probes in a row that came back as bare 429s
	hung       int       // probes since the latest began whose dials hang
}

func (p *pause) paused(now time.Time) bool { return now.Before(p.until) }

// due reports whether the next to be let go is the probe.
func (p *pause) due() bool { return p.wanted && p.probe == nil }

// begin begins a pause for v, the answer to tk.
func (p *pause) begin(tk *Ticket, v Verdict, now time.Time) {
	if tk.probe {
		p.row++
	} else {
		p.row = 0
	}
	p.count++
	p.until = now.Add(p.wait(v, p.row))
	p.unproven, p.suspicious = true, v.Bare
	p.wanted, p.probe, p.bare, p.hung = true, nil, 0, 0
}

// wait returns how long to pause for v, after so many probes that were
// throttled: what it asks for, but then not so little that all retries are spent
// at once.
func (p *pause) wait(v Verdict, row int) time.Duration {
	if v.Asked && row > 0 {
		return max(p.bounded(v), double(p.window, row, p.max))
	}
	return p.rest(v, row)
}

// rest returns how long a call waits by itself after so many bare 429s before
// v, which is one, too.
func (p *pause) rest(v Verdict, before int) time.Duration {
	switch {
	case !v.Asked:
		return double(p.backoff, before, p.max)
	case before > 0:
		return max(p.bounded(v), p.window)
	}
	return p.bounded(v)
}

// double returns d, doubled n times, but not beyond max.
func double(d time.Duration, n int, max time.Duration) time.Duration {
	for range n {
		d = min(2*d, max)
	}
	return d
}

// extend puts off the end for v, the answer to a request that was under way
// when the pause began: some servers start their halt again at each request. A
// bare 429 is no reason where the pause is for a throttled account.
func (p *pause) extend(v Verdict, now time.Time) {
	wait := p.backoff
	if v.Asked {
		wait = p.bounded(v)
	}
	if p.paused(now) && (p.suspicious || !v.Bare) {
		p.until = later(p.until, now.Add(wait))
	}
}

// bounded returns the pause that v asks for, or the longest if that is absurd.
func (p *pause) bounded(v Verdict) time.Duration {
	if p.absurd(v) {
		return p.max
	}
	return v.RetryAfter
}

// absurd reports whether v asks for a pause that is too long to sit out.
func (p *pause) absurd(v Verdict) bool { return v.RetryAfter > 4*p.max }

// tick drops a probe that is over by time: throttled responses come back fast,
// inference does not.
func (p *pause) tick(now time.Time) {
	if p.probe != nil && !now.Before(p.over) {
		p.wanted, p.probe = false, nil
	}
}

// letGo makes tk the probe, if one is due.
func (p *pause) letGo(tk *Ticket, now time.Time) {
	tk.probe = p.due()
	if tk.probe {
		p.probe = tk
		p.over = now.Add(p.backoff)
	}
}

// written notes that tk was written.
func (p *pause) written(tk *Ticket, now time.Time) {
	if p.probe == tk {
		p.over = earlier(p.over, now.Add(p.window))
	}
}

// lost notes that nothing will come of tk: if it is the probe, the next one is
// due.
func (p *pause) lost(tk *Ticket) {
	if p.probe == tk {
		p.probe = nil
	}
}

// hangs notes that tk waits too long for a dial. If it is the probe, the
// next one is due; after some of them probing is over, for those behind them
// would wait for each.
func (p *pause) hangs(tk *Ticket) {
	if p.probe == tk {
		p.probe = nil
		p.hung++
		p.wanted = p.hung < hungProbes
	}
}

// served notes that tk was answered, and not throttled. It reports whether it
// is the first since the latest pause began.
func (p *pause) served(tk *Ticket) (recovered bool) {
	if tk.pauses == p.count {
		recovered, p.unproven = p.unproven, false
	}
	if p.probe == tk {
		p.wanted, p.probe = false, nil
	}
	return recovered
}

// bareProbe notes that the probe came back as a bare 429. It may be to blame
// itself: only the third in a row is a throttled probe.
func (p *pause) bareProbe() (throttled bool) {
	p.probe = nil
	p.bare++
	return p.bare == bareRun
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
