package clarifaihttp_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.com/clarifaihttp"
)

// The kernels of both ends take part in these tests: they run in real time.

// A counter is a server that notes when requests arrive, by both ways to count:
// at their headers and at the end of their bodies.
type counter struct {
	*httptest.Server
	answer time.Duration // how long an answer takes
	read   chan struct{} // nil: bodies are read at once; else when it is closed

	headers, ends *timeline
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet { // to have a connection
		time.Sleep(500 * ms)
		return
	}
	c.headers.mark()
	if c.read != nil {
		<-c.read
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	c.ends.mark()
	select {
	case <-time.After(c.answer):
	case <-r.Context().Done():
	}
	io.WriteString(w, okBody)
}

// arrived returns how many requests have arrived, and how many of them within a
// second at the most, by both ways to count.
func (c *counter) arrived() (n, headers, ends int) {
	return c.ends.len(), c.headers.peak(), c.ends.peak()
}

// A atOnce runs subtests at once, however few processors there are: they do
// little but wait.
type atOnce struct {
	*testing.T
	sync.WaitGroup
}

func (g *atOnce) Run(name string, f func(*testing.T)) {
	g.Go(func() { g.T.Run(name, f) })
}

// start has c serve on l, or on any listener if that is nil, until the test ends.
func (c *counter) start(t *testing.T, proto string, l net.Listener) {
	t.Helper()
	c.headers, c.ends = newTimeline(), newTimeline()
	c.Server = httptest.NewUnstartedServer(c)
	if l != nil {
		c.Listener.Close()
		c.Listener = l
	}
	startServer(c.Server, proto)
	t.Cleanup(c.Server.Close)
}

// base returns a base for c whose sockets have send buffers of the size given;
// 0: as the system has it. If wrapped, the connections are of a kind that is not
// asked.
func (c *counter) base(t *testing.T, sendBuffer int, wrapped bool) *http.Transport {
	base := c.Client().Transport.(*http.Transport).Clone()
	base.MaxIdleConnsPerHost = 1000
	base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if sendBuffer > 0 {
			conn.(*net.TCPConn).SetWriteBuffer(sendBuffer)
		}
		if wrapped {
			return struct{ net.Conn }{conn}, nil
		}
		return conn, nil
	}
	t.Cleanup(base.CloseIdleConnections)
	return base
}

// connect opens n connections to c, for base to use.
func (c *counter) connect(t *testing.T, base http.RoundTripper, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL, nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := base.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
	}
	wg.Wait()
}

// listenTight returns a listener whose connections keep little that is not read.
func listenTight(t *testing.T, receiveBuffer int) net.Listener {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer)
		})
		return err
	}}
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A slowListener slows down what its connections receive: before serves each
// Read.
type slowListener struct {
	net.Listener
	before func()
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &slowConn{c, l.before}, err
}

type slowConn struct {
	net.Conn
	before func()
}

func (c *slowConn) Read(p []byte) (int, error) {
	c.before()
	return c.Conn.Read(p[:min(len(p), 16<<10)])
}

// post sends a body of n bytes to url and reads the answer.
func post(ctx context.Context, rt http.RoundTripper, url string, n int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(make([]byte, n)))
	if err != nil {
		return err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return err
}

// postAll has so many workers send bodies of n bytes, one after the other, until
// d is over. It returns how late goroutines ran at the worst, and an error if there
// was one.
func postAll(t *testing.T, rt http.RoundTripper, url string, n, workers int, d time.Duration) (late time.Duration, err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(d, cancel)
	lateness := watchLateness()
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := post(ctx, rt, url, n); err != nil && ctx.Err() == nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		err = *e
	}
	return lateness(), err
}

var uploadFor = flag.Duration("uploads", 0, "how long TestUploads takes with all its uploads; 0: with few, for a short time")

// TestUploads has 200 workers upload images that are answered after 3 s. If only
// their answers freed their slots, they would have a quarter of the limit.
//
//	go test -run TestUploads -v -uploads 20s .
func TestUploads(t *testing.T) {
	if testing.Short() {
		t.Skip("the kernel and 3 s answers take real time")
	}
	g := &atOnce{T: t}
	defer g.Wait()
	for _, proto := range []string{plainHTTP1, tlsHTTP1, http2} {
		if *uploadFor == 0 {
			testUploads(g, proto, 100_000, 250*ms, 4*time.Second, 70)
			continue
		}
		for _, size := range []int{100_000, 400_000, 1 << 20} {
			testUploads(g, proto, size, 250*ms, *uploadFor, 70)
		}
		testUploads(g, proto, 400_000, 100*ms, *uploadFor, 80)
		g.Wait() // else two processors are not enough
	}
}

