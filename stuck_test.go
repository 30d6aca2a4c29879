package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// Nothing that a connection or another request does may stop the account. Tests
// here are in virtual time, with the real net/http on both sides.

// slow answers after a time between a and b that seed draws.
func slow(seed uint64, a, b time.Duration) http.HandlerFunc {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 0))
	return func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		d := a + time.Duration(r.Int64N(int64(b-a)))
		mu.Unlock()
		sleep(req.Context(), d)
		io.WriteString(w, okBody)
	}
}

// TestServerClosesConnections has a server close all its connections once. What
// net/http sends again needs slots, while others hold these and wait for its
// connections.
func TestServerClosesConnections(t *testing.T) {
	for _, conns := range []int{1, 2, 3, 10} {
		for seed := range uint64(5) {
			t.Run(fmt.Sprintf("%d connections, seed %d", conns, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					handler := &throttletest.Handler{Next: slow(seed, 2*time.Second, 6*time.Second)}
					server := throttletest.NewServer(handler)
					defer server.Close()
					base := server.Client().Transport.(*http.Transport)
					base.MaxConnsPerHost = conns
					base.MaxIdleConnsPerHost = conns
					th := new(clarifaihttp.Throttle)
					rt := over(base, th)
					time.AfterFunc(8*time.Second+time.Duration(seed)*500*ms, server.CloseClientConnections)

					for i, o := range together(patient(t, time.Hour), rt, server.URL, 60) {
						// Who is the first on its connection fails with the bare base, too.
						if errors.Is(o.err, errStuck) || o.after > 10*time.Minute {
							t.Errorf("request %d: %v after %v", i, o.err, o.after)
						}
					}
					if s := handler.Stats(); s.Throttled != 0 || s.Peak > 15 {
						t.Errorf("server: %+v", s)
					}
					idle(t, th)
				})
			})
		}
	}
}

// tokens is a Limiter with some tokens, each of which comes back when what it
// was taken for has arrived.
type tokens chan struct{}

func newTokens(n int) tokens {
	c := make(tokens, n)
	for range n {
		c <- struct{}{}
	}
	return c
}

func (c tokens) Wait(ctx context.Context) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c tokens) Arrived() { c <- struct{}{} }

// TestTokensWaitForConnection has the tokens of a Limiter wait for the
// connection of one that net/http sends again, which waits for a token.
func TestTokensWaitForConnection(t *testing.T) {
	for _, tt := range []struct{ tokens, conns, callers int }{
		{1, 1, 3}, {2, 1, 4}, {2, 1, 5}, {2, 1, 12}, {2, 2, 8}, {4, 3, 20},
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				drops := newDrops(time.Second)
				server := throttletest.NewServer(drops)
				defer server.Close()
				base := server.Client().Transport.(*http.Transport)
				base.MaxConnsPerHost = tt.conns
				base.MaxIdleConnsPerHost = tt.conns
				c := newTokens(tt.tokens)
				th := &clarifaihttp.Throttle{Limiter: c}
				rt := over(base, th)
				ctx := patient(t, time.Hour)
				served(t, together(ctx, rt, server.URL, tt.conns), time.Minute)
				drops.next.Store(1)
				served(t, together(ctx, rt, server.URL, tt.callers), time.Minute)
				idle(t, th)
				if len(c) != tt.tokens {
					t.Errorf("%d of %d tokens are back", len(c), tt.tokens)
				}
			})
		})
	}
}

// A drops answers after a while. But of the next some requests it closes the
// connections at once.
type drops struct {
	next    atomic.Int64
	after   time.Duration
	arrived *timeline
}

func newDrops(after time.Duration) *drops { return &drops{after: after, arrived: newTimeline()} }

func (d *drops) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	d.arrived.mark()
	if d.next.Add(-1) >= 0 {
		panic(http.ErrAbortHandler)
	}
	sleep(req.Context(), d.after)
	io.WriteString(w, okBody)
}

