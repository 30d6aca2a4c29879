// Package wire follows an attempt on its way through net/http and tells the
// gate what becomes of it.
package wire

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http/httptrace"
	"sync"
	"time"

	"example.com/clarifaihttp/internal/arrival"
	"example.com/clarifaihttp/internal/gate"
	"example.com/clarifaihttp/internal/replay"
)

const (
	// A request of at most so many bytes fits the buffers of a socket, so that
	// being written means being on its way.
	maxSmall = 64 << 10

	// A connection of its own that is fresh, or whose request has a body, is held so
	// long at most by a request that waits: the server may close it as idle, and
	// net/http does not send on another one by itself then.
	holdsFresh = time.Second
)

// A Wire follows one attempt by its httptrace hooks: these say when its bytes
// can be on their way, and when net/http sends it again by itself, each time as
// a wire request of its own. Hooks run on other goroutines, and even after the
// attempt has ended.
//
// It is the context of the attempt: its values are the call's, and [Outer]
// finds the Wire.
type Wire struct {
	context.Context // the caller's
	Gate            *gate.Gate
	Watch           *arrival.Watch        // of all attempts that share the gate
	Cancel          <-chan struct{}       // Request.Cancel
	Dials           bool                  // who waits for a connection waits for a dial
	MayResend       bool                  // net/http may send it again even if it is refused: it has no body
	Length          int64                 // of the body; negative: unknown
	PlainIsHTTP1    bool                  // a connection without TLS is not shared by several requests
	Body            *replay.Attempt       // nil: none, or in memory
	hooks           httptrace.ClientTrace // a fresh one for each attempt: it is changed to call the caller's
	marker          Marker
	request         arrival.Request // the only wire request, once it is written

	mu       sync.Mutex // guards all below; not held while anything waits
	ticket   *gate.Ticket
	watched  *gate.Ticket // what request is for
	asked    bool         // for a connection
	got      bool         // a connection
	conn     net.Conn     // the latest; nil: the base does not say
	wrote    bool         // its header to it, perhaps
	resent   bool         // on another one
	refused  error
	ended    bool
	stopWait context.CancelFunc // of the body's end
}

// Trace returns the context for the attempt, which tk was let go for.
func (w *Wire) Trace(tk *gate.Ticket) context.Context {
	w.ticket = tk
	w.marker.wire = w
	w.hooks = httptrace.ClientTrace{GetConn: w.getConn, GotConn: w.gotConn, WroteHeaders: w.wroteHeaders, WroteRequest: w.wroteRequest}
	return httptrace.WithClientTrace(w, &w.hooks)
}

func (w *Wire) getConn(string) {
	w.mu.Lock()
	tk := w.ticket
	first := !w.asked && !w.ended
	w.asked = true
	w.mu.Unlock()
	if first {
		w.Gate.Asked(tk, w.Dials)
	}
}

// gotConn comes before each wire request, which waits here if it must.
func (w *Wire) gotConn(info httptrace.GotConnInfo) {
	w.mu.Lock()
	earlier, refused := w.ticket, w.refused
	again := w.got && w.sent() // else it is the same wire request still
	w.got, w.conn, w.wrote = true, info.Conn, false
	w.resent = w.resent || again
	ended := w.ended
	w.mu.Unlock()
	if ended {
		return
	}
	if refused != nil {
		w.refuse(info.Conn, refused)
		return
	}

	hold := gate.Hold{Must: !w.alone(info.Conn)}
	if !hold.Must && !(info.Reused && w.MayResend) {
		hold.Patience = holdsFresh
	}
	tk, err := earlier, error(nil)
	if again {
		w.Watch.Stop(&w.request)
		tk, err = w.Gate.Resent(w.Context, w.Cancel, earlier, hold)
	} else {
		err = w.Gate.Connected(w.Context, w.Cancel, tk, hold)
	}

	w.mu.Lock()
	other := w.ticket
	w.ticket = tk
	if err != nil && w.refused == nil {
		w.refused = err
	}
	ended = w.ended
	w.mu.Unlock()
	if other != earlier { // two at once
		w.Gate.Failed(other, true)
	}
	if err != nil && !w.refuse(info.Conn, err) {
		w.Gate.Charge(tk)
	}
	if ended {
		w.Gate.Failed(tk, true)
	}
}

// sent reports whether something of the latest wire request may have left: not
// before its header was written. It requires mu.
func (w *Wire) sent() bool { return w.wrote || w.conn == nil }

