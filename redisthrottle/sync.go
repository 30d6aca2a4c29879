package redisthrottle

import (
	"cmp"
	"log/slog"
	"math"
	"slices"
	"time"

	"example.com/clarifaihttp/internal/gate"
)

// plan calls the script when a call is due, now or by the timer. After Close it
// closes the connections when no call is due any more. It requires mu.
func (l *Limiter) plan(now time.Time) {
	// Tokens that this process could not give back for D are lost: others free them.
	l.held = slices.DeleteFunc(l.held, func(t *token) bool {
		return t.how == "" || t.name == "" && !t.due.After(now) ||
			l.away != nil && !l.waiting && now.Sub(t.due) > l.silence
	})
	if l.syncing || l.hungUp {
		return // when the call ends, it plans again
	}
	if l.closed && len(l.held) == 0 && l.asked == 0 {
		l.hungUp = true
		l.hangUp(l.client)
		return
	}
	at := never
	if l.pause.After(now) && l.view.State != foreign || l.waiting && l.away != nil {
		at = now
	}
	for _, t := range l.held {
		_, next := l.nextStep(t, now)
		at = earlier(at, next)
	}
	if l.away != nil && at.Before(never) {
		at = later(at, l.tried.Add(l.retry))
	}
	switch {
	case !at.After(now):
		l.sync()
	case at.Before(never):
		l.timer.Reset(at.Sub(now))
	}
}

// sync starts a call of the script, unless one is under way. It requires mu.
func (l *Limiter) sync() {
	if !l.syncing {
		l.syncing = true
		go l.run()
	}
}

// run calls the script once.
func (l *Limiter) run() {
	l.lock()
	client, losses, away := l.client, l.losses, l.away != nil
	o := l.order(time.Now())
	l.unlock()
	r, err := l.call(client, o)
	name := ""
	if err == nil && away { // perhaps only BLMOVE fails
		name, err = l.blmove(client, time.Millisecond)
	}
	l.lock()
	defer l.unlock()
	now := time.Now()
	l.came(r.Token, o.sent)
	l.came(name, o.sent) // earlier than it was asked for
	switch {
	case losses != l.losses: // BLMOVE found first that Redis is away
	case err != nil:
		l.wentAway(err)
	default:
		l.syncing, l.tried = false, now
		l.apply(o, r, now)
	}
	l.plan(now)
	l.wake()
}

// order collects what is to be done now. It requires mu.
func (l *Limiter) order(now time.Time) order {
	p := gate.NewPace(cmp.Or(l.view.Limit, l.config.Limit), l.config.Window)
	p.State = l.pace
	o := order{sent: now, patience: patience, takes: l.takes, want: l.waiting && l.asked == 0 && l.granted(now) == nil, known: l.view.Number, until: l.pause, pause: l.pause.Sub(now)}
	if rate := p.Rate(now); !math.IsInf(rate, 1) {
		o.gap = time.Duration(float64(time.Second) / rate)
	}
	if o.pause > 0 {
		p.Cut(now)
		o.cut = p.State
	}
	if !l.synced.IsZero() {
		o.patience = min(max(callPatience, 4*l.distance), patience)
		o.clock = l.view.Now + float64(now.Sub(l.synced))/float64(time.Millisecond)
	}
	if l.view.Left > 0 && !now.Before(l.pausedUntil) {
		o.over = l.view.Number
	}
	for _, t := range l.held {
		if how, _ := l.nextStep(t, now); how != "" {
			if how != "renew" {
				t.due = earlier(t.due, now) // granted must not return it any more
			}
			o.changes = append(o.changes, change{how, t.name})
			o.tokens = append(o.tokens, t)
		}
	}
	return o
}

// apply notes what a call has done. It requires mu.
func (l *Limiter) apply(o order, r reply, now time.Time) {
	before := l.view
	l.view, l.synced, l.distance = r, o.sent, now.Sub(o.sent)
	l.askBy = later(l.askBy, o.sent.Add(askWithin))
	if o.want && o.takes == l.takes {
		l.connected = time.Time{} // only this call can have made it, and it was answered
	}
	if l.away != nil {
		l.cameBack(now)
	}
	if l.pause.Equal(o.until) && r.State != foreign {
		l.pause = time.Time{}
	}
	if r.ID != before.ID && l.pausedUntil.After(now) {
		l.pause = later(l.pause, l.pausedUntil) // the new pool does not know it
	}
	paused := now.Add(time.Duration(r.Left * float64(time.Millisecond)))
	if r.State != silent && (r.Left == 0 || before.Left == 0 || before.Number != r.Number || paused.Before(l.pausedUntil)) {
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
		t.renewed, t.name = o.sent, cmp.Or(r.Names[i], t.name)
		if o.changes[i][0] != "renew" {
			t.how = ""
		}
	}
	for name, ms := range r.Delays {
		l.giveBackAt(now.Add(time.Duration(ms)*time.Millisecond), name, "delayed")
	}
	l.turnOfNext = time.Time{}
	for _, t := range l.held {
		if t.how == "delayed" && (l.turnOfNext.IsZero() || t.due.Before(l.turnOfNext)) {
			l.turnOfNext = t.due
		}
	}
	l.logState(before)
}

// logState logs a change of the pool's state or limit. It requires mu.
func (l *Limiter) logState(before reply) {
	switch r := &l.view; {
	case before.State != r.State && r.State == silent:
		l.log(slog.LevelInfo, "waiting for a silence before tokens are made anew", "silence", l.silence)
	case before.State != r.State && r.State == foreign:
		l.log(slog.LevelWarn, "other processes use other settings, requests wait",
			"window", l.config.Window, "theirs", time.Duration(r.Window)*time.Millisecond)
	case before.State != r.State && before.State != "":
		l.log(slog.LevelInfo, "tokens are ready")
	case before.Limit != r.Limit && r.Limit < l.config.Limit:
		l.log(slog.LevelWarn, "other processes use other settings, the lower limit is in force", "limit", l.config.Limit, "theirs", r.Limit)
	}
}
