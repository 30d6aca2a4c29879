package redisthrottle

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A token is in the care of this process: taken, in Redis's terms. One without
// a name is of the process's own share.
type token struct {
	name    string
	asked   time.Time // when the one who waited did
	sent    bool      // a request was let go with it
	how     string    // pool.lua's word for giving it back
	due     time.Time // when to give it back; zero: the request has not arrived
	renewed time.Time // since when Redis knows that somebody has it, or before
	told    string    // the pool that knows of it
}

// of reports whether t is one of the tokens of that pool.
func (t *token) of(pool string) bool {
	rest, ok := strings.CutPrefix(t.name, pool)
	return ok && strings.HasPrefix(rest, ".")
}

// letGo notes that a request is let go with t. It requires mu.
func (l *Limiter) letGo(t *token, now time.Time) {
	t.sent, t.how, t.due = true, "sent", time.Time{}
	l.last = now
	l.schedule(now)
}

// giveBackAt notes that a token that no request uses is to be given back at the
// instant given. It requires mu.
func (l *Limiter) giveBackAt(due time.Time, name, how string) *token {
	now := time.Now()
	t := &token{name: name, how: how, due: due, renewed: now, told: l.view.ID}
	l.held = append(l.held, t)
	l.schedule(now)
	return t
}

// refuse has the tokens given back, at the instant given at the latest, that came
// and that no request has used. It requires mu.
func (l *Limiter) refuse(at time.Time) {
	for _, t := range l.held {
		if t.how == "unused" {
			t.due = earlier(t.due, at)
		}
	}
	l.schedule(time.Now())
}

// nextStep returns what is to be done with t now, or else when. It requires mu.
func (l *Limiter) nextStep(t *token, now time.Time) (how string, at time.Time) {
	renew := t.renewed.Add(l.tick)
	due := t.due
	if t.how == "sent" && !due.IsZero() && !l.closed && l.view.Phase == "open" {
		// Its turn comes after those that this process frees anyway.
		due = later(due, l.turnOfNext)
	}
	switch {
	case !due.IsZero() && !due.After(now):
		return t.how, due
	case t.sent && due.IsZero() && l.view.State == silent && t.told != l.view.ID:
		return "renew", now
	case t.name == "" && due.IsZero():
		return "", now.Add(maxDuration)
	case t.name == "":
		return "", due
	case !renew.After(now):
		return "renew", now
	case due.IsZero():
		return "", renew
	}
	return "", earlier(due, renew)
}

// schedule has the tokens given back and renewed in time. It requires mu.
func (l *Limiter) schedule(now time.Time) {
	l.expire(now)
	if l.syncing || len(l.held) == 0 {
		return // the end of the call comes here
	}
	at := now.Add(maxDuration)
	for _, t := range l.held {
		_, when := l.nextStep(t, now)
		at = earlier(at, when)
	}
	if l.timer != nil {
		l.timer.Reset(at.Sub(now))
		return
	}
	l.timer = time.AfterFunc(at.Sub(now), func() {
		l.lock()
		defer l.unlock()
		now := time.Now()
		if l.expire(now); l.errand(now) {
			l.sync()
		} else {
			l.schedule(now)
		}
	})
}

// expire drops the tokens without a name whose time has come, and those that
// could not be given back for so long that others will do it, unless somebody
// waits for Redis anyway. It requires mu.
func (l *Limiter) expire(now time.Time) {
	n := len(l.held)
	l.held = slices.DeleteFunc(l.held, func(t *token) bool {
		return !t.due.IsZero() && (t.name == "" && !t.due.After(now) ||
			l.away != nil && !l.waiting && now.Sub(t.due) > l.silence)
	})
	if len(l.held) < n {
		l.wake()
	}
}

// errand reports whether a token is to be given back or renewed now. It
// requires mu.
func (l *Limiter) errand(now time.Time) bool {
	return slices.ContainsFunc(l.held, func(t *token) bool {
		how, _ := l.nextStep(t, now)
		return how != ""
	})
}

