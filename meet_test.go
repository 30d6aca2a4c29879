package clarifaihttp_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// TestProbeGoesAlone has several requests hold connections, and others wait for
// these, when a pause ends: one of them goes, the probe.
func TestProbeGoesAlone(t *testing.T) {
	for _, conns := range []int{2, 3, 5} {
		t.Run(fmt.Sprint(conns, " connections"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				arrived, handler := newTimeline(), new(throttletest.Handler)
				server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					arrived.mark()
					handler.ServeHTTP(w, req)
					w.(http.Flusher).Flush()
					time.Sleep(100 * ms)
				}))
				defer server.Close()
				base := server.Client().Transport.(*http.Transport)
				base.MaxConnsPerHost = conns
				base.MaxIdleConnsPerHost = conns
				// Shorter than W, after which those who wait for a connection have
				// nothing that one could take over.
				th := &clarifaihttp.Throttle{Backoff: 500 * ms}
				rt := over(base, th)
				ctx := patient(t, time.Hour)
				handler.HaltFor(400 * ms)
				served(t, together(ctx, rt, server.URL, 15), time.Minute)
				after := slices.DeleteFunc(slices.Sorted(slices.Values(arrived.at)), func(at time.Duration) bool { return at < 400*ms })
				if after[1]-after[0] < 80*ms { // the pace
					t.Errorf("several go at the end of the pause: %v", after)
				}
				idle(t, th)
			})
		})
	}
}

// TestTakesOverWhileItAsks has a request that holds the only connection ask the
// Limiter when another one, which has the only token, comes to wait for it.
func TestTakesOverWhileItAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if n.Add(1) == 2 {
				time.Sleep(time.Second)
				panic(http.ErrAbortHandler)
			}
			io.WriteString(w, okBody)
		}))
		defer server.Close()
		base := server.Client().Transport.(*http.Transport)
		base.MaxConnsPerHost = 1
		late := roundTripperFunc(func(req *http.Request) (*http.Response, error) {
			if req.URL.Path == "/late" {
				time.Sleep(10 * time.Second)
			}
			return base.RoundTrip(req)
		})
		c := newTokens(1)
		th := &clarifaihttp.Throttle{Limiter: c}
		rt := over(late, th)
		ctx := patient(t, time.Hour)
		served(t, together(ctx, rt, server.URL, 1), time.Minute)
		var wg sync.WaitGroup
		wg.Go(func() { served(t, together(ctx, rt, server.URL, 1), time.Minute) })
		synctest.Wait()
		served(t, together(ctx, rt, server.URL+"/late", 1), time.Minute)
		wg.Wait()
		idle(t, th)
	})
}

// TestTakesOverWhatArrivedLongAgo has a request ask for a connection when it is
// taken to have arrived, and its Limiter was told so. Another one, that net/http
// sends again then, has no permission to take over from it.
func TestTakesOverWhatArrivedLongAgo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := new(permitter)
		rt := newTransport(&clarifaihttp.Throttle{Limiter: limiter}, func(req *http.Request) (*http.Response, error) {
			trace := httptrace.ContextClientTrace(req.Context())
			if req.URL.Path == "/late" {
				time.Sleep(60*time.Second + 500*ms)
				trace.GetConn("server:443")
				time.Sleep(500 * ms)
			} else {
				sent(req)
				time.Sleep(600 * ms)
			}
			sent(req)
			return ok(), nil
		})
		ctx := patient(t, time.Hour)
		var wg sync.WaitGroup
		wg.Go(func() { served(t, together(ctx, rt, "http://server/late", 1), 2*time.Minute) })
		time.Sleep(time.Minute)
		served(t, together(ctx, rt, "http://server/again", 1), 2*time.Minute)
		wg.Wait()
		time.Sleep(time.Minute)
		if p, a := limiter.permitted.Load(), limiter.arrived.Load(); p != 4 || a != p {
			t.Errorf("%d permissions and %d arrivals, want 4", p, a)
		}
	})
}

// TestDeadHostAfterPause has many requests to a host that no dial gets through to
// ahead of one to another host, when a pause ends.
func TestDeadHostAfterPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := new(throttletest.Handler)
		server := throttletest.NewServer(handler)
		defer server.Close()
		base := server.Client().Transport.(*http.Transport)
		dial := base.DialContext
		base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "dead:80" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, network, addr)
		}
		th := new(clarifaihttp.Throttle)
		rt := forAll(base, th)
		ctx, cancel := context.WithCancel(patient(t, time.Hour))
		handler.HaltFor(0)
		short, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		fetch(short, rt, server.URL, nil)
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() { fetch(ctx, rt, "http://dead", nil) })
		}
		time.Sleep(time.Second)
		served(t, together(ctx, rt, server.URL, 1), 25*time.Second)
		cancel()
		wg.Wait()
		base.CloseIdleConnections()
		idle(t, th)
	})
}
