package clarifaihttp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A link is one connection between base and server: a pipe at each end and, in
// between, two pumps that delay what goes either way, as sockets and a network
// do, and see each request's head as it leaves the client and as it comes to
// the server.
type link struct {
	w              *world
	n              int
	client, server net.Conn     // our ends of the pipes to them
	left           atomic.Int64 // bytes for the client before a reset; negative: no such thing
	inject         chan []byte  // HTTP/2 frames for the client
	used           atomic.Bool  // the server has written
}

// A serverConn is the server's end of a link.
type serverConn struct {
	net.Conn
	link *link
}

var errDial = errors.New("dial fails by plan")

// dial is the base's DialContext.
func (w *world) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n := int(w.dials.Add(1))
	d := roll(w.seed, "dial", n)
	fails := false
	if d.chance(w.brokenDial) {
		wait := d.span(ms, 20*ms)
		if fails = d.chance(0.7); !fails || d.chance(0.5) {
			wait = d.span(time.Second, longestDial)
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
	if err := sleep(ctx, d.span(0, w.delay)); err != nil {
		return nil, err
	}
	if fails {
		w.note("dial %d fails", n)
		w.broken()
		return nil, errDial
	}
	l := &link{w: w, n: n, inject: make(chan []byte, 1)}
	l.left.Store(-1)
	var toClient, toServer net.Conn
	toClient, l.client = net.Pipe()
	toServer, l.server = net.Pipe()
	select {
	case w.accepts <- serverConn{toServer, l}:
	case <-w.over:
		return nil, net.ErrClosed
	}
	w.mu.Lock()
	w.links[l] = true
	w.mu.Unlock()
	var pumps sync.WaitGroup
	pumps.Go(func() { l.pump(l.server, l.client, l.fromClient(), roll(w.seed, "up", n)) })
	pumps.Go(func() { l.pump(l.client, l.server, l.fromServer(), roll(w.seed, "down", n)) })
	go func() {
		pumps.Wait()
		w.mu.Lock()
		delete(w.links, l)
		w.mu.Unlock()
	}()
	return toClient, nil
}

// Accept, Close and Addr make the world the server's listener.
func (w *world) Accept() (net.Conn, error) {
	select {
	case c := <-w.accepts:
		return c, nil
	case <-w.over:
		return nil, net.ErrClosed
	}
}

func (w *world) Close() error   { return nil }
func (w *world) Addr() net.Addr { return w }

func (*world) Network() string { return "search" }
func (*world) String() string  { return "server" }

// reset breaks the connection at both ends at once.
func (l *link) reset() {
	l.w.broken()
	l.client.Close()
	l.server.Close()
}

// resetAfter has the connection break after n more bytes for the client.
func (l *link) resetAfter(n int) {
	if n == 0 {
		l.reset()
	} else {
		l.left.Store(int64(n))
	}
}

// A chunk is on its way.
type chunk struct {
	b     []byte
	due   time.Time
	heads int  // of requests in it
	last  bool // the connection breaks after it
}

// pump moves what src sends to dst. filter says what is to be moved, d
// how long it takes.
func (l *link) pump(dst, src net.Conn, filter func([]byte) chunk, d dice) {
	queue := make(chan chunk, 1024)
	go func() {
		defer close(queue)
		buf := make([]byte, 32<<10)
		var due time.Time
		for {
			n, err := src.Read(buf)
			if n > 0 {
				c := filter(buf[:n])
				due = later(due, time.Now().Add(d.span(0, l.w.delay)))
				c.due = due
				queue <- c
				if c.last {
					return
				}
			}
			if err != nil {
				l.w.broken() // also if it was idle for too long
				return
			}
		}
	}()
	defer func() {
		dst.Close()
		src.Close()
		for range queue { // until the reader has ended
		}
	}()
	for {
		select {
		case c, ok := <-queue:
			if !ok {
				return
			}
			time.Sleep(time.Until(c.due))
			if _, err := dst.Write(c.b); err != nil {
				return
			}
			l.w.arrived(l, c.heads)
			if c.last {
				l.w.note("link %d is reset amid a response", l.n)
				l.reset()
				return
			}
		case frame := <-l.inject:
			if _, err := dst.Write(frame); err != nil {
				return
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// fromClient returns the filter that sees the heads of requests.
func (l *link) fromClient() func([]byte) chunk {
	if !l.w.h2 {
		return func(b []byte) chunk {
			heads := 0
			// net/http begins a request with a write of its own.
			if bytes.HasPrefix(b, []byte("GET /")) || bytes.HasPrefix(b, []byte("POST /")) {
				heads = 1
			}
			l.w.sent(l, heads)
			return chunk{b: bytes.Clone(b), heads: heads}
		}
	}
	preface := len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	frames := framer{skip: preface}
	latest := uint32(0)
	return func(b []byte) chunk {
		heads := 0
		out := frames.whole(b, func(frame []byte) {
			const headers = 1
			// On a stream that is known, these are trailers.
			if stream := binary.BigEndian.Uint32(frame[5:]); frame[3] == headers && stream > latest {
				latest = stream
				heads++
			}
		})
		l.w.sent(l, heads)
		return chunk{b: out, heads: heads}
	}
}

// fromServer returns the filter that cuts responses short and, on HTTP/2, has
// aborted streams look refused.
func (l *link) fromServer() func([]byte) chunk {
	var frames framer
	return func(b []byte) chunk {
		l.used.Store(true)
		if l.w.h2 {
			b = frames.whole(b, func(frame []byte) {
				const rstStream, internalError, refusedStream = 3, 2, 7
				if frame[3] == rstStream {
					l.w.broken()
					if frame[12] == internalError && l.w.refuses {
						frame[12] = refusedStream
					}
				}
			})
		} else {
			b = bytes.Clone(b)
		}
		if left := l.left.Load(); left >= 0 {
			if left <= int64(len(b)) {
				return chunk{b: b[:left], last: true}
			}
			l.left.Store(left - int64(len(b)))
		}
		return chunk{b: b}
	}
}

// goaway tells the client that no stream of this connection was processed.
func (l *link) goaway() {
	if !l.used.Load() { // the server's SETTINGS have to be the first
		return
	}
	l.w.broken()
	select {
	case l.inject <- []byte{0, 0, 8, 7, 0, 0, 0, 0, 0 /* last stream */, 0, 0, 0, 0 /* no error */, 0, 0, 0, 0}:
	default:
	}
}

// A framer cuts a byte stream into HTTP/2's frames.
type framer struct {
	skip int // bytes before the first frame
	buf  []byte
}

// whole returns the frames that b completes, after each was called with them.
func (f *framer) whole(b []byte, each func(frame []byte)) []byte {
	f.buf = append(f.buf, b...)
	n := min(f.skip, len(f.buf))
	f.skip -= n
	for f.skip == 0 && len(f.buf) >= n+9 {
		frame := f.buf[n:]
		size := 9 + (int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2]))
		if len(frame) < size {
			break
		}
		each(frame[:size])
		n += size
	}
	out := bytes.Clone(f.buf[:n])
	f.buf = append(f.buf[:0], f.buf[n:]...)
	return out
}
