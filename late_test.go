package clarifaihttp_test

import (
	"net/http"
	"net/http/httptrace"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// TestAsksForAConnectionLate has a base say that it asks for a connection once it has
// written the request.
func TestAsksForAConnectionLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arrived := newTimeline()
		th := &clarifaihttp.Throttle{Limit: 1}
		rt := newTransport(th, func(req *http.Request) (*http.Response, error) {
			trace := httptrace.ContextClientTrace(req.Context())
			trace.GotConn(httptrace.GotConnInfo{})
			trace.WroteRequest(httptrace.WroteRequestInfo{})
			time.Sleep(100 * ms)
			arrived.mark()
			time.Sleep(150 * ms)
			trace.GetConn("server:443")
			time.Sleep(5 * time.Second)
			return ok(), nil
		})
		all(t, rt, 3)
		if arrived.peak() > 1 {
			t.Errorf("arrived at %v", arrived.at)
		}
		idle(t, th)
	})
}
