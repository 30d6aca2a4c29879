package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"example.com/clarifaihttp"
)

const (
	followEvery = 100 * time.Millisecond
	remindEvery = 5 // seconds of a pause, where lines are not rewritten
)

// A screen is where progress and waits are shown: lines that stay, and on a
// terminal one below them that is rewritten.
type screen struct {
	terminal bool

	mu        sync.Mutex // guards all below
	w         io.Writer
	rewritten string
	throttled bool // and not sent again since
	left      int  // seconds of the pause, as last shown
}

func newScreen(w io.Writer, term string) *screen {
	f, ok := w.(*os.File)
	if ok {
		info, err := f.Stat()
		ok = err == nil && info.Mode()&os.ModeCharDevice != 0 && term != "dumb"
	}
	return &screen{w: w, terminal: ok}
}

// line prints a line that stays.
func (s *screen) line(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rewrite("")
	fmt.Fprintf(s.w, format+"\n", args...)
}

// rewrite replaces the line that is rewritten. It requires mu.
func (s *screen) rewrite(text string) {
	if !s.terminal || text == s.rewritten {
		return
	}
	blank := strings.Repeat(" ", len(s.rewritten))
	fmt.Fprintf(s.w, "\r%s\r%s", blank, text)
	s.rewritten = text
}

// sending notes that a request is about to leave, for the first time or again.
func (s *screen) sending(page int) {
	s.mu.Lock()
	again := s.throttled
	s.throttled = false
	s.mu.Unlock()
	if again {
		s.line("Probe: page %d is asked for again, alone", page)
	}
}

// follow shows what th waits for, until the function it returns is called.
func (s *screen) follow(th *clarifaihttp.Throttle) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(followEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.show(th.Stats())
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.rewrite("")
	}
}

func (s *screen) show(st clarifaihttp.Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := seconds(time.Until(st.PausedUntil))
	switch {
	case st.PausedUntil.IsZero() && st.Waiting > 0:
		s.rewrite("Waiting for the rate limit")
	case st.PausedUntil.IsZero():
		s.rewrite("Asking")
	case left > 0 && left != s.left:
		s.left = left
		s.rewrite(fmt.Sprintf("Paused: %d s left", left))
		if !s.terminal && left%remindEvery == 0 {
			fmt.Fprintf(s.w, "Paused: %d s left\n", left)
		}
	}
}

func seconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }

// pauses is the handler of the Transport's log: it shows that a pause begins,
// and that it helped, and the rest in the log's words.
type pauses struct{ *screen }

func (pauses) Enabled(context.Context, slog.Level) bool { return true }
func (p pauses) WithAttrs([]slog.Attr) slog.Handler     { return p }
func (p pauses) WithGroup(string) slog.Handler          { return p }

func (p pauses) Handle(_ context.Context, r slog.Record) error {
	attrs := map[string]slog.Value{}
	r.Attrs(func(a slog.Attr) bool {
		attrs[a.Key] = a.Value
		return true
	})
	wait, began := attrs["wait"].Any().(time.Duration)
	if !began {
		if r.Message == "clarifaihttp: pause is over" {
			p.line("Answered: the pause is over, requests go on")
		} else {
			p.line("%s", clean(strings.TrimPrefix(r.Message, "clarifaihttp: ")))
		}
		return nil
	}
	what := "Throttled without a Clarifai status"
	if code := attrs["code"].String(); code != "0" {
		what = fmt.Sprintf("CONN_THROTTLED (%s): %s", code, clean(attrs["details"].String()))
	}
	p.line("%s", what)
	p.line("Paused: all requests wait %d s (request id %s)", seconds(wait), cmp.Or(clean(attrs["request_id"].String()), "-"))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.throttled, p.left = true, seconds(wait)
	return nil
}

// clean makes text of others fit for a terminal: on one line, no escapes.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}
