package clarifaihttp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/grpctest"
)

// TestEndedWhileItWaits has the context of a request end while net/http has a
// connection for it and it waits for a slot: the request must not be served, nor
// may the connection serve another one instead.
func TestEndedWhileItWaits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		body  func() io.Reader
		begin func(*endedTest, *testing.T)
	}{
		{"sent again", func() io.Reader { return nil }, (*endedTest).resend},
		{"sent again, with a body", func() io.Reader { return bytes.NewReader([]byte("body")) }, (*endedTest).resend},
		{"slot given back", func() io.Reader { return nil }, (*endedTest).lend},
		{"slot given back, with a body", func() io.Reader { return bytes.NewReader(make([]byte, 5000)) }, (*endedTest).lend},
		{"slot given back, with a body of unknown length", func() io.Reader { return io.MultiReader(bytes.NewReader(make([]byte, 5000))) }, (*endedTest).lend},
	} {
		t.Run(tt.name, func(t *testing.T) {
			neverServed(t, tt.body, tt.begin, (*httptest.Server).Start)
		})
		t.Run(tt.name+", TLS", func(t *testing.T) {
			neverServed(t, tt.body, tt.begin, (*httptest.Server).StartTLS)
		})
	}
}

// neverServed runs the test often, against one server.
func neverServed(t *testing.T, body func() io.Reader, begin func(*endedTest, *testing.T), start func(*httptest.Server)) {
	runs := 200
	if testing.Short() {
		runs = 12
	}
	var late atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/late" {
			late.Add(1)
		}
		io.Copy(io.Discard, req.Body)
		io.WriteString(w, okBody)
	}))
	start(server)
	defer server.Close()
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for range runs / 4 {
				begin(&endedTest{
					url:  server.URL,
					body: body,
					tls:  server.Client().Transport.(*http.Transport).TLSClientConfig,
					rand: rand.New(rand.NewPCG(uint64(worker), 1)),
				}, t)
			}
		})
	}
	wg.Wait()
	if n := late.Load(); n > 0 {
		t.Errorf("%d of %d were served", n, runs)
	}
}

type endedTest struct {
	url  string
	body func() io.Reader
	tls  *tls.Config
	rand *rand.Rand
}

func (e *endedTest) secure() bool { return strings.HasPrefix(e.url, "https:") }

var errEnded = errors.New("ended")

// late sends the request that must not be served. It returns when that has
// ended.
func (e *endedTest) late(t *testing.T, rt http.RoundTripper, ctx context.Context) {
	text, err := fetch(ctx, rt, e.url+"/late", e.body())
	if !errors.Is(err, errEnded) {
		t.Errorf("%q, %v, want the cause of the end", text, err)
	}
}

// resend has net/http send a request again, for the server drops its connection.
func (e *endedTest) resend(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var dials atomic.Int64
	base := &http.Transport{TLSClientConfig: e.tls, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if dials.Add(1) == 2 {
			// The slot of what was dropped is in use for a minute and more.
			time.AfterFunc(time.Duration(e.rand.Int64N(int64(4*ms))), func() { cancel(errEnded) })
			return c, err
		}
		dropped := &droppedConn{Conn: c, at: 2}
		if e.secure() {
			dropped.at += 2 // of the handshake
		}
		return dropped, err
	}}
	defer base.CloseIdleConnections()
	th := &clarifaihttp.Throttle{Limit: 1, Window: ms, Transit: time.Minute}
	rt := over(base, th)
	if text, err := fetch(t.Context(), rt, e.url, nil); err != nil {
		t.Errorf("%q, %v", text, err)
	}
	e.late(t, rt, ctx)
}

// droppedConn is dropped by the other end when the second request is written.
type droppedConn struct {
	net.Conn
	at     int64 // the write that fails
	writes atomic.Int64
}

func (c *droppedConn) Write(p []byte) (int, error) {
	if c.writes.Add(1) == c.at {
		c.Conn.Close()
		return 0, errors.New("broken pipe")
	}
	return c.Conn.Write(p)
}

