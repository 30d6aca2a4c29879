// Package grpctest has what the tests of several packages need to speak gRPC
// with net/http alone.
package grpctest

import (
	"encoding/binary"
	"io"
	"net/http"
)

// Framed puts the prefix of gRPC before a message that is not compressed.
func Framed(message string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))) + message
}

// Respond writes the header and trailers of a call around its messages, which are
// flushed one by one.
func Respond(w http.ResponseWriter, messages ...string) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	w.WriteHeader(http.StatusOK)
	for _, m := range messages {
		io.WriteString(w, m)
		http.NewResponseController(w).Flush()
	}
}

// H2C has tr speak HTTP/2 without TLS, and returns it.
func H2C(tr *http.Transport) *http.Transport {
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetUnencryptedHTTP2(true)
	return tr
}
