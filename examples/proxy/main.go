// Command proxy is a reverse proxy that keeps all who send through it within
// one account's rate limit at Clarifai, in whatever language they are written,
// by REST or gRPC:
//
//	go run ./examples/proxy -listen localhost:8080
//	curl -H "Authorization: Key $CLARIFAI_PAT" http://localhost:8080/v2/models/types
//
// It takes HTTP/1.1 and HTTP/2 without TLS (h2c) on one port. Clarifai's SDKs
// for gRPC reach it as an address without TLS; README.md has their settings.
//
// Requests wait in one line: the more urgent first, by their Priority header (RFC
// 9218), and then in the order of their arrival. A request that would
// wait longer than -timeout, or than its own grpc-timeout, is refused at once: by
// 503 and a Retry-After, or in gRPC by code 14 (UNAVAILABLE). A throttled response
// that comes all the same pauses all of them, who see nothing of it.
//
// On SIGINT or SIGTERM the proxy takes no more requests. Those in line are refused
// at once, those under way have -grace to end.
//
// It listens on the loopback interface unless told otherwise: who reaches it
// can fill the line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"example.com/clarifaihttp"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once

	c := config{upstream: &url.URL{Scheme: "https", Host: "api.clarifai.com"}}
	listen := flag.String("listen", "localhost:8080", "`address` to listen on")
	admin := flag.String("admin", "", "`address` that answers /healthz with the statistics as JSON (default none)")
	flag.Func("upstream", "`URL` that requests go to; h2c://host:port for HTTP/2 without TLS (default "+c.upstream.String()+")", c.setUpstream)
	flag.IntVar(&c.throttle.Limit, "limit", 15, "requests per second of the account")
	flag.DurationVar(&c.throttle.Transit, "transit", 250*time.Millisecond, "longest `time` from when a request is written to when it arrives; negative: only its answer proves that")
	flag.IntVar(&c.replay, "replay", 4<<20, "longest request body, in `bytes`, that is kept while it is sent, to be sent again if it is throttled")
	flag.StringVar(&c.priority, "priority", "", "Priority `header` of all requests, such as u=5, or none; browsers send it, and a client may claim u=0 (default the client's own)")
	flag.DurationVar(&c.timeout, "timeout", 5*time.Minute, "longest `time` until a request's answer begins, its wait included")
	flag.DurationVar(&c.grace, "grace", 30*time.Second, "longest `time` to end requests under way when stopped")
	flag.Parse()
	if flag.NArg() > 0 || c.timeout <= 0 || c.grace <= 0 || c.throttle.Limit <= 0 || c.replay < 0 {
		flag.Usage()
		os.Exit(2)
	}

	if err := run(ctx, *listen, *admin, &c); err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

// run listens and serves until ctx is done.
func run(ctx context.Context, listen, admin string, c *config) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	defer l.Close()
	if admin != "" {
		l, err := net.Listen("tcp", admin)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: health(&c.throttle), ReadHeaderTimeout: readHeaderTimeout}
		go server.Serve(l)
		defer server.Close()
		slog.Info("proxy answers /healthz", "address", l.Addr().String())
	}
	slog.Info("proxy listens", "address", l.Addr().String(), "upstream", c.upstream.String())
	return serve(ctx, l, c)
}

type config struct {
	upstream *url.URL
	h2c      bool              // to upstream
	base     http.RoundTripper // nil: as upstream needs it
	throttle clarifaihttp.Throttle
	replay   int
	priority string // "": the client's own; "none"
	timeout  time.Duration
	grace    time.Duration
}

func (c *config) setUpstream(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	c.h2c = u.Scheme == "h2c"
	if c.h2c {
		u.Scheme = "http"
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("must begin with https://, http:// or h2c:// and a host")
	}
	c.upstream = u
	return nil
}

const (
	readHeaderTimeout = 10 * time.Second

	// Requests wait in line with their bodies unread, and all those of a client
	// share one HTTP/2 connection. A full window of each must fit into that of
	// the connection, or those that wait hold up the one whose turn it is.
	maxStreams   = 250
	streamWindow = 64 << 10
	connWindow   = 16 << 20
)

// newServer returns a server of HTTP/1.1 and h2c.
func newServer(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: readHeaderTimeout,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
		},
	}
}

// serve proxies what comes by l until ctx is done and the requests under way
// have ended.
func serve(ctx context.Context, l net.Listener, c *config) error {
	server := newServer(newProxy(ctx, c))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}

	slog.Info("proxy ends, once the requests under way are answered", "at most", c.grace)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.grace)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		server.Close()
		return fmt.Errorf("requests under way were cut off: %w", err)
	}
	return nil
}
