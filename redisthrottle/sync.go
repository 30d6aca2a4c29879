package redisthrottle

import (
	"errors"
	"log/slog"
	"time"
)

var errSlow = errors.New("no answer in time")

const (
	retrySoon = 100 * time.Millisecond // the first try after a call that failed
	retryLate = time.Second            // and the last ones
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
// away, it is the one who tries, and there is no other.
func (l *Limiter) run() {
	l.lock()
	defer l.unlock()
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
		o := l.order(time.Now())
		l.unlock()
		r, err := l.timed(o)
		l.lock()
		now := time.Now()
		l.tried = now
		if err != nil {
			l.lose(err)
			continue
		}
		l.apply(o, r, now)
		if !l.again && !l.errand(now) {
			break
		}
	}
	l.syncing = false
	l.schedule(time.Now())
	l.change()
}

// timed is call, but Redis is taken to be away when its patience is over.
func (l *Limiter) timed(o order) (reply, error) {
	slow := time.AfterFunc(patience, func() {
		l.lock()
		defer l.unlock()
		l.lose(errSlow)
	})
	defer slow.Stop()
	return l.call(o)
}

// wanted reports whether Redis is of use to anybody. It requires mu.
func (l *Limiter) wanted(now time.Time) bool {
	return l.waiting || l.errand(now) || l.pause.After(now)
}

// order collects what is to be done now. It requires mu.
func (l *Limiter) order(now time.Time) order {
	holding, _ := l.unarrived(now)
	o := order{
		holding: holding,
		until:   l.pause,
		pause:   l.pause.Sub(now),
		observe: now.Sub(l.seen) >= l.tick,
	}
	for _, t := range l.held {
		if how, _ := l.act(t, now); how != "" && t.name != "" {
			o.errands = append(o.errands, errand{how, t.name})
			o.gaveBack = append(o.gaveBack, t)
		}
	}
	if v := &l.view; v.paused && !now.Before(v.pausedUntil) {
		o.over = v.number
	}
	if l.away != nil || now.Sub(l.synced) > 2*l.tick {
		return o // what is silent may only have been unheard
	}
	if l.view.state != ready && now.Sub(l.watched) >= l.gone {
		o.silent = l.view.watch
	}
	for name, since := range l.others {
		if now.Sub(since) >= l.gone {
			o.errands = append(o.errands, errand{"sent", name})
		}
	}
	return o
}

// apply notes what a call has done. It requires mu.
func (l *Limiter) apply(o order, r reply, now time.Time) {
	l.found(now)
	if now.Sub(l.synced) > 2*l.tick {
		l.forget()
	}
	l.synced = now
	if l.pause.Equal(o.until) {
		l.pause = time.Time{}
	}

	for i, t := range o.gaveBack {
		switch {
		case o.errands[i].how != "renew":
			t.name, t.due = "", now // dropped by expire
		case t.name != "":
			t.name, t.renewed = generation(t.name), now
		}
	}
	for _, e := range o.errands[len(o.gaveBack):] {
		delete(l.others, e.name)
	}
	l.expire(now)
	for i, e := range r.care {
		l.keep(e.name, e.how, now.Add(r.turns[i]))
	}

	before := l.view
	l.view = r.view
	l.view.paused = r.left > 0
	l.view.pausedUntil = now.Add(r.left)
	if before.paused && before.number == r.number {
		l.view.pausedUntil = earlier(l.view.pausedUntil, before.pausedUntil)
	}
	if before.watch != r.watch {
		l.watched = now
	}
	if before.state != r.state {
		l.tell(before.state)
	}
	if o.observe {
		l.observe(r.taken, now)
	}
	l.change()
}

// observe notes since when the tokens in taken have been there. It requires mu.
func (l *Limiter) observe(taken []string, now time.Time) {
	l.seen = now
	others := make(map[string]time.Time)
	for _, name := range taken {
		since, ok := l.others[name]
		if !ok {
			since = now
		}
		others[name] = since
	}
	for _, t := range l.held {
		delete(others, t.name)
	}
	l.others = others
}

// forget begins to observe anew: for a while nothing was heard of the others.
// It requires mu.
func (l *Limiter) forget() {
	l.others = nil
	l.seen = time.Time{}
	l.view.watch = ""
}

// tell logs that a pool's state has changed. It requires mu.
func (l *Limiter) tell(before string) {
	switch l.view.state {
	case silence:
		l.log(slog.LevelInfo, "tokens are made anew, after a silence", "silence", l.gone)
	case foreign:
		l.log(slog.LevelWarn, "others use the account at other settings, requests wait",
			"limit/window/transit", l.settings(), "theirs", l.view.settings)
	case ready:
		if before != "" {
			l.log(slog.LevelInfo, "tokens are there")
		}
	}
}
