package arrival

import (
	"context"
	"crypto/tls"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A tight receiver has so little room for what it did not read that little of a
// large request is acknowledged.
const tight = 16 << 10

// listen returns a listener whose connections have receive buffers of tight.
func listen(t *testing.T) net.Listener {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, tight)
		})
		return err
	}}
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// pair returns both ends of a connection to a tight receiver.
func pair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l := listen(t)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// write writes n bytes, all of which must find room in the socket.
func write(t *testing.T, c net.Conn, n int) {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

// read reads n bytes.
func read(t *testing.T, c net.Conn, n int) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.CopyN(io.Discard, c, int64(n)); err != nil {
		t.Fatal(err)
	}
}

// open returns a look at c, marked if c is shared.
func open(t *testing.T, c *net.TCPConn, shared bool) look {
	t.Helper()
	l := look{tcp: c, http2: shared}
	if shared {
		if a := l.mark(); a != notYet {
			t.Fatalf("answer %d, want to be able to ask", a)
		}
	}
	return l
}

// want fails unless l answers so, soon.
func want(t *testing.T, l look, answer answer) {
	t.Helper()
	got := l.ask()
	for end := time.Now().Add(5 * time.Second); got != answer && time.Now().Before(end); got = l.ask() {
		time.Sleep(ms)
	}
	if got != answer {
		t.Errorf("answer %d, want %d", got, answer)
	}
}

// still fails if l answers anything but notYet within a while.
func still(t *testing.T, l look) {
	t.Helper()
	for range 20 {
		if got := l.ask(); got != notYet {
			t.Fatalf("answer %d, want %d", got, notYet)
		}
		time.Sleep(5 * ms)
	}
}

func TestAcknowledged(t *testing.T) {
	client, _ := pair(t)
	write(t, client, 1000)
	want(t, open(t, client, false), acked)
	want(t, open(t, client, true), acked)
}

func TestReceiverDoesNotRead(t *testing.T) {
	client, server := pair(t)
	client.SetWriteBuffer(1 << 20)
	write(t, client, 300_000)
	exclusive, shared := open(t, client, false), open(t, client, true)
	still(t, exclusive)
	still(t, shared)
	read(t, server, 200_000)
	still(t, exclusive)
	still(t, shared)
	read(t, server, 100_000)
	want(t, exclusive, acked)
	want(t, shared, acked)
}

// On a shared connection, what others write after a request does not hold it up.
func TestOthersWrite(t *testing.T) {
	client, server := pair(t)
	client.SetWriteBuffer(2 << 20)
	write(t, client, 300_000)
	mine := open(t, client, true)
	write(t, client, 300_000)
	all := open(t, client, false)
	read(t, server, 200_000)
	still(t, mine)
	read(t, server, 150_000)
	want(t, mine, acked)
	still(t, all)
	read(t, server, 250_000)
	want(t, all, acked)
}

// A connection may be closed at any time, by either end.
func TestClosedUnderTheLook(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for range 50 {
			client, server := pair(t)
			client.SetWriteBuffer(1 << 20)
			write(t, client, 300_000)
			l := open(t, client, false)
			var looks sync.WaitGroup
			for range 2 {
				l := l
				looks.Go(func() {
					for {
						switch a := l.ask(); {
						case a == gone:
							return
						case a != notYet:
							t.Errorf("answer %d of a connection closed with bytes in it", a)
							return
						}
					}
				})
			}
			if reset {
				server.SetLinger(0)
				server.Close()
				time.Sleep(ms)
			}
			client.Close()
			looks.Wait()
			l = open(t, client, false)
			if a := l.ask(); a != gone {
				t.Errorf("answer %d of a closed connection", a)
			}
		}
	}
}

func TestMPTCPIsNotAsked(t *testing.T) {
	var config net.ListenConfig
	config.SetMultipathTCP(true)
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if used, _ := c.(*net.TCPConn).MultipathTCP(); !used {
		t.Skip("no MPTCP here")
	}
	l2 := open(t, c.(*net.TCPConn), false)
	if a := l2.ask(); a != unknown {
		t.Errorf("answer %d, want %d", a, unknown)
	}
}

// What net/http reports of its connections is what underlying knows.
func TestConnectionsOfNetHTTP(t *testing.T) {
	for _, test := range []struct {
		name       string
		tls, http2 bool
		wrap       func(net.Conn) net.Conn
		asked      bool
	}{
		{name: "HTTP/1.1", asked: true},
		{name: "HTTP/1.1 over TLS", tls: true, asked: true},
		{name: "HTTP/2", tls: true, http2: true, asked: true},
		{name: "wrapped", wrap: func(c net.Conn) net.Conn { return struct{ net.Conn }{c} }},
		{name: "wrapped under TLS", tls: true, wrap: func(c net.Conn) net.Conn { return struct{ net.Conn }{c} }},
		{name: "TLS under TLS", tls: true, wrap: func(c net.Conn) net.Conn { return tls.Client(c, &tls.Config{InsecureSkipVerify: true}) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			srv.EnableHTTP2 = test.http2
			if test.tls {
				srv.StartTLS()
			} else {
				srv.Start()
			}
			defer srv.Close()
			if test.name == "TLS under TLS" {
				tunnel := &http.Server{Handler: srv.Config.Handler, TLSConfig: srv.TLS}
				l := listen(t)
				go tunnel.Serve(tls.NewListener(tls.NewListener(l, srv.TLS), srv.TLS))
				defer tunnel.Close()
				srv.URL = "https://" + l.Addr().String()
			}
			base := srv.Client().Transport.(*http.Transport)
			if test.wrap != nil {
				base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					c, err := new(net.Dialer).DialContext(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					return test.wrap(c), nil
				}
			}
			var conn net.Conn
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { conn = info.Conn }})
			req, err := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := base.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if want := map[bool]int{false: 1, true: 2}[test.http2]; resp.ProtoMajor != want {
				t.Fatalf("HTTP/%d, want %d", resp.ProtoMajor, want)
			}
			l, ok := newLook(conn)
			if ok != test.asked || l.shared() != test.http2 {
				t.Errorf("%T: asked %t, shared %t", conn, ok, l.shared())
			}
		})
	}
}

// A small request costs nothing unless it is looked at, and the first look costs
// what net gives to reach the connection.
func TestAllocations(t *testing.T) {
	client, _ := pair(t)
	write(t, client, 1000)
	var w Watch
	told := make(teller, 1)
	for _, test := range []struct {
		name    string
		small   bool
		transit time.Duration
		looked  bool
		want    float64
	}{
		{name: "small, answered before the look", small: true, transit: time.Minute - 1},
		{name: "small, looked at", small: true, transit: ms, looked: true, want: 1},
		{name: "large", transit: time.Minute, looked: true, want: 1},
	} {
		n := math.Inf(1)
		for try := 0; try < 5 && n > test.want; try++ { // other goroutines' allocations are counted, too
			requests := make([]Request, 101)
			n = min(n, testing.AllocsPerRun(100, func() {
				r := &requests[0]
				requests = requests[1:]
				w.Written(r, told, client, test.small, test.transit)
				if test.looked {
					<-told
				}
				w.Stop(r)
			}))
		}
		if n > test.want {
			t.Errorf("%s: %v allocations, want %v", test.name, n, test.want)
		}
	}
}

type teller chan time.Time

func (c teller) Arrived(by time.Time) { c <- by }

func BenchmarkLook(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	look, _ := newLook(c)
	b.ReportAllocs()
	for b.Loop() {
		look.ask()
	}
}
