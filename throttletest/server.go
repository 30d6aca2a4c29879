package throttletest

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"syscall"
)

// NewServer starts a server for handler without a network: it listens on ends of
// [net.Pipe], and the [http.Transport] of its Client dials them, under any host
// name, for https, too (without TLS). Both sides are those of net/http. It works
// inside a [testing/synctest] bubble, if NewServer and Close are called there. A
// [Handler] with an invalid field panics.
//
// The server takes HTTP/1.1, and HTTP/2 with prior knowledge (h2c) for gRPC: set the
// Protocols of the Client's http.Transport to UnencryptedHTTP2 alone.
//
// Call Close when done. It waits for the requests under way. A pipe has no buffer: a
// client that neither reads nor closes the body of a long response keeps its request
// under way.
func NewServer(handler http.Handler) *httptest.Server {
	if h, ok := handler.(*Handler); ok {
		h.check() // a panic under ServeHTTP would end in the server's log
	}
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler, Protocols: new(http.Protocols)}}
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	tr := srv.Client().Transport.(*http.Transport)
	tr.DialContext = l.dial
	tr.DialTLSContext = l.dial
	return srv
}

// A pipeListener accepts the server's ends of the pipes that dial makes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once // closes closed
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	err := ctx.Err()
	if err == nil {
		client, server := net.Pipe()
		select {
		case l.conns <- server:
			return client, nil
		case <-l.closed:
			err = syscall.ECONNREFUSED
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return nil, &net.OpError{Op: "dial", Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }

// String returns the host of the server's URL, a name that no resolver knows
// (RFC 6761): who dials it elsewhere is told at once.
func (pipeAddr) String() string { return "throttletest.invalid" }
