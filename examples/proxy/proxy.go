package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/grpcstatus"
)

// newProxy returns the proxy as a handler. When stopping is done, it refuses
// the requests in line.
func newProxy(stopping context.Context, c *config) http.Handler {
	base := c.base
	if base == nil {
		base = newBase(c.h2c)
	}
	transport := clarifaihttp.NewTransport(underWay{base}, clarifaihttp.WithThrottle(&c.throttle), clarifaihttp.WithReplayBuffer(c.replay))
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(c.upstream)
			switch c.priority {
			case "": // the client's own
			case "none":
				r.Out.Header.Del("Priority")
			default:
				r.Out.Header.Set("Priority", c.priority)
			}
		},
		Transport:    transport,
		ErrorHandler: refuse,
		ModifyResponse: func(resp *http.Response) error {
			callOf(resp.Request.Context()).answer()
			return nil
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if timeout, ok := grpcTimeout(r); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		call := newCall(ctx, c.timeout, stopping)
		defer call.end()
		proxy.ServeHTTP(w, r.WithContext(call))
	})
}

// newBase returns the transport to the upstream.
func newBase(h2c bool) *http.Transport {
	base := http.DefaultTransport.(*http.Transport).Clone()
	// All requests share one HTTP/2 connection. One that is dead is noticed.
	base.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second}
	if h2c {
		base.Protocols = new(http.Protocols)
		base.Protocols.SetUnencryptedHTTP2(true)
	}
	return base
}

// refuse answers a request that got no answer.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	late, tooLong := errors.AsType[*clarifaihttp.WaitError](err)
	cause := context.Cause(r.Context())
	switch {
	case tooLong:
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(late.Wait.Seconds()))))
		reply(w, r, http.StatusServiceUnavailable, "the line is too long: "+err.Error())
	case cause == errStopping:
		reply(w, r, http.StatusServiceUnavailable, cause.Error())
	case errors.Is(err, context.DeadlineExceeded) || cause == context.DeadlineExceeded:
		slog.Error("no answer in time", "method", r.Method, "error", err)
		reply(w, r, http.StatusGatewayTimeout, http.StatusText(http.StatusGatewayTimeout))
	case errors.Is(err, context.Canceled): // the client has left
	default:
		slog.Error("no answer", "method", r.Method, "error", err)
		reply(w, r, http.StatusBadGateway, http.StatusText(http.StatusBadGateway))
	}
}

// Codes of gRPC.
const (
	deadlineExceeded = 4
	unavailable      = 14 // the one that clients of gRPC retry
)

// reply answers by status, or in gRPC by the code that means the same.
func reply(w http.ResponseWriter, r *http.Request, status int, text string) {
	if !isGRPC(r) {
		http.Error(w, text, status)
		return
	}
	code := unavailable
	if status == http.StatusGatewayTimeout {
		code = deadlineExceeded
	}
	// The header alone, no message: what gRPC calls Trailers-Only.
	h := w.Header()
	h.Set("Content-Type", r.Header.Get("Content-Type"))
	h["Content-Length"] = nil // not 0, which net/http would set
	h.Set("Grpc-Status", strconv.Itoa(code))
	h.Set("Grpc-Message", percentEncoded(text))
	w.WriteHeader(http.StatusOK)
}

func isGRPC(r *http.Request) bool { return grpcstatus.Type(r.Header.Get("Content-Type")) }

// percentEncoded encodes all but printable ASCII, as gRPC wants of a message.
func percentEncoded(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '%' {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// units are those of the header grpc-timeout.
var units = map[byte]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second,
	'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
}

// grpcTimeout returns the time that the client of a gRPC call waits for it: up
// to eight digits and a unit.
func grpcTimeout(r *http.Request) (timeout time.Duration, ok bool) {
	v := r.Header.Get("Grpc-Timeout")
	if !isGRPC(r) || len(v) < 2 || len(v) > 9 || strings.Trim(v[:len(v)-1], "0123456789") != "" {
		return 0, false
	}
	unit, ok := units[v[len(v)-1]]
	n, err := strconv.ParseInt(v[:len(v)-1], 10, 64)
	if !ok || err != nil {
		return 0, false
	}
	if n > math.MaxInt64/int64(unit) {
		return math.MaxInt64, true
	}
	return time.Duration(n) * unit, true
}

// health answers /healthz with the statistics of throttle.
func health(throttle *clarifaihttp.Throttle) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(throttle.Stats())
	})
	return mux
}