func testUploads(g *atOnce, proto string, size int, transit, d time.Duration, least float64) {
	g.Run(fmt.Sprintf("%s, %d bytes, transit %v", proto, size, transit), func(t *testing.T) {
		c := &counter{answer: 3 * time.Second}
		c.start(t, proto, nil)
		th := &clarifaihttp.Throttle{Transit: transit}
		rt := over(c.base(t, 0, false), th)
		late, err := postAll(t, rt, c.URL, size, 200, d)
		n, headers, ends := c.arrived()
		share := 100 * float64(n) / (15 * d.Seconds())
		t.Logf("%.0f %% of the limit; at most %d a second at the headers, %d at the body's end; goroutines ran up to %v late", share, headers, ends, late.Round(ms))
		switch failf := judge(t, late, transit); {
		case err != nil:
			failf("%v", err)
		case headers > 15 || ends > 15:
			failf("%d a second at the headers, %d at the body's end; want at most 15", headers, ends)
		case share < least:
			failf("%.0f %% of the limit, want at least %.0f", share, least)
		}
	})
}

// TestStall has the server's application stop reading for 2 s, while small
// requests wait in the sockets. They arrive all at once when it goes on.
func TestStall(t *testing.T) {
	if testing.Short() {
		t.Skip("a server that stops reading for 2 s takes real time")
	}
	g := atOnce{T: t}
	defer g.Wait()
	for _, proto := range []string{plainHTTP1, tlsHTTP1, http2} {
		for _, asked := range []bool{true, false} {
			g.Run(fmt.Sprintf("%s, asked %t", proto, asked), func(t *testing.T) {
				var stall sync.RWMutex
				c := &counter{answer: 3 * time.Second}
				c.start(t, proto, slowListener{listenTight(t, 4<<10), func() {
					stall.RLock()
					defer stall.RUnlock()
				}})
				base := c.base(t, 2<<20, !asked)
				c.connect(t, base, 100) // nobody shakes hands while the server stalls
				rt := clarifaihttp.NewTransport(base, clarifaihttp.WithLogger(quiet))
				time.AfterFunc(1200*ms, func() { stall.Lock(); time.Sleep(2 * time.Second); stall.Unlock() })
				late, err := postAll(t, rt, c.URL, 30_000, 100, 5*time.Second)
				n, headers, ends := c.arrived()
				t.Logf("%d arrived; at most %d a second at the headers, %d at the body's end; goroutines ran up to %v late", n, headers, ends, late.Round(ms))
				switch failf := judge(t, late, 250*ms); {
				case err != nil:
					failf("%v", err)
				case asked && (headers > 15 || ends > 15):
					failf("%d a second at the headers, %d at the body's end; want at most 15", headers, ends)
				case !asked && ends <= 15:
					failf("at most %d a second, not asked: this shows nothing", ends)
				}
			})
		}
	}
}

// TestReceiverDoesNotRead has an upload that is written, as net/http sees it, and
// is not received: its slot is held.
func TestReceiverDoesNotRead(t *testing.T) {
	t.Parallel()
	g := atOnce{T: t}
	defer g.Wait()
	for _, proto := range []string{plainHTTP1, tlsHTTP1} {
		g.Run(proto, func(t *testing.T) {
			c := &counter{answer: time.Minute, read: make(chan struct{})}
			c.start(t, proto, listenTight(t, 4<<10))
			th := &clarifaihttp.Throttle{Window: 10 * ms, Transit: 10 * ms}
			rt := clarifaihttp.NewTransport(c.base(t, 1<<20, false), clarifaihttp.WithThrottle(th))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for _, size := range []int{50_000, 300_000} {
				go post(ctx, rt, c.URL, size)
			}
			eventually(t, func() string {
				if n := c.headers.len(); n < 2 {
					return fmt.Sprintf("%d have begun", n)
				}
				return ""
			})
			time.Sleep(500 * ms)
			if s := th.Stats(); s.Held != 2 {
				t.Errorf("%d slots held while the server does not read, want 2", s.Held)
			}
			close(c.read)
			free(t, th)
			eventually(t, func() string {
				if n, _, _ := c.arrived(); n != 2 {
					return fmt.Sprintf("%d arrived, want 2", n)
				}
				return ""
			})
		})
	}
}

