package clarifaihttp_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
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

// A lateConn takes its time for each Write.
type lateConn struct {
	net.Conn
	late *atomic.Int64
}

func (c lateConn) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(c.late.Load()))
	return c.Conn.Write(b)
}

// TestCanceledWhileItIsWritten cancels a request over HTTP/2 while its header is
// being written: it arrives nevertheless.
func TestCanceledWhileItIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arrived := newTimeline()
		server := throttletest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.mark() }))
		defer server.Close()
		base := grpctest.H2C(server.Client().Transport.(*http.Transport))
		dial := base.DialContext
		var late atomic.Int64
		base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if addr == "late:80" && err == nil {
				c = lateConn{c, &late}
			}
			return c, err
		}
		th := &clarifaihttp.Throttle{Limit: 1}
		rt := forAll(base, th)
		ctx := patient(t, time.Hour)
		served(t, together(ctx, rt, "http://late", 1), time.Minute)
		time.Sleep(10 * time.Second)

		late.Store(int64(200 * ms))
		short, cancel := context.WithCancel(ctx)
		time.AfterFunc(100*ms, cancel)
		fetch(short, rt, "http://late", nil)
		served(t, together(ctx, rt, "http://server", 1), time.Minute)
		idle(t, th)
		if len(arrived.at) != 3 || arrived.at[2]-arrived.at[1] < time.Second {
			t.Errorf("arrived at %v, want 3, one a second", arrived.at)
		}
	})
}

// TestServerClosesWhatIsHeld has requests hold connections during a pause, until
// the server closes these as idle.
func TestServerClosesWhatIsHeld(t *testing.T) {
	for _, tt := range []struct {
		name string
		body func() io.Reader
		over layer
	}{
		{"GET", func() io.Reader { return nil }, forAll},
		{"POST without a body", func() io.Reader { return http.NoBody }, forAll},
		{"POST", func() io.Reader { return strings.NewReader("body") }, forAll},
		{"POST with a body of its own", func() io.Reader { return io.MultiReader(strings.NewReader("body")) }, forAll},
		{"POST, nested", func() io.Reader { return strings.NewReader("body") }, func(base http.RoundTripper, th *clarifaihttp.Throttle) http.RoundTripper {
			return forAll(forAll(base, th), th)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler := new(throttletest.Handler)
				server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					io.Copy(io.Discard, req.Body)
					sleep(req.Context(), 30*ms)
					handler.ServeHTTP(w, req)
				}))
				synctest.Wait() // it has read its Config
				server.Config.IdleTimeout = 5 * time.Second
				defer server.Close()
				base := server.Client().Transport.(*http.Transport)
				base.MaxConnsPerHost = 2
				th := new(clarifaihttp.Throttle)
				rt := tt.over(base, th)
				handler.HaltFor(0)
				ctx := patient(t, time.Hour)
				var wg sync.WaitGroup
				for range 15 {
					wg.Go(func() {
						text, err := fetch(ctx, rt, server.URL, tt.body())
						served(t, []outcomeAfter{{text, err, 0}}, time.Minute)
					})
				}
				wg.Wait()
				idle(t, th)
			})
		})
	}
}

// TestConnectionIsRefusedAlone has a request with a body wait with its connection
// for a pause's end. It gives that one up after a second, and no other.
func TestConnectionIsRefusedAlone(t *testing.T) {
	for _, tt := range []struct {
		name string
		body io.Reader
	}{
		{"in memory", strings.NewReader("body")},
		{"large, in memory", strings.NewReader(strings.Repeat("body", 100_000))},
		{"of its own", io.MultiReader(strings.NewReader("body"))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var throttles atomic.Bool
				server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					io.Copy(io.Discard, req.Body)
					time.Sleep(30 * ms)
					if throttles.Swap(false) {
						w.WriteHeader(http.StatusTooManyRequests)
						io.WriteString(w, throttledBody)
					}
				}))
				defer server.Close()
				base := server.Client().Transport.(*http.Transport)
				base.MaxIdleConnsPerHost = 10
				dial := base.DialContext
				var dials atomic.Int64
				base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					dials.Add(1)
					return dial(ctx, network, addr)
				}
				th := new(clarifaihttp.Throttle)
				rt := forAll(base, th)
				ctx := patient(t, time.Hour)
				served(t, together(ctx, rt, server.URL, 10), time.Minute)
				time.Sleep(10 * time.Second)

				throttles.Store(true)
				var wg sync.WaitGroup
				wg.Go(func() { served(t, together(ctx, rt, server.URL, 1), time.Minute) })
				late := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: func(string) { time.Sleep(500 * ms) }})
				text, err := fetch(late, rt, server.URL, tt.body)
				wg.Wait()
				served(t, []outcomeAfter{{text, err, 0}}, time.Minute)
				if n := dials.Load(); n != 10 {
					t.Errorf("%d connections, want the first 10", n)
				}
				idle(t, th)
			})
		})
	}
}
