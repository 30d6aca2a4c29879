package clarifaihttp_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/grpctest"
	"example.com/clarifaihttp/throttletest"
)

// TestFaults has connections fail in all ways, with throttles in between.
func TestFaults(t *testing.T) {
	t.Parallel()
	const short, long = 250 * ms, 20 * time.Second
	for _, tt := range []struct {
		name    string
		serve   func(*net.TCPConn, *http.Request)
		body    func() io.Reader
		timeout time.Duration
		want    string // "ok", "error" of RoundTrip, "body": an error of the body's
	}{
		{name: "none", want: "ok", serve: func(c *net.TCPConn, _ *http.Request) { io.WriteString(c, rawOK) }},
		{name: "reset before headers", want: "error", serve: func(c *net.TCPConn, _ *http.Request) { reset(c) }},
		{name: "closed before headers", want: "error", serve: func(*net.TCPConn, *http.Request) {}},
		{name: "reset amid headers", want: "error", serve: func(c *net.TCPConn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le")
			time.Sleep(10 * ms)
			reset(c)
		}},
		{name: "reset amid body", want: "body", serve: func(c *net.TCPConn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
			time.Sleep(10 * ms)
			reset(c)
		}},
		{name: "reset amid error body", want: "body", serve: func(c *net.TCPConn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 10\r\n\r\n{")
			time.Sleep(10 * ms)
			reset(c)
		}},
		{name: "truncated chunk", want: "body", serve: func(c *net.TCPConn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{\"a\"")
		}},
		{name: "half-closed without an answer", want: "error", serve: func(c *net.TCPConn, _ *http.Request) {
			c.CloseWrite()
			hangUp(c)
		}},
		{name: "half-closed after the answer", want: "ok", serve: func(c *net.TCPConn, _ *http.Request) {
			io.WriteString(c, rawOK)
			c.CloseWrite()
			hangUp(c)
		}},
		{name: "more than the answer", want: "ok", serve: func(c *net.TCPConn, _ *http.Request) {
			io.WriteString(c, rawOK+"?")
			hangUp(c)
		}},
		{name: "no HTTP", want: "error", serve: func(c *net.TCPConn, _ *http.Request) { io.WriteString(c, "\x00\xff\r\n\r\n") }},
		{name: "header bomb", want: "error", serve: func(c *net.TCPConn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 429 Too Many Requests\r\n")
			for line := []byte("Retry-After: " + strings.Repeat("9", 1<<16) + "\r\n"); ; {
				if _, err := c.Write(line); err != nil {
					return
				}
			}
		}},
		{name: "body bomb", want: "body", timeout: short, serve: func(c *net.TCPConn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 9223372036854775807\r\n\r\n{\"a\":")
			for more := bytes.Repeat([]byte("["), 1<<16); ; {
				if _, err := c.Write(more); err != nil {
					return
				}
			}
		}},
		{name: "very slow upload", want: "ok", body: func() io.Reader { return &slowReader{n: 10} }, serve: func(c *net.TCPConn, r *http.Request) {
			if b, err := io.ReadAll(r.Body); len(b) == 10 && err == nil {
				io.WriteString(c, rawLastOK)
			}
		}},
		{name: "answered amid the upload", want: "ok", body: func() io.Reader { return &slowReader{n: 10} }, serve: func(c *net.TCPConn, r *http.Request) {
			io.WriteString(c, rawLastOK)
			io.Copy(io.Discard, r.Body)
		}},
		{name: "reset amid the upload", want: "error", body: func() io.Reader { return &slowReader{n: 10} }, serve: func(c *net.TCPConn, r *http.Request) {
			r.Body.Read(make([]byte, 1))
			reset(c)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			labeled(t, func() {
				account := &throttletest.Handler{Limit: 5, Window: 5 * ms, Halt: -1}
				var requests atomic.Int32
				srv := newRawServer(t, func(c *net.TCPConn) {
					for br := bufio.NewReader(c); ; {
						r, err := http.ReadRequest(br)
						if err != nil {
							return
						}
						account.Allow(time.Now())
						switch n := requests.Add(1); {
						case r.URL.Path == "/":
							io.WriteString(c, rawOK)
							continue
						case n%3 == 1: // the others' faults come after a throttle or on a connection that is used again
							io.WriteString(c, rawThrottled)
							io.Copy(io.Discard, r.Body)
							continue
						}
						tt.serve(c, r)
						return
					}
				})
				defer srv.stop()
				th, lateness := tight(), watchLateness()
				rt := over(&http.Transport{}, th)
				var wg sync.WaitGroup
				for range 2 {
					for range 3 {
						wg.Go(func() {
							timeout := tt.timeout
							if timeout == 0 {
								timeout = long
							}
							ctx, cancel := context.WithTimeout(t.Context(), timeout)
							defer cancel()
							method, reader := http.MethodGet, io.Reader(nil)
							if tt.body != nil {
								method, reader = http.MethodPost, tt.body()
							}
							req, err := http.NewRequestWithContext(ctx, method, srv.url("/fault"), reader)
							if err != nil {
								t.Error(err)
								return
							}
							got := "ok"
							resp, err := rt.RoundTrip(req)
							if err != nil {
								got = "error"
							} else {
								if _, err = io.Copy(io.Discard, resp.Body); err != nil {
									got = "body"
								}
								resp.Body.Close()
								if resp.StatusCode == 429 {
									got = "throttle"
								}
							}
							// A short timeout may end a wait as well, or leave no time for a retry.
							if got != tt.want && (timeout != short || got == "ok") {
								t.Errorf("got %q (%v), want %q", got, err, tt.want)
							}
						})
					}
					wg.Wait()
				}
				nothingLeft(t, rt, th, srv)
				if s, failf := account.Stats(), judge(t, lateness(), th.Transit); s.Peak > 5 {
					failf("%+v", s)
				}
			})
		})
	}
}

// TestRefusedDials has 40 dials fail: as nothing was sent, no slot is held, and
// nobody waits.
func TestRefusedDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := &net.OpError{Op: "dial", Net: "tcp", Err: errOwn}
		th := new(clarifaihttp.Throttle)
		rt := over(&http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, refused }}, th)
		for _, o := range together(t.Context(), rt, "http://server", 40) {
			if o.err != error(refused) || o.after != 0 {
				t.Errorf("%v after %v", o.err, o.after)
			}
		}
		if s := th.Stats(); s.Held != 0 || s.Waiting != 0 || s.Attempts != 40 {
			t.Errorf("%+v, want all slots back at once", s)
		}
	})
}

