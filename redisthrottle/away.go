package redisthrottle

import (
	"log/slog"
	"time"
)

// lose notes that Redis does not answer, or not as it should. It requires mu.
func (l *Limiter) lose(err error) {
	before := l.away
	l.away = err
	if before != nil {
		return
	}
	l.awaySince = time.Now()
	l.forget()
	if l.granted != nil {
		l.refuse(l.granted)
	}
	l.log(slog.LevelWarn, "Redis is away, requests wait", "err", err)
	l.sync()
	l.change()
}

// found notes that Redis answers. It requires mu.
func (l *Limiter) found(now time.Time) {
	if l.away == nil {
		return
	}
	away := now.Sub(l.awaySince)
	l.log(slog.LevelInfo, "Redis is back", "away", away)
	l.away, l.alone = nil, false
	if l.config.Fallback > 0 && away >= l.gone/3 {
		// Others may be using their shares until they notice, too.
		l.quiet = now.Add(l.gone)
	}
}

// share decides as next does, while Redis is away: the process's own share may
// be used after a silence. It requires mu.
func (l *Limiter) share(now time.Time) (ok bool, again time.Time) {
	begin := l.awaySince.Add(l.gone)
	switch {
	case !l.syncing:
		l.sync()
		fallthrough
	case l.config.Fallback == 0:
		return false, now.Add(maxDuration)
	case now.Before(begin):
		return false, begin
	}
	if !l.alone {
		l.alone = true
		l.log(slog.LevelWarn, "Redis is away, requests use a share of their own", "share", l.config.Fallback)
	}
	used, again := l.unarrived(now)
	if used >= l.config.Fallback {
		return false, again
	}
	l.hand("", now)
	return true, now
}
