package clarifaihttp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptrace"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// TestSentByWhatIsBetween has a request fail unsent that a client between two
// Transports then sends again itself.
func TestSentByWhatIsBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, processed := 0, 0
		base := roundTripperFunc(func(req *http.Request) (*http.Response, error) {
			n++
			trace := httptrace.ContextClientTrace(req.Context())
			trace.GetConn("server:443")
			if n == 1 {
				time.Sleep(2 * time.Second) // its slot is given back
				trace.GotConn(httptrace.GotConnInfo{Conn: tls.Client(new(conn), &tls.Config{})})
				return nil, errors.New("closed before it was written")
			}
			trace.GotConn(httptrace.GotConnInfo{})
			trace.WroteHeaders()
			trace.WroteRequest(httptrace.WroteRequestInfo{})
			processed++
			return nil, errOwn
		})
		th := new(clarifaihttp.Throttle)
		inner := forAll(base, th)
		between := roundTripperFunc(func(req *http.Request) (*http.Response, error) {
			if resp, err := inner.RoundTrip(req); err == nil {
				return resp, err
			}
			return inner.RoundTrip(req)
		})
		rt := forAll(between, th)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://server", nil)
		_, err := rt.RoundTrip(req)
		if err != errOwn || processed != 1 {
			t.Errorf("%v after %d were sent, want errOwn after one", err, processed)
		}
		idle(t, th)
	})
}