// wroteHeaders comes when the header was written, if only to a buffer.
func (w *Wire) wroteHeaders() {
	w.mu.Lock()
	w.wrote = true
	w.mu.Unlock()
}

// alone reports whether c is for one request at a time.
func (w *Wire) alone(c net.Conn) bool {
	if t, ok := c.(*tls.Conn); ok {
		return t.ConnectionState().NegotiatedProtocol != "h2"
	}
	return c != nil && w.PlainIsHTTP1
}

// refuse has the attempt fail before anything of it is written. It reports
// whether that is certain. On a shared connection net/http looks at the context,
// and at Request.Cancel, before it writes; on one of its own it does not, but
// cannot write after the deadline.
func (w *Wire) refuse(c net.Conn, err error) bool {
	if w.Body != nil {
		w.Body.Close()
	}
	switch {
	case w.alone(c):
		if c.SetWriteDeadline(time.Unix(1, 0)) != nil { // it knows none
			c.Close()
		}
		return true
	case c == nil:
		return false
	}
	_, shared := c.(*tls.Conn)
	return shared && (w.Context.Err() != nil || err == gate.ErrCanceled)
}

// GetBody returns a GetBody for the attempt that fails once it is refused. Else
// net/http would go on with the next idle connection, which would be lost, too.
func (w *Wire) GetBody(get func() (io.ReadCloser, error)) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		w.mu.Lock()
		err := w.refused
		w.mu.Unlock()
		if err != nil {
			return nil, err
		}
		return get()
	}
}

// wroteRequest counts for the only wire request. Once there is another one, it
// cannot be told which of them was written; and what was refused is written to
// net/http's buffer alone.
func (w *Wire) wroteRequest(info httptrace.WroteRequestInfo) {
	w.mu.Lock()
	tk, conn := w.ticket, w.conn
	w.wrote = true
	counts := info.Err == nil && !w.resent && w.refused == nil && !w.ended
	if counts {
		w.watched = tk
	}
	w.mu.Unlock()
	if counts {
		transit, bounds := w.Gate.Transit()
		if !bounds {
			w.Gate.Written(tk, time.Time{})
			return
		}
		w.Gate.Written(tk, w.Watch.Written(&w.request, w, conn, w.small(), transit))
	}
}

// Arrived notes that the only wire request has arrived at the instant given at
// the latest. It implements [arrival.Arriver].
func (w *Wire) Arrived(by time.Time) {
	w.mu.Lock()
	tk := w.watched
	w.mu.Unlock()
	w.Gate.Arrived(tk, by)
}

// small reports whether the request fits the buffers of a socket.
func (w *Wire) small() bool {
	if w.Length >= 0 {
		return w.Length <= maxSmall
	}
	n, whole := w.Body.Sent()
	return whole && n <= maxSmall
}

// BodyEnds holds back the end of the body, if it must be. An error says why it
// must not be sent at all. It implements [replay.Ender].
func (w *Wire) BodyEnds(closed func() <-chan struct{}) error {
	w.mu.Lock()
	tk := w.ticket
	w.mu.Unlock()
	if w.Gate.BodyEnds(tk) {
		return nil
	}
	ctx, stop := context.WithCancel(w.Context)
	defer stop()
	w.mu.Lock()
	w.stopWait = stop
	ended := w.ended
	w.mu.Unlock()
	if ended {
		return nil
	}
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-closed():
			stop()
		case <-stopped:
		}
	}()
	next, err := w.Gate.EndsAnew(ctx, w.Cancel, tk)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ended && err == nil:
		w.Gate.Failed(next, true)
	case w.ended:
		return nil // it was answered: nothing arrives any more
	case err == nil:
		w.ticket = next
	}
	return err
}

// End ends the attempt, whose RoundTrip has returned, with a response or not.
// It returns the attempt's ticket and, if it was refused, why.
func (w *Wire) End(answered bool) (*gate.Ticket, error) {
	tk, sent, ended := w.end()
	w.Watch.Stop(&w.request)
	var err error
	switch {
	case ended:
	case answered:
		w.Gate.Answered(tk)
	default:
		err = w.Gate.Failed(tk, sent)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = cmp.Or(w.refused, err)
	return tk, w.refused
}

// end has the hooks do nothing any more.
func (w *Wire) end() (tk *gate.Ticket, sent, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ended, w.ended = w.ended, true
	if w.stopWait != nil {
		w.stopWait()
	}
	// HTTP/2's RoundTrip may end with its context while the header is being written.
	sent = w.sent() || !w.alone(w.conn)
	return w.ticket, sent, ended
}
