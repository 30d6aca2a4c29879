package redisthrottle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"syscall"
	"time"
)

const (
	retrySoon = 100 * time.Millisecond // the first try after a call that failed
	retryLate = time.Second            // the longest time between tries
)

// wentAway notes that a call failed. Old connections may be dead, so it makes a
// client with new ones. It requires mu.
func (l *Limiter) wentAway(err error) {
	if l.synced.IsZero() && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
		err = fmt.Errorf("%w: %w", errClosed, err)
	}
	now := time.Now()
	if l.away == nil {
		l.awaySince = now
		text := "Redis is away, requests wait"
		if hopeless(err) && l.config.Fallback == 0 {
			text = "Redis refuses, requests fail"
		}
		l.log(slog.LevelWarn, text, "err", err)
	}
	l.away, l.tried, l.retry = err, now, min(max(2*l.retry, retrySoon), retryLate)
	l.hangUp(l.client)
	l.client, l.asked, l.syncing = l.dial(), 0, false
	l.losses++
}

// plain reports whether a Redis without TLS is at addr. Such a Redis does not answer
// a TLS handshake: it waits for the end of a line.
func plain(addr string) bool {
	if addr == "" {
		return false
	}
	c, err := net.DialTimeout("tcp", addr, retrySoon)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(callPatience))
	answer := make([]byte, 1)
	_, err = io.WriteString(c, "PING\r\n")
	if err == nil {
		_, err = io.ReadFull(c, answer)
	}
	return err == nil && (answer[0] == '+' || answer[0] == '-') // PONG, or NOAUTH
}

// cameBack notes that Redis answers. It requires mu.
func (l *Limiter) cameBack(now time.Time) {
	away := now.Sub(l.awaySince)
	l.log(slog.LevelInfo, "Redis is back", "away", away)
	l.away, l.alone, l.retry = nil, false, 0
	if l.config.Fallback > 0 && away >= l.silence/3 {
		// Other processes may use their shares until they notice, too.
		l.quiet = now.Add(l.silence)
	}
}

// share is next while Redis is away: after a silence the process may use its own
// share. It requires mu.
func (l *Limiter) share(now time.Time) (ok bool, askAt time.Time) {
	begin := l.awaySince.Add(l.silence)
	l.plan(now)
	switch {
	case l.config.Fallback == 0:
		return false, never
	case now.Before(begin):
		return false, begin
	}
	if !l.alone {
		l.alone = true
		l.log(slog.LevelWarn, "Redis is away, requests use a share of their own", "share", l.config.Fallback)
	}
	used, askAt := l.unarrived(now)
	if used >= l.config.Fallback {
		return false, askAt
	}
	t := new(token)
	l.held = slices.Insert(l.held, 0, t) // Arrived takes it for the first to arrive
	l.letGo(t)
	return true, now
}

// A line is logged when mu is released.
type line struct {
	level slog.Level
	text  string
	args  []any
}

// log requires mu.
func (l *Limiter) log(level slog.Level, text string, args ...any) {
	args = append([]any{"account", l.config.Account}, args...)
	l.lines = append(l.lines, line{level, "redisthrottle: " + text, args})
}

func (l *Limiter) lock() { l.mu.Lock() }

func (l *Limiter) unlock() {
	lines := l.lines
	l.lines = nil
	l.mu.Unlock()
	for _, s := range lines {
		cmp.Or(l.config.Logger, slog.Default()).Log(context.Background(), s.level, s.text, s.args...)
	}
}