// rawLastOK says that the connection is closed after it: net/http would send on
// it else, and could not send a body again that it has begun to read.
var rawLastOK = strings.Replace(rawOK, "\r\n", "\r\nConnection: close\r\n", 1)

// A slowReader gives n bytes, one each ms.
type slowReader struct{ n int }

func (r *slowReader) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	r.n--
	time.Sleep(ms) // in all far less than the second that a throttled upload gets
	p[0] = 'x'
	return 1, nil
}

// TestFaultsHTTP2 has streams and connections of HTTP/2 fail at random, with
// throttles in between.
func TestFaultsHTTP2(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		serve func(c *h2Conn, stream uint32)
		fails bool // what the caller sees
	}{
		{"RST_STREAM before headers", func(c *h2Conn, stream uint32) { c.reset(stream, h2InternalError) }, true},
		{"RST_STREAM amid body", func(c *h2Conn, stream uint32) {
			c.frame(h2Headers, h2EndHeaders, stream, "\x88")
			c.frame(h2Data, 0, stream, "abc")
			c.reset(stream, h2Cancel)
		}, true},
		{"RST_STREAM amid error body", func(c *h2Conn, stream uint32) {
			c.frame(h2Headers, h2EndHeaders, stream, "\x08\x03503")
			c.frame(h2Data, 0, stream, `{"status":`)
			c.reset(stream, h2InternalError)
		}, true},
		{"REFUSED_STREAM", func(c *h2Conn, stream uint32) { c.reset(stream, h2RefusedStream) }, false},
		{"GOAWAY before the stream", func(c *h2Conn, stream uint32) {
			c.frame(h2GoAway, 0, 0, uint32s(0, 0))
			c.Conn.(*net.TCPConn).CloseWrite() // a reset could overtake the frame
		}, false},
		{"GOAWAY after the stream", func(c *h2Conn, stream uint32) {
			c.frame(h2GoAway, 0, 0, uint32s(stream, 0))
			c.ok(stream)
			c.Conn.(*net.TCPConn).CloseWrite()
		}, false},
		{"closed", func(c *h2Conn, _ uint32) { c.Close() }, true},
		{"reset", func(c *h2Conn, _ uint32) { reset(c.Conn.(*net.TCPConn)) }, true},
		{"broken frame", func(c *h2Conn, stream uint32) { c.frame(h2Headers, h2EndHeaders, stream, "\xff\xff\xff\xff\xff\xff") }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			labeled(t, func() {
				account := &throttletest.Handler{Limit: 5, Window: 5 * ms, Halt: -1}
				var requests, faults atomic.Int32
				srv := newRawServer(t, func(c *net.TCPConn) {
					h2 := &h2Conn{Conn: c}
					h2.serve(func(stream uint32) {
						account.Allow(time.Now())
						switch n := requests.Add(1); {
						case n%4 == 2:
							h2.throttle(stream)
						case n%4 == 3 && n < 40:
							faults.Add(1)
							tt.serve(h2, stream)
						default:
							h2.ok(stream)
						}
					})
				})
				defer srv.stop()
				th, lateness := tight(), watchLateness()
				rt := over(grpctest.H2C(new(http.Transport)), th)
				var wg sync.WaitGroup
				var failed atomic.Int32
				for range 5 {
					wg.Go(func() {
						for range 5 {
							req, err := http.NewRequest(http.MethodGet, srv.url("/"), nil)
							if err != nil {
								t.Error(err)
								return
							}
							resp, err := rt.RoundTrip(req)
							if err == nil {
								_, err = io.Copy(io.Discard, resp.Body)
								resp.Body.Close()
							}
							if err != nil {
								failed.Add(1)
								if !tt.fails {
									t.Error(err)
								}
							}
						}
					})
				}
				wg.Wait()
				requests.Store(100) // no faults any more
				nothingLeft(t, rt, th, srv)
				if faults.Load() == 0 || tt.fails != (failed.Load() > 0) {
					t.Errorf("%d faults, %d requests failed", faults.Load(), failed.Load())
				}
				if s, failf := account.Stats(), judge(t, lateness(), th.Transit); s.Peak > 5 {
					failf("%+v", s)
				}
			})
		})
	}
}
