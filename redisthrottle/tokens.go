package redisthrottle

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// maxAsked is how many tokens a process asks for at a time.
	maxAsked = 6

	// askWithin bounds how long after a step a process begins a BLMOVE.
	askWithin = 600 * time.Millisecond

	// spare is how long a process keeps a token while no request waits.
	spare = 20 * time.Millisecond

	// gather, less the time of a call, is how long a token that is due waits for
	// others, so that one call gives back several.
	gather = 10 * time.Millisecond
)

// never is an instant that does not come.
var never = time.Unix(1<<40, 0)

// A token is in taken, kept by this process. A token without a name belongs to
// the process's own share.
type token struct {
	name    string
	how     string    // the change that gives it back; "": it was given back
	due     time.Time // when to give it back; never: its request has not arrived
	renewed time.Time // not later than Redis last learned that it is kept
}

// underWay reports whether a request was let go with t and may not have arrived.
func (t *token) underWay() bool { return t.how == "sent" && t.due.Equal(never) }

// giveBackAt notes a token that no request uses, and when to give it back. It
// requires mu.
func (l *Limiter) giveBackAt(due time.Time, name, how string) {
	l.held = append(l.held, &token{name: name, how: how, due: due, renewed: time.Now()})
}

// letGo has the request of a Wait use t. The end of the Wait plans what follows. It
// requires mu.
func (l *Limiter) letGo(t *token) { t.how, t.due = "sent", never }

// nextStep returns what is to be done with t now, or "", and when to call for it.
// It requires mu.
func (l *Limiter) nextStep(t *token, now time.Time) (how string, at time.Time) {
	due, renew := t.due, t.renewed.Add(l.tick)
	switch {
	case t.how == "unused" && (l.closed || l.view.Left > 0 || l.pause.After(now)):
		return t.how, now
	case t.how == "unused" && !l.waiting:
		due = earlier(due, l.idle.Add(spare))
	case t.how == "sent" && l.view.Phase == "open" && !l.closed:
		// A step before that would only queue it for a later turn.
		due = later(due, l.turnOfNext)
	}
	switch {
	case t.name == "":
		return "", due
	case !due.After(now):
		return t.how, due.Add(max(0, gather-l.distance))
	case !renew.After(now):
		return "renew", now
	}
	return "", earlier(due, renew)
}

// unarrived counts the requests that may yet arrive or arrived less than W ago.
// It returns when the first of them stops counting, or never. It requires mu.
func (l *Limiter) unarrived(now time.Time) (n int, until time.Time) {
	until = never
	for _, t := range l.held {
		if t.how == "sent" && t.due.After(now) {
			n++
			until = earlier(until, t.due)
		}
	}
	return n, until
}

// go-redis must not send a blmove again: the first one's token would be lost for D.
type blmove struct{ *redis.StringCmd }

func (blmove) NoRetry() bool { return true }

// blmove returns the name of a token, or "" if none is free within wait.
func (l *Limiter) blmove(client redis.UniversalClient, wait time.Duration) (name string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := redis.NewStringCmd(ctx, "blmove", l.keys[1], l.keys[2], "left", "right", strconv.FormatFloat(wait.Seconds(), 'f', -1, 64))
	client.Process(ctx, blmove{cmd})
	name, err = cmd.Result()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return name, err
}

// take keeps a BLMOVE under way, or several if requests wait and Redis is far. A
// BLMOVE outlasts the Wait that began it: the next Wait gets its place in line, and
// no reply is lost. It requires mu.
func (l *Limiter) take() {
	// A BLMOVE that ends without a token loses its place in line. The random part
	// spreads this over the processes; 4*distance leaves time to connect.
	want, wait := 1, max(block-rand.N(block/12)-4*l.distance, block/6)
	if l.busy {
		want += int(min(math.Round(l.distance.Seconds()*float64(l.view.Limit)/l.config.Window.Seconds()), maxAsked-1))
	}
	for l.asked < want {
		l.asked++
		l.takes++
		client, losses, asked := l.client, l.losses, time.Now()
		go func() {
			name, err := l.blmove(client, wait)
			l.lock()
			defer l.unlock()
			l.came(name, asked)
			switch {
			case losses != l.losses:
			case err != nil:
				l.wentAway(err)
			default:
				l.asked--
				if name == "" && time.Since(asked) >= wait { // none was free until then
					l.askBy = later(l.askBy, asked.Add(wait+askWithin))
				}
			}
			l.plan(time.Now())
			l.wake()
		}()
	}
}

// came notes a token, if name is one, and when it was asked for. It requires mu.
func (l *Limiter) came(name string, asked time.Time) {
	if name != "" {
		l.giveBackAt(asked.Add(patience), name, "unused")
	}
}

// granted returns a token that a request may use now, or nil. It requires mu.
func (l *Limiter) granted(now time.Time) *token {
	i := slices.IndexFunc(l.held, func(t *token) bool {
		rest, ok := strings.CutPrefix(t.name, l.view.ID)
		return ok && strings.HasPrefix(rest, ".") && t.how == "unused" && t.due.After(now)
	})
	if i < 0 {
		return nil
	}
	return l.held[i]
}
