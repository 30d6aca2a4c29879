package clarifaihttp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

type deadlineless struct{ net.Conn }

func (deadlineless) SetDeadline(time.Time) error      { return errors.New("not supported") }
func (deadlineless) SetWriteDeadline(time.Time) error { return errors.New("not supported") }

// TestConnWithoutDeadlines refuses a request on a connection that knows no deadline.
func TestConnWithoutDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arrived := newTimeline()
		var throttles atomic.Bool
		throttles.Store(true)
		server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			arrived.mark()
			if throttles.Swap(false) {
				w.WriteHeader(http.StatusTooManyRequests)
				io.WriteString(w, throttledBody)
			}
		}))
		defer server.Close()
		base := server.Client().Transport.(*http.Transport)
		dial := base.DialContext
		base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "late:80" {
				time.Sleep(500 * ms)
			}
			c, err := dial(ctx, network, addr)
			return deadlineless{c}, err
		}
		th := new(clarifaihttp.Throttle)
		rt := forAll(base, th)
		ctx := patient(t, time.Hour)
		var wg sync.WaitGroup
		wg.Go(func() { served(t, together(ctx, rt, "http://late", 1), time.Minute) })
		served(t, together(ctx, rt, server.URL, 1), time.Minute)
		wg.Wait()
		if len(arrived.at) != 3 || arrived.at[1] < 15*time.Second {
			t.Errorf("arrived at %v, want one before the pause and two after", arrived.at)
		}
		idle(t, th)
	})
}