// free waits until no slot of th is held.
func free(t *testing.T, th *clarifaihttp.Throttle) {
	t.Helper()
	eventually(t, func() string {
		if s := th.Stats(); s.Held > 0 {
			return fmt.Sprintf("%d slots held", s.Held)
		}
		return ""
	})
}

// TestOthersWrite has requests, answered after a minute, share an HTTP/2
// connection with uploads that keep its socket full: what others write does not
// hold up their slots.
func TestOthersWrite(t *testing.T) {
	t.Parallel()
	c := &counter{answer: time.Minute}
	c.start(t, http2, slowListener{listenTight(t, 64<<10), func() { time.Sleep(2 * ms) }})
	base := c.base(t, 64<<10, false)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var written atomic.Int64
	go func() {
		others := io.TeeReader(new(endlessBody), counting{&written})
		if req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL, others); err == nil {
			base.RoundTrip(req)
		}
	}()
	eventually(t, func() string {
		if written.Load() < 1<<20 {
			return "nobody writes"
		}
		return ""
	})
	const transit = 100 * ms
	for _, size := range []int{0, 1000, 200_000} {
		th := &clarifaihttp.Throttle{Window: 10 * ms, Transit: transit}
		rt := clarifaihttp.NewTransport(base, clarifaihttp.WithThrottle(th))
		begin := time.Now()
		go post(ctx, rt, c.URL, size)
		for th.Stats().Attempts == 0 {
			time.Sleep(ms)
		}
		free(t, th)
		took := time.Since(begin)
		t.Logf("%d bytes: slot free after %v", size, took.Round(ms))
		if least := transit + 20*ms; took < least {
			t.Errorf("%d bytes: slot free after %v, want at least %v", size, took, least)
		}
	}
}

type endlessBody struct{}

func (endlessBody) Read(p []byte) (int, error) { return min(len(p), 16<<10), nil }

type counting struct{ n *atomic.Int64 }

func (c counting) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

// TestUnknownLength has a body of unknown length count as a small one once its
// length is known.
func TestUnknownLength(t *testing.T) {
	t.Parallel()
	g := atOnce{T: t}
	defer g.Wait()
	for _, proto := range []string{plainHTTP1, http2} {
		for _, test := range []struct {
			size  int
			small bool
		}{{2000, true}, {64 << 10, true}, {64<<10 + 1, false}} {
			for _, replay := range []int{0, 1 << 20} {
				g.Run(fmt.Sprintf("%s, %d bytes, %d kept", proto, test.size, replay), func(t *testing.T) {
					c := &counter{answer: time.Minute}
					c.start(t, proto, nil)
					th := &clarifaihttp.Throttle{Window: 10 * ms, Transit: 200 * ms}
					// Not asked, small ones alone are bounded before their answers.
					rt := clarifaihttp.NewTransport(c.base(t, 0, true), clarifaihttp.WithThrottle(th), clarifaihttp.WithReplayBuffer(replay))
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL, io.MultiReader(strings.NewReader(strings.Repeat("x", test.size))))
					if err != nil {
						t.Fatal(err)
					}
					go rt.RoundTrip(req)
					eventually(t, func() string {
						if n, _, _ := c.arrived(); n == 0 {
							return "nothing arrived"
						}
						return ""
					})
					if test.small {
						free(t, th)
						return
					}
					time.Sleep(500 * ms)
					if s := th.Stats(); s.Held != 1 {
						t.Errorf("%d slots held, want 1", s.Held)
					}
				})
			}
		}
	}
}

// TestClosedUnderTheLook has connections end in all ways while their requests
// are looked at.
func TestClosedUnderTheLook(t *testing.T) {
	t.Parallel()
	g := atOnce{T: t}
	defer g.Wait()
	for _, proto := range []string{plainHTTP1, tlsHTTP1, http2} {
		g.Run(proto, func(t *testing.T) {
			c := &counter{answer: time.Minute}
			c.start(t, proto, slowListener{listenTight(t, 16<<10), func() { time.Sleep(ms) }})
			th := &clarifaihttp.Throttle{Limit: 50, Window: 10 * ms, Transit: 20 * ms}
			rt := clarifaihttp.NewTransport(c.base(t, 1<<20, false), clarifaihttp.WithThrottle(th))
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%40)*5*ms+500*ms)
					defer cancel()
					if post(ctx, rt, c.URL, i%5*50_000) == nil {
						t.Error("no error")
					}
				})
			}
			for range 5 {
				time.Sleep(200 * ms)
				c.CloseClientConnections()
			}
			wg.Wait()
			free(t, th)
		})
	}
}
