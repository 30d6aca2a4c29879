package redisthrottle

import (
	"strconv"
	"strings"
	"time"
)

// A token is in the care of this process: taken, in Redis's terms. One without
// a name is of the process's own share.
type token struct {
	name    string
	sent    bool      // a request was let go with it
	how     string    // pool.lua's word for giving it back
	due     time.Time // when to give it back; zero: the request has not arrived
	renewed time.Time // when its generation was known to be new
}

// hand notes that a request is let go with the token of that name. It requires
// mu.
func (l *Limiter) hand(name string, now time.Time) {
	l.held = append(l.held, &token{name: name, sent: true, how: "sent", renewed: now})
	l.schedule(now)
}

// keep notes that a token that no request uses is to be given back at the
// instant given. It requires mu.
func (l *Limiter) keep(name, how string, due time.Time) {
	now := time.Now()
	l.held = append(l.held, &token{name: name, how: how, due: due, renewed: now})
	l.schedule(now)
}

// act returns what is to be done with t now, or else when. It requires mu.
func (l *Limiter) act(t *token, now time.Time) (how string, at time.Time) {
	renew := t.renewed.Add(l.gone / 3)
	switch {
	case !t.due.IsZero() && !t.due.After(now):
		return t.how, t.due
	case t.name == "" && t.due.IsZero():
		return "", now.Add(maxDuration)
	case t.name == "":
		return "", t.due
	case !renew.After(now):
		return "renew", now
	case t.due.IsZero():
		return "", renew
	}
	return "", earlier(t.due, renew)
}

// schedule has the tokens given back and renewed in time. It requires mu.
func (l *Limiter) schedule(now time.Time) {
	l.expire(now)
	if l.syncing || len(l.held) == 0 {
		return // the end of the call comes here
	}
	at := now.Add(maxDuration)
	for _, t := range l.held {
		_, when := l.act(t, now)
		at = earlier(at, when)
	}
	if l.timer == nil {
		l.timer = time.AfterFunc(at.Sub(now), func() {
			l.lock()
			defer l.unlock()
			l.expire(time.Now())
			if l.errand(time.Now()) {
				l.sync()
			} else {
				l.schedule(time.Now())
			}
		})
		return
	}
	l.timer.Reset(at.Sub(now))
}

// expire drops the tokens without a name whose time has come, and those that
// could not be given back for so long that others will do it, unless somebody
// waits for Redis anyway. It requires mu.
func (l *Limiter) expire(now time.Time) {
	kept := l.held[:0]
	for _, t := range l.held {
		if t.name == "" && !t.due.IsZero() && !t.due.After(now) ||
			l.away != nil && !l.waiting && !t.due.IsZero() && now.Sub(t.due) > l.gone {
			continue
		}
		kept = append(kept, t)
	}
	if len(kept) == len(l.held) {
		return
	}
	clear(l.held[len(kept):])
	l.held = kept
	l.change()
}

// errand reports whether a token is to be given back or renewed now. It
// requires mu.
func (l *Limiter) errand(now time.Time) bool {
	for _, t := range l.held {
		if how, _ := l.act(t, now); how != "" && t.name != "" {
			return true
		}
	}
	return false
}

// returning reports whether a token is on its way back. It requires mu.
func (l *Limiter) returning() bool {
	for _, t := range l.held {
		if t.name != "" && !t.due.IsZero() && t.how != "paced" {
			return true
		}
	}
	return false
}

// unarrived counts the requests that were let go and may yet arrive within a
// window of others, and says when one of them is known no longer to. It
// requires mu.
func (l *Limiter) unarrived(now time.Time) (n int, until time.Time) {
	until = now.Add(maxDuration)
	for _, t := range l.held {
		switch {
		case !t.sent || !t.due.IsZero() && !t.due.After(now):
			continue
		case !t.due.IsZero():
			until = earlier(until, t.due)
		}
		n++
	}
	return n, until
}

// generation returns the name that pool.lua gives a token when it is renewed.
func generation(name string) string {
	i := strings.LastIndexByte(name, '.')
	n, _ := strconv.ParseInt(name[i+1:], 10, 64) // as the script made it
	return name[:i+1] + strconv.FormatInt(n+1, 10)
}
