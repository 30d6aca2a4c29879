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

	// askWithin is how long after a step a process asks for a token. The script
	// knows it, too.
	askWithin = 600 * time.Millisecond

	// spare is how long a token is kept that nobody waits for.
	spare = 20 * time.Millisecond

	// gather is how long a token waits for others to go back with it, less what
	// calls take.
	gather = 10 * time.Millisecond
)

// never is an instant that does not come.
var never = time.Unix(1<<40, 0)

// A token is in the care of this process: taken, in Redis's terms. One without
// a name is of the process's own share.
type token struct {
	name    string
	how     string    // it is to be given back, in pool.lua's words; "": it was
	asked   time.Time // when the one who waited did
	due     time.Time // when to give it back; never: its request has not arrived
	renewed time.Time // since when Redis knows that somebody has it, or before
}

// underWay reports whether a request was let go with t and may not have arrived.
func (t *token) underWay() bool { return t.how == "sent" && t.due.Equal(never) }

// giveBackAt notes a token that no request uses, and when to give it back. It
// requires mu.
func (l *Limiter) giveBackAt(due time.Time, name, how string, asked time.Time) {
	l.held = append(l.held, &token{name: name, how: how, asked: asked, due: due, renewed: time.Now()})
}

// letGo notes that a request is let go with t. It requires mu.
func (l *Limiter) letGo(t *token, now time.Time) {
	t.how, t.due = "sent", never
	l.plan(now)
}

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
		// Its turn comes after those that this process frees anyway.
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

// unarrived counts the requests that were let go and may yet arrive within a
// window of others, and says when one of them is known no longer to. It
// requires mu.
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

// blmove is a command that go-redis must not send again by itself: the token of
// the first time would be lost for a while.
type blmove struct{ *redis.StringCmd }

func (blmove) NoRetry() bool { return true }

// blmove returns the name of a token, or none if there is none for so long.
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

// take has a BLMOVE under way: several, if tokens are wanted faster than they can
// come one after the other. Each outlasts the Wait that began it, so that the next
// one has its place in line, and no reply is lost. It requires mu.
func (l *Limiter) take() {
	// Whoever waits for longer asks again, at the end of the line: by chance, not
	// always the same ones. There may be a connection to make.
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

// came notes a token that was asked for then. It requires mu.
func (l *Limiter) came(name string, asked time.Time) {
	if name != "" {
		l.giveBackAt(asked.Add(patience), name, "unused", asked)
	}
}

// granted returns a token that came for whoever waits, if there is one. It
// requires mu.
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
