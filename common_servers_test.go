package clarifaihttp_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
)

// The ways to speak to a server.
const (
	plainHTTP1 = "HTTP/1.1"
	tlsHTTP1   = "HTTP/1.1 over TLS"
	http2      = "HTTP/2"
)

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
