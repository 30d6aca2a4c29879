package gate

import (
	"context"
	"errors"
	"math"
	"time"
)

// Start waits until tk may go. It returns nil when tk holds a slot, or else why
// it must not go: the cause of ctx, [ErrCanceled], a [*Refusal], or an error of
// the Limiter, wrapped.
func (g *Gate) Start(ctx context.Context, cancel <-chan struct{}, tk *Ticket) error {
	g.mu.Lock()
	defer g.unlock()
	if tk.rest > 0 {
		if err := g.rest(ctx, cancel, tk); err != nil {
			return err
		}
	}
	return g.queue(ctx, cancel, time.Time{}, tk)
}

// rest waits before tk joins the line. It requires mu, and releases it meanwhile.
func (g *Gate) rest(ctx context.Context, cancel <-chan struct{}, tk *Ticket) error {
	begin := time.Now()
	timer := time.NewTimer(tk.rest)
	defer timer.Stop()
	g.resting[tk.urgency]++
	g.unlock()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-cancel:
	}
	g.mu.Lock()
	g.resting[tk.urgency]--
	g.stats.Waited += time.Since(begin)
	return ended(ctx, cancel)
}

// queue waits in the line until tk is let go, or until the instant given, if
// that is not zero. It requires mu, and releases it while it waits.
func (g *Gate) queue(ctx context.Context, cancel <-chan struct{}, until time.Time, tk *Ticket) (err error) {
	begin := time.Now()
	var over <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(until.Sub(begin))
		defer timer.Stop()
		over = timer.C
	}
	if tk.number == 0 {
		g.arrived++
		tk.number = g.arrived
	}
	defer func() {
		g.stats.Waited += time.Since(begin)
		if err != nil {
			g.leaveLine(tk)
			if tk.gone {
				g.giveBack(tk)
			}
			g.advance(g.now())
		}
	}()
	for {
		if err := ended(ctx, cancel); err != nil {
			return err
		}
		if tk.gone && tk.pauses != g.pause.count {
			g.giveBack(tk) // a pause began after it was let go and before it woke
		}
		if !tk.gone && !g.line.has(tk) {
			if err := g.join(tk); err != nil {
				return err
			}
		}
		switch {
		case tk.gone:
			return nil
		case g.asking == tk && g.stopAsking == nil:
			if err := g.ask(ctx, cancel, until, tk); err != nil && !tk.excuse(err) {
				return err
			}
			continue
		}
		tk.ready = make(chan struct{})
		ready := tk.ready
		g.unlock()
		select {
		case <-ready:
		case <-ctx.Done():
		case <-cancel:
		case <-over:
			err = ErrHeldTooLong
		}
		g.mu.Lock()
		if err == nil {
			err = tk.refused
		}
		if err != nil {
			return err
		}
	}
}

// ended returns why a wait is over, or nil.
func ended(ctx context.Context, cancel <-chan struct{}) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-cancel:
		return ErrCanceled
	default:
		return nil
	}
}

// join puts tk in the line, or refuses it. It requires mu.
func (g *Gate) join(tk *Ticket) error {
	now := g.now()
	// Who may go by now is not ahead of tk any more, even if the timer is late. But
	// a holder needs the slot itself that it may have just given back.
	if tk.rank != holder {
		g.advance(now)
	}
	ahead, aside := g.line.ahead(tk)
	if err := g.refusal(tk, ahead, aside, now); err != nil {
		return err
	}
	g.line.join(tk)
	if ahead == 0 || tk.rank == holder || g.pause.due() {
		g.advance(now)
	}
	return nil
}

// ask asks the Limiter for tk, which keeps its place meanwhile: the permission
// is for whoever is first then, and lapses where that one must not go. It
// requires mu, and releases it while it asks.
func (g *Gate) ask(ctx context.Context, cancel <-chan struct{}, until time.Time, tk *Ticket) (err error) {
	askCtx, stop := context.WithCancel(ctx)
	defer stop()
	g.stopAsking = stop
	tooLong := false
	if !until.IsZero() {
		timer := time.AfterFunc(time.Until(until), func() {
			g.mu.Lock()
			tooLong = true
			g.unlock()
			stop()
		})
		defer timer.Stop()
	}
	g.unlock()

	permitted, panicked := false, true
	defer func() {
		g.mu.Lock()
		stopped := askCtx.Err() != nil
		g.asking, g.stopAsking = nil, nil
		if over := ended(ctx, cancel); over != nil {
			err = over
		} else if tooLong {
			err = ErrHeldTooLong
		} else if stopped {
			err = nil // by a pause
		}
		if err != nil || panicked {
			g.leaveLine(tk)
		}
		now := g.now()
		if permitted && !g.permit(now) {
			g.arrivedAtOnce()
		}
		g.advance(now)
	}()
	if cancel != nil {
		go func() {
			select {
			case <-cancel:
				stop()
			case <-askCtx.Done():
			}
		}()
	}
	if err = g.limiter.Wait(askCtx); err != nil {
		err = &limiterError{err}
	}
	permitted, panicked = err == nil, false
	return err
}

