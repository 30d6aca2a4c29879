package clarifaihttp_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"example.com/clarifaihttp/internal/grpctest"
	"example.com/clarifaihttp/throttletest"
)

// The ways to speak to a server.
const (
	plainHTTP1 = "HTTP/1.1"
	tlsHTTP1   = "HTTP/1.1 over TLS"
	http2      = "HTTP/2"
)

// newServer returns a server to be spoken to in a way: over sockets or, in
// virtual time, over pipes, where HTTP/2 goes without TLS.
func newServer(proto string, virtual bool, h http.Handler) *httptest.Server {
	if virtual {
		srv := throttletest.NewServer(h)
		if proto == http2 {
			grpctest.H2C(srv.Client().Transport.(*http.Transport))
		}
		return srv
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	startServer(srv, proto)
	return srv
}

// startServer starts a server, one to be spoken to in a way.
func startServer(srv *httptest.Server, proto string) {
	srv.EnableHTTP2 = proto == http2
	if proto == plainHTTP1 {
		srv.Start()
	} else {
		srv.StartTLS()
	}
}

// echo answers with the request's body.
func echo(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	w.Write(b)
}

// writeThrottled answers as Clarifai does, and asks to be asked again at once.
func writeThrottled(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "0")
	w.WriteHeader(http.StatusTooManyRequests)
	fmt.Fprintf(w, throttledBody, 15)
}
