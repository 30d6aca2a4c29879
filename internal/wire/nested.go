package wire

import (
	"context"
	"net/http/httptrace"
	"sync/atomic"

	"example.com/clarifaihttp/internal/gate"
)

// key is that of a Wire in the context of its attempt, by its gate, or by nil.
type key struct{ gate *gate.Gate }

// Value implements [context.Context].
func (w *Wire) Value(k any) any {
	if k == any(key{w.Gate}) || k == any(key{}) {
		return &w.marker
	}
	return w.Context.Value(k)
}

// A Marker tells those who come upon it in a context that they are inside an
// attempt that has been let go by the same gate, and has its slot: there is a
// Transport over a Transport. The first of them sends what the attempt is for,
// and takes no slot of its own.
type Marker struct {
	wire *Wire

	used atomic.Bool
}

// Outer returns the marker of the attempt around ctx that g has let go, if there
// is one.
func Outer(ctx context.Context, g *gate.Gate) *Marker {
	m, _ := ctx.Value(key{g}).(*Marker)
	return m
}

// Enter reports whether a request inside m's attempt is what the attempt is for.
// If so, its sender must not wait for a slot but call Leave when it is answered
// or has failed. What comes later in the attempt, from a client in between that
// tries again, counts in full. What comes from a dial, whose context is that of
// an attempt, has nothing to do with it.
func (m *Marker) Enter() bool {
	w := m.wire
	w.mu.Lock()
	late := w.ended || w.asked
	if w.ended {
		w.refused = nil // the attempt is sent anew by who asks now
	}
	w.mu.Unlock()
	return !late && m.used.CompareAndSwap(false, true)
}

// Leave notes that the request of the first Enter was answered or has failed. It
// ends the attempt's wire request.
func (m *Marker) Leave(answered bool) { m.wire.End(answered) }

// Beside returns the context for a request that has that of an attempt: one that
// is sent by the attempt's dial does not call the attempt's hooks.
func Beside(ctx context.Context) context.Context {
	for c := ctx; ; {
		m := Outer(c, nil)
		if m == nil || !m.wire.connecting() {
			return ctx
		}
		c = m.wire.Context
		ctx = beside{ctx, c.Value(traceKey)}
	}
}

// connecting reports whether w's request waits for a connection.
func (w *Wire) connecting() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked && !w.got && !w.ended
}

// beside is a context with other hooks.
type beside struct {
	context.Context
	trace any
}

func (b beside) Value(k any) any {
	if k == traceKey {
		return b.trace
	}
	return b.Context.Value(k)
}

// traceKey is that of the hooks in a context, which httptrace does not export.
var traceKey = func() any {
	var c recorder
	httptrace.ContextClientTrace(&c)
	return c.key
}()

// A recorder is a context that remembers what it was asked for.
type recorder struct {
	context.Context
	key any
}

func (r *recorder) Value(k any) any {
	r.key = k
	return nil
}

// Inner returns the context for what m's sender hands on: one more Transport
// over a Transport finds a marker there, too.
func (m *Marker) Inner(ctx context.Context) context.Context {
	return context.WithValue(ctx, key{m.wire.Gate}, &Marker{wire: m.wire})
}

// Ticket returns that of m's attempt.
func (m *Marker) Ticket() *gate.Ticket {
	m.wire.mu.Lock()
	defer m.wire.mu.Unlock()
	return m.wire.ticket
}
