package clarifaihttp_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
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

// What net/http sends again by itself is limited, too. Here it does so in virtual
// time, over pipes; in stuck_test.go it does so while others hold what it needs.

// dialPipe is a DialContext whose connections have serve at their other end.
func dialPipe(serve func(net.Conn)) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			serve(server)
		}()
		return client, nil
	}
}

// A queueConn takes what is written to it at once: over HTTP/2, one must not
// wait for a reader who waits to write.
type queueConn struct {
	net.Conn
	queue chan []byte
}

func newQueueConn(c net.Conn) *queueConn {
	q := &queueConn{c, make(chan []byte, 1000)}
	go func() {
		for p := range q.queue {
			c.Write(p)
		}
	}()
	return q
}

func (q *queueConn) Write(p []byte) (int, error) {
	q.queue <- slices.Clone(p)
	return len(p), nil
}

// TestResendsAreLimited has net/http send requests again by itself for a minute:
// the server hangs up on a third of those that come over a connection which was
// used before, or refuses a third of the streams.
func TestResendsAreLimited(t *testing.T) {
	for _, tt := range []struct {
		name  string
		base  *http.Transport
		serve func(c net.Conn, arrived func(), third func() bool)
	}{
		{"connections", &http.Transport{MaxIdleConnsPerHost: 100}, func(c net.Conn, arrived func(), third func() bool) {
			br := bufio.NewReader(c)
			for first := true; ; first = false {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				arrived()
				if !first && third() {
					return
				}
				time.Sleep(100 * ms)
				io.WriteString(c, rawOK)
			}
		}},
		{"streams", grpctest.H2C(new(http.Transport)), func(c net.Conn, arrived func(), third func() bool) {
			q := newQueueConn(c)
			defer close(q.queue)
			h2 := &h2Conn{Conn: q}
			var answers sync.WaitGroup
			defer answers.Wait()
			h2.serve(func(stream uint32) {
				arrived()
				if third() {
					h2.reset(stream, h2RefusedStream)
					return
				}
				answers.Go(func() {
					time.Sleep(100 * ms)
					h2.ok(stream)
				})
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				account := &throttletest.Handler{Halt: -1}
				var candidates, dropped atomic.Int32
				tt.base.DialContext = dialPipe(func(c net.Conn) {
					tt.serve(c, func() { account.Allow(time.Now()) }, func() bool {
						if candidates.Add(1)%3 != 1 {
							return false
						}
						dropped.Add(1)
						return true
					})
				})
				th := new(clarifaihttp.Throttle)
				rt := over(tt.base, th)
				ctx, cancel := context.WithCancel(t.Context()) // a deadline would have requests refused
				time.AfterFunc(time.Minute, cancel)
				var served atomic.Int32
				var wg sync.WaitGroup
				for range 40 {
					wg.Go(func() {
						for {
							text, err := fetch(ctx, rt, "http://server", nil)
							switch {
							case ctx.Err() != nil:
								return
							case err != nil || !strings.HasPrefix(text, "200"):
								t.Errorf("%q, %v", text, err)
								return
							}
							served.Add(1)
						}
					})
				}
				wg.Wait()
				t.Logf("%d served, %d dropped, %+v", served.Load(), dropped.Load(), account.Stats())
				if served.Load() < 300 || dropped.Load() < 100 {
					t.Errorf("%d served, %d dropped: this shows nothing", served.Load(), dropped.Load())
				}
				if s := account.Stats(); s.Peak > 15 || s.Throttled > 0 {
					t.Errorf("%+v, want 15 arrivals in a second at most", s)
				}
				idle(t, th)
				rt.CloseIdleConnections()
			})
		})
	}
}

// TestResendHoldsConnection has a request wait to be sent again by net/http,
// while it holds the only connection that there may be, and a retry that needs
// this connection came first.
func TestResendHoldsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arrivals := newTimeline()
		base := &http.Transport{MaxConnsPerHost: 1, DialContext: dialPipe(func(c net.Conn) {
			for br := bufio.NewReader(c); ; {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				switch arrivals.mark() {
				case 0:
					time.Sleep(3 * time.Second) // longer than Transit + W
					io.WriteString(c, strings.Replace(rawThrottled, "Retry-After", "Ignored", 1))
				case 1:
					time.Sleep(2 * time.Second)
					return
				default:
					io.WriteString(c, rawOK)
				}
			}
		})}
		defer base.CloseIdleConnections()
		rt := over(base, &clarifaihttp.Throttle{Limit: 1, Backoff: 15 * time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				resp, err := rt.RoundTrip(get(ctx, t))
				if err != nil {
					t.Error(err)
					return
				}
				body(t, resp)
			})
			synctest.Wait()
		}
		wg.Wait()
		if d := time.Since(arrivals.begin); d > time.Minute {
			t.Errorf("it took %v", d)
		}
	})
}

// TestSentAgainByBase has the base do as net/http does when a connection dies:
// send again by itself, behind hooks that cannot refuse.
func TestSentAgainByBase(t *testing.T) {
	t.Run("waits for a slot, even for the one it held", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			th := &clarifaihttp.Throttle{Limit: 1}
			arrivals := newTimeline()
			rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
				sent(req)
				arrivals.mark()
				time.Sleep(100 * ms)
				for range 2 {
					connected(req)
					arrivals.mark()
				}
				return ok(), nil
			})
			all(t, rt, 1)
			const step = 250*ms + hold
			arrivals.check(t, "wire requests", 0, 100*ms+step, 100*ms+2*step)
			if s := th.Stats(); s.Attempts != 3 {
				t.Errorf("%d attempts, want 3", s.Attempts)
			}
			time.Sleep(hold)
			if s := th.Stats(); s.Held != 0 {
				t.Errorf("%d slots held", s.Held)
			}
		})
	})
	t.Run("waits for the pause, and is its probe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			arrivals := newTimeline()
			rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
				sent(req)
				switch arrivals.mark() {
				case 0:
					time.Sleep(100 * ms)
					connected(req)
					arrivals.mark()
					time.Sleep(200 * ms)
				case 1:
					return throttled(""), nil
				}
				return ok(), nil
			})
			var wg sync.WaitGroup
			wg.Go(func() { all(t, rt, 1) })
			synctest.Wait()
			wg.Go(func() { all(t, rt, 1) })
			wg.Wait()
			slices.Sort(arrivals.at)
			// One of the two goes alone at the end of the pause, the other after it.
			if at := arrivals.at; len(at) != 4 || at[2] != 15*time.Second || at[3] < at[2] {
				t.Errorf("wire requests at %v", at)
			}
		})
	})
	t.Run("is charged when its context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			th := &clarifaihttp.Throttle{Limit: 1}
			rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
				sent(req)
				connected(req)
				return nil, context.Cause(req.Context())
			})
			ctx, cancel := context.WithTimeout(t.Context(), 100*ms)
			defer cancel()
			if _, err := rt.RoundTrip(get(ctx, t)); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if s := th.Stats(); s.Held != 2 || s.Attempts != 2 {
				t.Errorf("%+v, want 2 slots held", s)
			}
			time.Sleep(250*ms + hold)
			if s := th.Stats(); s.Held != 0 {
				t.Errorf("%+v, want no slot held", s)
			}
		})
	})
}
