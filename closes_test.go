package clarifaihttp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

type closesBody struct {
	io.Reader
	closes *atomic.Int64
}

func (b closesBody) Close() error { b.closes.Add(1); return nil }

// TestBodyOfGetBodyIsClosed has net/http get a body to send a request again, and
// then no connection.
func TestBodyOfGetBodyIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			io.Copy(io.Discard, req.Body)
		}))
		defer server.Close()
		base := server.Client().Transport.(*http.Transport)
		dial := base.DialContext
		var broken, dials atomic.Int64
		base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials.Add(1) > 1 {
				return nil, errOwn
			}
			c, err := dial(ctx, network, addr)
			return brokenConn{c, &broken}, err
		}
		th := new(clarifaihttp.Throttle)
		rt := forAll(base, th)
		ctx := patient(t, time.Hour)
		served(t, together(ctx, rt, server.URL, 1), time.Minute)
		time.Sleep(5 * time.Second)
		broken.Store(1)
		var closes [3]atomic.Int64
		bodies := 1
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, closesBody{strings.NewReader("body"), &closes[0]})
		req.ContentLength = 4
		req.GetBody = func() (io.ReadCloser, error) {
			bodies++
			return closesBody{strings.NewReader("body"), &closes[bodies-1]}, nil
		}
		_, err := rt.RoundTrip(req)
		if !errors.Is(err, errOwn) {
			t.Errorf("%v, want the dial's error", err)
		}
		for i := range bodies {
			if n := closes[i].Load(); n != 1 {
				t.Errorf("body %d of %d was closed %d times", i+1, bodies, n)
			}
		}
		idle(t, th)
	})
}

// A brokenConn writes nothing once it is broken.
type brokenConn struct {
	net.Conn
	broken *atomic.Int64
}

func (c brokenConn) Write(b []byte) (int, error) {
	if c.broken.Load() > 0 {
		return 0, errors.New("broken")
	}
	return c.Conn.Write(b)
}
