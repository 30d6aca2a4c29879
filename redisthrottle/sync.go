package redisthrottle

import (
	"cmp"
	"log/slog"
	"math"
	"time"

	"example.com/clarifaihttp/internal/gate"
)

// sync has the script called: once, if a call is under way. It requires mu.
func (l *Limiter) sync() {
	if l.syncing {
		l.again = true
		return
	}
	l.syncing = true
	go l.run()
}

// run calls the script for as long as there is something to do. While Redis is
// away, it is the one who tries, and there is no other. It ends with its client,
// which lose replaces.
func (l *Limiter) run() {
	l.lock()
	defer l.unlock()
	client := l.client
	for {
		if l.away != nil {
			wait := time.Until(l.tried.Add(l.retry))
			l.retry = min(2*l.retry, retryLate)
			l.unlock()
			time.Sleep(wait)
			l.lock()
			if l.expire(time.Now()); !l.wanted(time.Now()) {
				break
			}
		}
		l.again = false
		o, takes := l.order(time.Now()), l.cannotTake
		l.unlock()
		r, err := l.call(client, o)
		if err != nil && o.clock == 0 && plain(l.secure) {
			err = errPlain
		}
		name := ""
		if err == nil && takes {
			name, err = l.blmove(client, time.Millisecond)
		}
		l.lock()
		now := time.Now()
		if name = cmp.Or(name, r.Token); name != "" {
			l.came(name, o.sent)
		}
		if l.client != client {
			return // BLMOVE found first that Redis is away
		}
		l.tried = now
		if err != nil {
			l.lose(err)
			return
		}
		l.cannotTake = l.cannotTake && !takes
		l.apply(o, r, now)
		if l.away == nil && !l.again && !l.errand(now) {
			break
		}
	}
	l.syncing = false
	l.schedule(time.Now())
	l.end()
	l.wake()
}

// wanted reports whether Redis is of use to anybody. It requires mu.
func (l *Limiter) wanted(now time.Time) bool {
	return l.waiting || l.errand(now) || l.pause.After(now)
}

// order collects what is to be done now. It requires mu.
func (l *Limiter) order(now time.Time) order {
	p := gate.NewPace(cmp.Or(l.view.Limit, l.config.Limit), l.config.Window)
	p.State = l.pace
	o := order{sent: now, takes: l.takes, want: l.waiting && len(l.asked) == 0 && l.granted(now) == nil, known: l.view.Number, until: l.pause, pause: l.pause.Sub(now)}
	if rate := p.Rate(now); !math.IsInf(rate, 1) {
		o.gap = time.Duration(float64(time.Second) / rate)
	}
	if o.pause > 0 {
		p.Cut(now)
		o.cut = p.State
	}
	if !l.synced.IsZero() {
		o.clock = l.view.Now + float64(now.Sub(l.synced))/float64(time.Millisecond)
	}
	if l.view.Left > 0 && !now.Before(l.pausedUntil) {
		o.over = l.view.Number
	}
	for _, t := range l.held {
		if how, _ := l.nextStep(t, now); how != "" && len(o.errands) < maxErrands {
			o.errands = append(o.errands, errand{how, t.name})
			o.tokens = append(o.tokens, t)
		}
	}
	return o
}

// apply notes what a call has done. It requires mu.
func (l *Limiter) apply(o order, r reply, now time.Time) {
	before := l.view
	l.view, l.synced, l.distance = r, o.sent, now.Sub(o.sent)
	l.view.Care, l.view.Names = nil, nil
	if o.want && o.takes == l.takes {
		l.connected = time.Time{} // by this call, if any: there was no other
	}
	if l.away != nil && !l.cannotTake {
		l.found(now)
	}
	if l.pause.Equal(o.until) {
		l.pause = time.Time{}
	}
	paused := now.Add(time.Duration(r.Left * float64(time.Millisecond)))
	if r.Left == 0 || before.Left == 0 || before.Number != r.Number || paused.Before(l.pausedUntil) {
		l.pausedUntil = paused
	}
	at := func(ms float64) time.Time {
		if ms == 0 {
			return time.Time{}
		}
		return now.Add(time.Duration((ms - r.Now) * float64(time.Millisecond)))
	}
	l.pace = gate.State{ThrottledAt: at(r.Throttled), ResumedAt: at(r.Resumed), CutAt: at(r.Cut), Max: r.From, Low: r.To}

	for i, t := range o.tokens {
		switch name := r.Names[i]; {
		case o.errands[i].how != "renew":
			t.name, t.due = "", now // dropped by expire
			continue
		case name != "":
			t.name = name
		}
		t.renewed, t.told = o.sent, r.ID
	}
	l.expire(now)
	for name, ms := range r.Care {
		l.giveBackAt(now.Add(time.Duration(ms)*time.Millisecond), name, "delayed")
	}
	l.turnOfNext = time.Time{}
	for _, t := range l.held {
		if t.how == "delayed" && (l.turnOfNext.IsZero() || t.due.Before(l.turnOfNext)) {
			l.turnOfNext = t.due
		}
	}
	if r.Left > 0 {
		l.refuse(now)
	}
	l.logState(before)
	l.wake()
}

// logState logs that a pool's state has changed. It requires mu.
func (l *Limiter) logState(before reply) {
	switch r := &l.view; {
	case before.State != r.State && r.State == silent:
		l.log(slog.LevelInfo, "tokens are made anew, after a silence", "silence", l.silence)
	case before.State != r.State && r.State == foreign:
		l.log(slog.LevelWarn, "others use the account at other settings, requests wait",
			"window", l.config.Window, "theirs", time.Duration(r.Window)*time.Millisecond)
	case before.State != r.State && before.State != "":
		l.log(slog.LevelInfo, "tokens are there")
	case before.Limit != r.Limit && r.Limit < l.config.Limit:
		l.log(slog.LevelWarn, "others use the account at other settings, theirs rule", "limit", l.config.Limit, "theirs", r.Limit)
	}
}
