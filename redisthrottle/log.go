package redisthrottle

import (
	"cmp"
	"context"
	"log/slog"
)

// A line is one for the log, written when mu is released.
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
