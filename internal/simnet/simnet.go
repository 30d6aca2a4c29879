// Package simnet simulates a network and a server of Clarifai's for tests in
// virtual time (testing/synctest), without sockets. The tests of the core and
// the comparison use it.
package simnet

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// ServedBody is what Clarifai answers to a request that it served.
const ServedBody = `{"status":{"code":10000,"description":"Ok"}}`

const throttledBody = `{"status":{"code":"CONN_THROTTLED","description":"Making too many requests","details":"exceeded limit of %d requests per second","req_id":"4d1f"}}`

// Refusal is how long the server takes for a throttled response.
const Refusal = 5 * time.Millisecond

// A Network is a base for clients. A request takes a random time to the server,
// is served or throttled, and its answer takes a random time back. RoundTrip
// calls the hooks of httptrace as net/http does for a request that is written
// at once.
//
// The random times come from one seeded stream, in the order of sending. What
// happens at the same instant happens in random order, by testing/synctest.
//
// The fields must not be changed after the first request. A Network is safe for
// concurrent use.
type Network struct {
	Server  *throttletest.Handler
	Jitter  time.Duration                  // each way takes from 0 to this, uniformly
	Service func(*rand.Rand) time.Duration // how long the server takes for a request it serves
	Rand    *rand.Rand

	// Answer returns what comes back, for a request that the server served or
	// throttled. Nil, or a nil response, means Clarifai's answer.
	Answer func(req *http.Request, served bool) *http.Response

	mu     sync.Mutex // guards Rand and served
	served []time.Time
}

// New returns a Network seeded by its jitter.
func New(server *throttletest.Handler, jitter time.Duration, service func(*rand.Rand) time.Duration) *Network {
	return &Network{Server: server, Jitter: jitter, Service: service, Rand: rand.New(rand.NewPCG(1, uint64(jitter)))}
}

// Fixed is a service time.
func Fixed(d time.Duration) func(*rand.Rand) time.Duration {
	return func(*rand.Rand) time.Duration { return d }
}

// Between is a service time from a to b, uniformly.
func Between(a, b time.Duration) func(*rand.Rand) time.Duration {
	return func(r *rand.Rand) time.Duration { return a + time.Duration(r.Int64N(int64(b-a))) }
}

// RoundTrip implements [http.RoundTripper].
func (n *Network) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	n.mu.Lock()
	there := time.Duration(n.Rand.Int64N(int64(n.Jitter) + 1))
	back := time.Duration(n.Rand.Int64N(int64(n.Jitter) + 1))
	service := n.Service(n.Rand)
	n.mu.Unlock()

	Sent(req.Context())
	if err := Sleep(req.Context(), there); err != nil {
		return nil, err
	}
	served := n.Server.Allow(time.Now())
	if served {
		n.mu.Lock()
		n.served = append(n.served, time.Now())
		n.mu.Unlock()
	} else {
		service = Refusal
	}
	if err := Sleep(req.Context(), service+back); err != nil {
		return nil, err
	}
	if n.Answer != nil {
		if resp := n.Answer(req, served); resp != nil {
			return resp, nil
		}
	}
	if served {
		return Respond(req, http.StatusOK, ServedBody), nil
	}
	return Respond(req, http.StatusTooManyRequests, fmt.Sprintf(throttledBody, cmp.Or(n.Server.Limit, 15))), nil
}

// Served returns when the requests arrived that the server served.
func (n *Network) Served() []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.served)
}

// Sent calls the hooks of httptrace for a request that is written at once.
func Sent(ctx context.Context) {
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

// Respond returns a response with a body of JSON.
func Respond(req *http.Request, status int, body string) *http.Response {
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

// Sleep waits for d or the end of ctx, and returns the context's cause if that
// came first.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		// Several goroutines of a bubble that receive from expired timers at the
		// same time crash the race detector of Go 1.26.
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
