package grpcstatus

import (
	"context"
	"encoding/binary"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// patience bounds how long a response is held back while its client may be
// waiting for the header before it sends more. The message of a throttled response
// comes right behind its header.
const patience = 20 * time.Millisecond

// maxIdle bounds how often in a row a body may read nothing without an error.
const maxIdle = 100

// A Progress says how much of a request's body was sent.
type Progress struct {
	Sent  int64
	First []byte // the first bytes, at most 5
	Over  bool   // the whole body was sent
}

// within reports whether the first message is sent in part: the client is still
// sending then, and cannot be waiting for the header.
func (p Progress) within() bool {
	if len(p.First) < prefix {
		return p.Sent > 0
	}
	return p.Sent < prefix+int64(binary.BigEndian.Uint32(p.First[1:]))
}

// Look reads the first message of a response that [In] reports, if it has at most
// 1 KiB. It returns the response, with a body that reads as if Look had read
// nothing, and the Status that the message holds, the zero Status if none.
//
// Look waits until the message has come or ctx ends, if the client cannot be waiting
// for the response's header: its own first message is not sent whole yet, or all of
// its body is sent. Otherwise Look waits for some milliseconds only. If the message
// has not come by then, or ctx has ended, known is false: the caller's Reads look on
// its behalf, and the Read that completes the message calls the function later, once,
// with the Status.
//
// Look does not change resp, which must not be used any more. Trailers that come with
// the message appear in the returned response when its body was read to the end, not
// before.
func Look(ctx context.Context, resp *http.Response, progress func() Progress, later func(Status)) (looked *http.Response, s Status, known bool) {
	copied := *resp
	copied.Trailer = maps.Clone(resp.Trailer)
	b := &body{ReadCloser: resp.Body, from: resp, to: &copied, ahead: make(chan struct{})}
	b.message.gzip = strings.EqualFold(strings.TrimSpace(resp.Header.Get("Grpc-Encoding")), "gzip")
	copied.Body = b

	if progress().Over {
		b.readAhead()
		return &copied, b.message.status(), true
	}
	b.later = later
	go b.readAhead()
	if !b.wait(ctx, progress) {
		b.handed.Store(true)
		return &copied, Status{}, false
	}
	b.later = nil
	return &copied, b.message.status(), true
}

// A body is a response's body whose first message is looked at. At first
// readAhead reads it, then the caller does.
type body struct {
	io.ReadCloser                // the base's
	from, to      *http.Response // the base's, the caller's

	ahead  chan struct{} // closed when readAhead is done; what follows is its own until then
	handed atomic.Bool   // the caller has the body: readAhead is to end
	closed atomic.Bool

	message message
	given   int          // bytes of message.read that the caller has got
	err     error        // that came behind them, until the caller gets it
	later   func(Status) // nil: the message's Status is known
}

// wait waits for the message, for as long as Look says. It reports whether
// readAhead is done.
func (b *body) wait(ctx context.Context, progress func() Progress) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for within := false; ; timer.Reset(patience) {
		select {
		case <-b.ahead:
			return true
		case <-ctx.Done():
			return false
		case <-timer.C:
		}
		select {
		case <-b.ahead: // before a timer that came late
			return true
		default:
		}
		switch p := progress(); {
		case p.Over:
			select {
			case <-b.ahead:
				return true
			case <-ctx.Done():
				return false
			}
		case p.within():
			within = true
		case within:
			within = false // just now
		default:
			return false
		}
	}
}

// readAhead reads the message, and nothing after it.
func (b *body) readAhead() {
	defer close(b.ahead)
	m := &b.message
	for idle := 0; b.err == nil && m.missing() > 0 && idle < maxIdle && !b.handed.Load(); idle++ {
		have := len(m.read)
		room := slices.Grow(m.read, m.missing())[:have+m.missing()]
		var n int
		n, b.err = b.ReadCloser.Read(room[have:])
		m.read = room[:have+n]
		if n > 0 {
			idle = 0
		}
	}
}

// Read reads what was read ahead, then the base's body.
func (b *body) Read(p []byte) (n int, err error) {
	<-b.ahead
	switch {
	case b.closed.Load(): // only the base knows what a Read returns now
		return b.ReadCloser.Read(p)
	case b.given < len(b.message.read):
		b.settle(b.err)
		n = copy(p, b.message.read[b.given:])
		b.given += n
		return n, nil
	case b.err != nil:
		err, b.err = b.err, nil
	default:
		n, err = b.ReadCloser.Read(p)
		if b.later != nil {
			b.message.add(p[:n])
			b.given = len(b.message.read)
		}
	}
	b.settle(err)
	if err == io.EOF {
		b.to.Trailer = b.from.Trailer
	}
	return n, err
}

// settle calls later once the message is whole or has ended with err.
func (b *body) settle(err error) {
	if later := b.later; later != nil && (err != nil || b.message.missing() == 0) {
		b.later = nil
		later(b.message.status())
	}
}

// Close closes the base's body.
func (b *body) Close() error {
	b.closed.Store(true)
	return b.ReadCloser.Close()
}
