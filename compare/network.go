package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"example.com/clarifaihttp/throttletest"
)

const (
	servedBody    = `{"status":{"code":10000,"description":"Ok"}}`
	throttledBody = `{"status":{"code":"CONN_THROTTLED","description":"Making too many requests","details":"exceeded limit of 15 requests per second","req_id":"4d1f"}}`
)

// refusal is how long the server takes to answer that it throttles.
const refusal = 5 * time.Millisecond

// A network is the base of all clients, without sockets, for virtual time: a
// request takes a random time to the server, is served or throttled, and its
// answer takes a random time back. It fires the hooks of httptrace as net/http
// does.
//
// The delays come from one seeded stream, in the order of sending. What happens
// at the same instant happens in random order, by testing/synctest.
type network struct {
	server  *throttletest.Handler
	jitter  time.Duration // one way: uniform between 0 and this
	service func(*rand.Rand) time.Duration

	mu     sync.Mutex // guards rng and served
	rng    *rand.Rand
	served []time.Time // arrivals that the server let pass
}

// fixed is a service time.
func fixed(d time.Duration) func(*rand.Rand) time.Duration {
	return func(*rand.Rand) time.Duration { return d }
}

// between is a service time uniform between a and b.
func between(a, b time.Duration) func(*rand.Rand) time.Duration {
	return func(r *rand.Rand) time.Duration { return a + time.Duration(r.Int64N(int64(b-a))) }
}

func (n *network) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	n.mu.Lock()
	there := time.Duration(n.rng.Int64N(int64(n.jitter) + 1))
	back := time.Duration(n.rng.Int64N(int64(n.jitter) + 1))
	service := n.service(n.rng)
	n.mu.Unlock()

	fireHooks(req.Context())
	if err := sleep(req.Context(), there); err != nil {
		return nil, err
	}
	if !n.server.Allow(time.Now()) {
		if err := sleep(req.Context(), refusal+back); err != nil {
			return nil, err
		}
		return respond(req, http.StatusTooManyRequests, throttledBody), nil
	}
	n.mu.Lock()
	n.served = append(n.served, time.Now())
	n.mu.Unlock()
	if err := sleep(req.Context(), service+back); err != nil {
		return nil, err
	}
	return respond(req, http.StatusOK, servedBody), nil
}

// fireHooks tells the client's hooks that its request is on its way.
func fireHooks(ctx context.Context) {
	trace := httptrace.ContextClientTrace(ctx)
	if trace == nil {
		return
	}
	if trace.GetConn != nil {
		trace.GetConn("server:443")
	}
	if trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	if trace.WroteRequest != nil {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
	}
}

func respond(req *http.Request, status int, body string) *http.Response {
	return &http.Response{
		Status:        fmt.Sprint(status, " ", http.StatusText(status)),
		StatusCode:    status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       req,
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