// returning reports whether a token is on its way back. It requires mu.
func (l *Limiter) returning() bool {
	return slices.ContainsFunc(l.held, func(t *token) bool {
		return t.name != "" && !t.due.IsZero() && t.how != "delayed"
	})
}

// unarrived counts the requests that were let go and may yet arrive within a
// window of others, and says when one of them is known no longer to. It
// requires mu.
func (l *Limiter) unarrived(now time.Time) (n int, until time.Time) {
	until = now.Add(maxDuration)
	for _, t := range l.held {
		if !t.sent || !t.due.IsZero() && !t.due.After(now) {
			continue
		}
		if n++; !t.due.IsZero() {
			until = earlier(until, t.due)
		}
	}
	return n, until
}

const (
	// maxAsked is how many tokens a process asks for at a time.
	maxAsked = 6

	// spare is how long a token is kept that came when nobody waited.
	spare = 20 * time.Millisecond
)

// A take is one BLMOVE. It outlasts the Wait that began it, so that the next one
// has its place in line, and no reply is lost.
type take struct{ asked time.Time }

// blmove is a command that go-redis must not send again by itself: the token of
// the first time would be lost for a while.
type blmove struct{ *redis.StringCmd }

func (blmove) NoRetry() bool { return true }

// take has a BLMOVE under way: several, if tokens are wanted faster than they can
// come one after the other. It requires mu.
func (l *Limiter) take() {
	// Whoever waits for longer asks again, at the end of the line: by chance, not
	// always the same ones. There may be a connection to make.
	want, block := 1, max(block-rand.N(block/12)-4*l.distance, block/6)
	if l.busy {
		want += int(min(l.distance.Seconds()*float64(l.view.Limit)/l.config.Window.Seconds(), maxAsked-1))
	}
	for len(l.asked) < want {
		t := &take{time.Now()}
		l.takes++
		l.asked = append(l.asked, t)
		client := l.client
		go func() {
			slow := time.AfterFunc(patience, func() {
				l.lock()
				defer l.unlock()
				if slices.Contains(l.asked, t) {
					l.tried, l.cannotTake = time.Now(), true
					l.lose(errSlow)
				}
			})
			defer slow.Stop()
			name, err := l.blmove(client, block)
			l.lock()
			defer l.unlock()
			l.took(t, name, err)
		}()
	}
}

// blmove returns the name of a token, or none if there is none for so long.
func (l *Limiter) blmove(client redis.UniversalClient, wait time.Duration) (name string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := redis.NewStringCmd(ctx, "blmove", l.keys[1], l.keys[2], "left", "right", strconv.FormatFloat(wait.Seconds(), 'f', -1, 64))
	client.Process(ctx, blmove{cmd})
	name, err = cmd.Result()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return name, err
}

// took notes the outcome of a BLMOVE. It requires mu.
func (l *Limiter) took(t *take, name string, err error) {
	now := time.Now()
	i := slices.Index(l.asked, t)
	if i >= 0 {
		l.asked = slices.Delete(l.asked, i, i+1)
	}
	switch {
	case err != nil && i >= 0:
		l.tried, l.cannotTake = now, true
		l.lose(err)
	case name != "":
		l.came(name, t.asked)
	}
	l.wake()
}

// came notes a token that was asked for then: whoever waits gets it, unless Redis
// was away. It requires mu.
func (l *Limiter) came(name string, asked time.Time) {
	keep := spare
	if l.waiting && !l.closed {
		keep = patience
	}
	l.giveBackAt(time.Now().Add(keep), name, "unused").asked = asked
}

// granted returns a token that came for whoever waits, if there is one. It
// requires mu.
func (l *Limiter) granted(now time.Time) *token {
	for _, t := range l.held {
		if t.how == "unused" && t.due.After(now) && now.Sub(t.asked) <= patience && t.of(l.view.ID) {
			return t
		}
	}
	return nil
}