// lend has a request give its slot back to another, for its dial takes so long.
func (e *endedTest) lend(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	dial, first := make(chan struct{}), make(chan struct{})
	var dials atomic.Int64
	base := &http.Transport{TLSClientConfig: e.tls, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dials.Add(1) == 1 {
			close(first)
			<-dial
			time.AfterFunc(time.Duration(e.rand.Int64N(int64(4*ms))), func() { cancel(errEnded) })
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	defer base.CloseIdleConnections()
	th := &clarifaihttp.Throttle{Limit: 1, Window: ms, Transit: -1}
	rt := over(base, th)
	var wg sync.WaitGroup
	wg.Go(func() { e.late(t, rt, ctx) })
	<-first
	// The next one gets the slot after W, and keeps it, for its body does not end.
	r, w := io.Pipe()
	defer w.Close()
	wg.Go(func() {
		if text, err := fetch(t.Context(), rt, e.url, r); err != nil {
			t.Errorf("%q, %v", text, err)
		}
	})
	w.Write([]byte("has a connection"))
	close(dial)
	<-ctx.Done()
	w.Close()
	wg.Wait()
}

// TestBlockingBodyOverHTTP2 has an HTTP/2 stream reset, or its connection die,
// while the Read of the request's body blocks, and no other can be sent.
func TestBlockingBodyOverHTTP2(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sent   int // bytes, before the Read that blocks
		buffer int
		ends   func(*h2Conn, uint32)
		after  time.Duration
	}{
		{"reset", 0, 1 << 20, func(c *h2Conn, s uint32) { c.reset(s, 2) }, time.Second},
		{"reset amid", 1000, 1 << 20, func(c *h2Conn, s uint32) { c.reset(s, 2) }, time.Second},
		{"refused amid", 1000, 1 << 20, func(c *h2Conn, s uint32) { c.reset(s, 7) }, time.Second},
		{"dies", 1000, 1 << 20, func(c *h2Conn, _ uint32) { c.Close() }, time.Second},
		{"reset, longer than the buffer", 5000, 1000, func(c *h2Conn, s uint32) { c.reset(s, 2) }, 0},
		{"dies, longer than the buffer", 5000, 1000, func(c *h2Conn, _ uint32) { c.Close() }, 0},
		{"throttled, longer than the buffer", 5000, 1000, func(c *h2Conn, s uint32) { c.throttle(s) }, 0},
		{"throttled amid", 1000, 1 << 20, func(c *h2Conn, s uint32) { c.throttle(s) }, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &blocking{n: tt.sent, blocked: make(chan struct{}), closed: make(chan struct{})}
				base := grpctest.H2C(new(http.Transport))
				base.DialContext = dialPipe(func(c net.Conn) {
					q := newQueueConn(c)
					defer close(q.queue)
					h2 := &h2Conn{Conn: q}
					h2.serve(func(stream uint32) {
						if b.served.Add(1) > 1 {
							h2.ok(stream)
							return
						}
						go func() {
							<-b.blocked
							tt.ends(h2, stream)
						}()
					})
				})
				th := new(clarifaihttp.Throttle)
				rt := over(base, th, clarifaihttp.WithReplayBuffer(tt.buffer))
				begin := time.Now()
				text, err := fetch(patient(t, time.Hour), rt, "http://server", b)
				if d := time.Since(begin); d != tt.after || errors.Is(err, errStuck) {
					t.Errorf("%q, %v after %v, want an end after %v", text, err, d, tt.after)
				}
				synctest.Wait()
				if n := b.closes.Load(); n != 1 {
					t.Errorf("body closed %d times", n)
				}
				served(t, together(patient(t, time.Hour), rt, "http://server", 1), time.Minute)
				idle(t, th)
				rt.CloseIdleConnections()
			})
		})
	}
}

// blocking is a body whose Read blocks after n bytes, until it is closed.
type blocking struct {
	n               int
	once            sync.Once
	blocked, closed chan struct{}
	closes, served  atomic.Int64
}

func (b *blocking) Read(p []byte) (int, error) {
	if b.n > 0 {
		n := min(b.n, len(p))
		b.n -= n
		return n, nil
	}
	b.once.Do(func() { close(b.blocked) })
	<-b.closed
	return 0, errors.New("closed")
}

func (b *blocking) Close() error {
	if b.closes.Add(1) == 1 {
		close(b.closed)
	}
	return nil
}