// A limiterError is one of the Limiter's.
type limiterError struct{ error }

func (e *limiterError) Error() string { return "clarifaihttp: limiter: " + e.error.Error() }
func (e *limiterError) Unwrap() error { return e.error }

// excuse has tk go without the Limiter, if err is one of its errors and tk
// cannot be refused: it has a slot at least.
func (tk *Ticket) excuse(err error) bool {
	_, ok := errors.AsType[*limiterError](err)
	tk.excused = tk.must && ok
	return tk.excused
}

// permit lets the first in line go with a permission of the Limiter. It reports
// whether that one may. It requires mu.
func (g *Gate) permit(now time.Time) bool {
	if g.line.len() == 0 {
		return false
	}
	if _, ok := g.may(now); !ok {
		return false
	}
	tk := g.head()
	tk.permitted = true
	g.letGo(tk, now)
	return true
}

// refusal returns why a request with so many ahead of it cannot go before its
// deadline, or nil. If a probe is wanted, that may be tk, and those of them who
// stand aside go later. Who holds a connection is not refused so. It requires mu.
func (g *Gate) refusal(tk *Ticket, ahead, aside int, now time.Time) error {
	if tk.deadline.IsZero() || tk.rank == holder {
		return nil
	}
	if g.pause.wanted && !tk.standsAside() {
		ahead -= aside
	}
	if at := g.earliest(ahead, tk.deadline, now); at.After(tk.deadline) {
		return &Refusal{at.Sub(now)}
	}
	return nil
}

// earliest returns a lower bound for when a request with so many ahead of it
// can go, be it by the instant given, if those are sent: not before the pause's
// end, and then N of them in each W; not before there is a slot (one that has no
// connection yet may be free at once, any other W from now at the earliest), and
// then N of them in each W; nor faster than the pace will be by then. It requires
// mu.
func (g *Gate) earliest(ahead int, by, now time.Time) time.Time {
	start := later(now, g.pause.until)
	limit := g.limit.by(by)
	at := start.Add(g.rounds(ahead / limit))

	room := max(limit-len(g.slots), 0) + g.unconnected
	if p := ahead - room; p >= 0 {
		next := earlier(g.slots.soonest(), now.Add(g.hold))
		at = later(at, next.Add(g.rounds(p/limit)))
	}
	if wait := float64(ahead) / g.pace.Rate(by); wait > 0 {
		at = later(at, start.Add(seconds(wait)))
	}
	return at
}

// rounds returns n times W, if that is a duration.
func (g *Gate) rounds(n int) time.Duration {
	return min(time.Duration(n), math.MaxInt64/2/g.hold) * g.hold
}

func seconds(s float64) time.Duration {
	return time.Duration(min(s, math.MaxInt64/4/float64(time.Second)) * float64(time.Second))
}

// refuseHopeless refuses all in line who cannot go before their deadlines any
// more. It requires mu.
func (g *Gate) refuseHopeless(now time.Time) {
	var wake []chan struct{}
	ahead, aside := 0, 0
	for tk := range g.line.all() {
		if tk.refused = g.refusal(tk, ahead, aside, now); tk.refused == nil {
			ahead++
			if tk.standsAside() {
				aside++
			}
			continue
		}
		g.leaveLine(tk)
		if tk.ready != nil {
			if wake == nil {
				wake = make([]chan struct{}, 0, g.line.len()+1)
			}
			wake = append(wake, tk.ready)
			tk.ready = nil
		}
	}
	if wake == nil {
		return
	}
	g.after = append(g.after, func() { // this takes a while
		for _, ready := range wake {
			close(ready)
		}
	})
}

// TooLate reports whether tk, a retry, would be refused for its deadline.
func (g *Gate) TooLate(tk *Ticket) bool {
	g.mu.Lock()
	defer g.unlock()
	now := g.now()
	if tk.rest > 0 {
		return !tk.deadline.IsZero() && later(now.Add(tk.rest), g.pause.until).After(tk.deadline)
	}
	tk.number = g.arrived + 1
	ahead, aside := g.line.ahead(tk)
	late := g.refusal(tk, ahead, aside, now) != nil
	tk.number = 0
	return late
}
