package redisthrottle

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// A take is one BLMOVE. It outlasts the Wait that began it, so that the next one
// has its place in line, and no reply is lost.
type take struct {
	asked time.Time
	name  string // of the token
}

// blmove is a command that go-redis must not send again by itself: the token of
// the first time would be lost for a while.
type blmove struct{ *redis.StringCmd }

func (blmove) NoRetry() bool { return true }

// take has a BLMOVE under way. It requires mu.
func (l *Limiter) take() {
	if l.asked != nil {
		return
	}
	t := &take{asked: time.Now()}
	l.asked = t
	go func() {
		slow := time.AfterFunc(patience, func() {
			l.lock()
			defer l.unlock()
			if l.asked == t {
				l.asked = nil
				l.lose(errSlow)
			}
		})
		defer slow.Stop()
		ctx := context.Background()
		cmd := redis.NewStringCmd(ctx, "blmove", l.keys[1], l.keys[2], "left", "right",
			strconv.FormatFloat(block.Seconds(), 'f', -1, 64))
		l.client.Process(ctx, blmove{cmd})
		name, err := cmd.Result()
		l.lock()
		defer l.unlock()
		l.took(t, name, err)
	}()
}

// took notes the outcome of a BLMOVE. It requires mu.
func (l *Limiter) took(t *take, name string, err error) {
	late := l.asked != t
	if !late {
		l.asked = nil
	}
	if err == nil || errors.Is(err, redis.Nil) {
		l.retry = retrySoon
	}
	switch {
	case err == nil:
		t.name = name
		if !late && l.waiting && !l.closed && l.away == nil {
			l.granted = t
		} else {
			l.refuse(t)
		}
	case errors.Is(err, redis.Nil):
	case !late:
		l.tried = time.Now()
		l.lose(err)
	}
	l.change()
}

// refuse gives back a token that nobody uses. It requires mu.
func (l *Limiter) refuse(t *take) {
	if l.granted == t {
		l.granted = nil
	}
	l.keep(t.name, "unused", time.Now())
}