// TestLimiterRefusesResend has the Limiter refuse what net/http sends again: it
// must not be sent.
func TestLimiterRefusesResend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drops := newDrops(10 * ms)
		server := throttletest.NewServer(drops)
		defer server.Close()
		refusal, asked := errors.New("no more"), 0
		th := &clarifaihttp.Throttle{Limit: 1, Limiter: limiterFunc(func() error {
			if asked++; asked == 3 {
				return refusal
			}
			return nil
		})}
		rt := over(server.Client().Transport, th)
		ctx := patient(t, time.Hour)
		served(t, together(ctx, rt, server.URL, 1), time.Second)
		drops.next.Store(1)
		if _, err := fetch(ctx, rt, server.URL, nil); !errors.Is(err, refusal) {
			t.Errorf("%v, want the Limiter's error", err)
		}
		served(t, together(ctx, rt, server.URL, 1), 2*time.Second)
		// The first; the one that was dropped, W after that was answered; and the
		// last, Transit + W after the second had failed.
		drops.arrived.check(t, "arrivals", 0, 10*ms+hold, 10*ms+hold+250*ms+hold)
		idle(t, th)
	})
}

// TestPauseStopsWhoWaitsForConnection begins a pause while requests that were
// let go wait for a connection.
func TestPauseStopsWhoWaitsForConnection(t *testing.T) {
	for _, conns := range []int{1, 3, 5} {
		t.Run(fmt.Sprint(conns, " connections"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler := new(throttletest.Handler)
				server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					sleep(req.Context(), 30*ms)
					handler.ServeHTTP(w, req)
				}))
				defer server.Close()
				base := server.Client().Transport.(*http.Transport)
				base.MaxConnsPerHost = conns
				th := new(clarifaihttp.Throttle)
				rt := over(base, th)
				handler.HaltFor(0)
				served(t, together(patient(t, time.Hour), rt, server.URL, 15), time.Minute)
				// A connection is free for the next a moment before the answer is
				// known for a throttled one.
				if s := handler.Stats(); s.Throttled > 2*conns {
					t.Errorf("server: %+v, want %d throttled", s, conns)
				}
				idle(t, th)
			})
		})
	}
}

// TestHungDials has 15 dials hang: others, on connections that they have, go on
// after W.
func TestHungDials(t *testing.T) {
	for _, tt := range []struct {
		name  string
		conns int
		dials time.Duration // then they fail; 0: never
		wrap  func(http.RoundTripper) http.RoundTripper
	}{
		{name: "for ever"},
		{name: "30 s", dials: 30 * time.Second},
		{name: "few connections", conns: 2, dials: 30 * time.Second},
		{name: "through a base of another type", wrap: func(rt http.RoundTripper) http.RoundTripper { return roundTripperFunc(rt.RoundTrip) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := throttletest.NewServer(new(throttletest.Handler))
				defer server.Close()
				base := server.Client().Transport.(*http.Transport)
				base.MaxConnsPerHost = tt.conns
				dial := base.DialContext
				base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if strings.HasPrefix(addr, "dead") {
						if tt.dials > 0 {
							if err := sleep(ctx, tt.dials); err != nil {
								return nil, err
							}
							return nil, errors.New("no route")
						}
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return dial(ctx, network, addr)
				}
				var rt http.RoundTripper = base
				if tt.wrap != nil {
					rt = tt.wrap(rt)
				}
				th := new(clarifaihttp.Throttle)
				rt = over(rt, th)
				ctx := patient(t, time.Hour)
				served(t, together(ctx, rt, server.URL, 1), 0)
				time.Sleep(time.Minute)

				dead, stop := context.WithCancel(ctx)
				var wg sync.WaitGroup
				wg.Go(func() { together(dead, rt, "http://dead.example", 15) })
				synctest.Wait()
				served(t, together(ctx, rt, server.URL, 15), 1100*ms)
				served(t, together(ctx, rt, server.URL, 15), 1100*ms)
				stop()
				wg.Wait()
				idle(t, th)
			})
		})
	}
}
