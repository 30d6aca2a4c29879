// Command proxy is a reverse proxy that keeps all who send through it within
// one account's rate limit at Clarifai, in whatever language they are written:
//
//	go run ./examples/proxy -listen localhost:8080
//	curl -H "Authorization: Key $CLARIFAI_PAT" http://localhost:8080/v2/models/types
//
// Clarifai's SDKs take its address from CLARIFAI_API_BASE.
//
// Requests wait in one line, in the order of their arrival. One that would wait
// longer than -timeout is refused at once, by 503 and a Retry-After. A throttle
// that comes all the same pauses all of them, who see nothing of it. On SIGINT
// or SIGTERM the proxy takes no more requests and ends when those under way
// have been answered.
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
	"math"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"strconv"
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
	flag.Func("upstream", "`URL` that requests go to (default "+c.upstream.String()+")", c.setUpstream)
	flag.IntVar(&c.throttle.Limit, "limit", 15, "requests per second of the account")
	flag.DurationVar(&c.timeout, "timeout", 5*time.Minute, "longest `time` for a request, its wait included")
	flag.DurationVar(&c.grace, "grace", 30*time.Second, "longest `time` to end requests under way when stopped")
	flag.Parse()
	if flag.NArg() > 0 || c.timeout <= 0 || c.grace <= 0 || c.throttle.Limit <= 0 {
		flag.Usage()
		os.Exit(2)
	}

	l, err := net.Listen("tcp", *listen)
	if err == nil {
		slog.Info("proxy listens", "address", l.Addr().String(), "upstream", c.upstream.String())
		err = serve(ctx, l, &c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

type config struct {
	upstream *url.URL
	base     http.RoundTripper // nil: http.DefaultTransport
	throttle clarifaihttp.Throttle
	timeout  time.Duration
	grace    time.Duration
}

func (c *config) setUpstream(s string) error {
	u, err := url.Parse(s)
	if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		err = errors.New("must begin with http:// or https:// and a host")
	}
	c.upstream = u
	return err
}

// serve proxies what comes by l until ctx is done and the requests under way
// have ended.
func serve(ctx context.Context, l net.Listener, c *config) error {
	server := &http.Server{Handler: newProxy(c), ReadHeaderTimeout: 10 * time.Second}
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

// newProxy returns the proxy as a handler.
func newProxy(c *config) http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(c.upstream) },
		Transport:    clarifaihttp.NewTransport(c.base, clarifaihttp.WithThrottle(&c.throttle)),
		ErrorHandler: refuse,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), c.timeout)
		defer cancel()
		proxy.ServeHTTP(w, r.WithContext(ctx))
	})
}

// refuse answers a request that got no answer.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	if late, ok := errors.AsType[*clarifaihttp.WaitError](err); ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(late.Wait.Seconds()))))
		http.Error(w, "the line is too long: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	if errors.Is(err, context.Canceled) {
		return // the client has left
	}
	slog.Error("no answer", "method", r.Method, "error", err)
	status := http.StatusBadGateway
	if errors.Is(err, context.DeadlineExceeded) {
		status = http.StatusGatewayTimeout
	}
	http.Error(w, http.StatusText(status), status)
}
