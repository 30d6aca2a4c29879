package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/grpctest"
	"example.com/clarifaihttp/throttletest"
)

var okGRPC = grpctest.Framed("\x0a\x07\x08\x90\x4e\x12\x02Ok")

func echoGRPC(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	time.Sleep(50 * time.Millisecond)
	grpctest.Respond(w, okGRPC, string(b))
}

// A grpcClient calls one server.
type grpcClient struct {
	*http.Client
	url string
}

func (c *grpcClient) request(ctx context.Context, t *testing.T, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/clarifai.api.V2/PostModelOutputs", io.NopCloser(body))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	return req
}

// call returns the body of the answer and its grpc-status.
func (c *grpcClient) call(t *testing.T, body, timeout string) (message, status string) {
	t.Helper()
	req := c.request(t.Context(), t, strings.NewReader(body))
	if timeout != "" {
		req.Header.Set("Grpc-Timeout", timeout)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	if status = resp.Header.Get("Grpc-Status"); status == "" {
		return string(b), resp.Trailer.Get("Grpc-Status")
	}
	if resp.StatusCode != http.StatusOK || len(b) != 0 || len(resp.Trailer) > 0 || resp.ContentLength > 0 || resp.Header["Content-Length"] != nil ||
		resp.Header.Get("Content-Type") != "application/grpc" || resp.Header.Get("Grpc-Message") == "" {
		t.Errorf("not of headers alone: %+v, %q", resp, b)
	}
	return resp.Header.Get("Grpc-Message"), status
}

// withGRPC runs f in virtual time, with a client of a proxy to account.
func withGRPC(t *testing.T, c *config, account http.Handler, f func(t *testing.T, client *grpcClient, stop func())) {
	synctest.Test(t, func(t *testing.T) {
		upstream := throttletest.NewServer(account)
		defer upstream.Close()
		base := grpctest.H2C(upstream.Client().Transport.(*http.Transport))
		defer base.CloseIdleConnections()
		c.base = base
		c.upstream, _ = url.Parse(upstream.URL)
		c.replay = 1 << 20
		if c.timeout == 0 {
			c.timeout = 5 * time.Minute
		}
		stopping, stop := context.WithCancel(t.Context())
		defer stop()
		front := throttletest.NewServer(newProxy(stopping, c))
		defer front.Close()
		client := grpctest.H2C(front.Client().Transport.(*http.Transport))
		defer client.CloseIdleConnections()
		f(t, &grpcClient{&http.Client{Transport: client}, front.URL}, stop)
	})
}

func TestGRPCLimit(t *testing.T) {
	for name, halt := range map[string]time.Duration{"alone": 0, "after another's halt": 15 * time.Second} {
		t.Run(name, func(t *testing.T) {
			account := &throttletest.Handler{Next: http.HandlerFunc(echoGRPC)}
			withGRPC(t, new(config), account, func(t *testing.T, client *grpcClient, _ func()) {
				if halt > 0 {
					account.HaltFor(halt)
				}
				var wg sync.WaitGroup
				for i := range 60 {
					wg.Go(func() {
						sent := grpctest.Framed(fmt.Sprint(i))
						if got, status := client.call(t, sent, ""); got != okGRPC+sent || status != "0" {
							t.Errorf("%q, status %s", got, status)
						}
					})
				}
				wg.Wait()
				if s := account.Stats(); s.Served != 60 || s.Peak > 15 || s.Throttled > 15 || s.Throttled > 0 != (halt > 0) {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// TestGRPCRefused has calls refused that can not be answered in time.
func TestGRPCRefused(t *testing.T) {
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	for name, tt := range map[string]struct {
		halt      time.Duration
		next      http.Handler
		timeout   time.Duration
		grpc      string
		after     time.Duration // the refusal comes
		status    string
		throttled int
	}{
		"no hope within -timeout":       {halt: time.Hour, timeout: 10 * time.Second, status: "14", throttled: 1},
		"no hope within grpc-timeout":   {halt: time.Hour, grpc: "14S", status: "14", throttled: 1},
		"no hope within milliseconds":   {halt: time.Hour, grpc: "14000m", status: "14", throttled: 1},
		"not answered within -timeout":  {next: slow, timeout: 10 * time.Second, after: 10 * time.Second, status: "4"},
		"not answered by grpc-timeout":  {next: slow, grpc: "3S", after: 3 * time.Second, status: "4"},
		"invalid grpc-timeout":          {next: slow, grpc: "3s", timeout: 4 * time.Second, after: 4 * time.Second, status: "4"},
		"grpc-timeout is the later one": {next: slow, grpc: "1H", timeout: 4 * time.Second, after: 4 * time.Second, status: "4"},
		"the upstream breaks off":       {next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), status: "14"},
	} {
		t.Run(name, func(t *testing.T) {
			account := &throttletest.Handler{Next: tt.next}
			withGRPC(t, &config{timeout: tt.timeout}, account, func(t *testing.T, client *grpcClient, _ func()) {
				if tt.halt > 0 {
					account.HaltFor(tt.halt)
					if got, status := client.call(t, grpctest.Framed("first"), tt.grpc); status != "0" || !strings.Contains(got, "Making too many requests") {
						t.Errorf("the throttled call: %q, status %s", got, status)
					}
				}
				begin := time.Now()
				got, status := client.call(t, grpctest.Framed("hello"), tt.grpc)
				if status != tt.status || time.Since(begin) != tt.after {
					t.Errorf("status %s after %v: %s; want %s after %v", status, time.Since(begin), got, tt.status, tt.after)
				}
				if s := account.Stats(); s.Throttled != tt.throttled {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestGRPCTimeout(t *testing.T) {
	for v, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "99999999m": 99999999 * time.Millisecond,
		"5u": 5 * time.Microsecond, "0n": 0, "99999999H": 1<<63 - 1,
		"": -1, "S": -1, "5": -1, "123456789S": -1, "-1S": -1, "1.5S": -1, "5s": -1, " 5S": -1, "+5S": -1,
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Grpc-Timeout", v)
		if _, ok := grpcTimeout(r); ok {
			t.Errorf("%q counts without gRPC", v)
		}
		r.Header.Set("Content-Type", "application/grpc")
		got, ok := grpcTimeout(r)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}

func TestPercentEncoded(t *testing.T) {
	if got, want := percentEncoded("100% sure,\nno ö"), "100%25 sure,%0Ano %C3%B6"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestStreamOutlivesTimeout has streams flow, in both directions, for longer
// than -timeout.
func TestStreamOutlivesTimeout(t *testing.T) {
	account := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grpctest.Respond(w, okGRPC)
		rc := http.NewResponseController(w)
		p := make([]byte, 6)
		for {
			if _, err := io.ReadFull(r.Body, p); err != nil {
				return
			}
			w.Write(p)
			rc.Flush()
		}
	})
	withGRPC(t, &config{timeout: 10 * time.Second}, account, func(t *testing.T, client *grpcClient, _ func()) {
		body, send := io.Pipe()
		resp, err := client.Do(client.request(t.Context(), t, body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadFull(resp.Body, make([]byte, len(okGRPC))); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			time.Sleep(time.Minute)
			sent := grpctest.Framed(fmt.Sprint(i))
			io.WriteString(send, sent)
			p := make([]byte, len(sent))
			if _, err := io.ReadFull(resp.Body, p); err != nil || string(p) != sent {
				t.Errorf("%q, %v", p, err)
			}
		}
		send.Close()
		if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil || resp.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("%q, %v, %v", b, err, resp.Trailer)
		}
	})
}

// TestStreamsWaitForNothing has an open stream's header come at once, and the
// account go on beside it.
func TestStreamsWaitForNothing(t *testing.T) {
	account := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grpctest.Respond(w)
		http.NewResponseController(w).Flush()
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, okGRPC)
	})
	withGRPC(t, new(config), account, func(t *testing.T, client *grpcClient, _ func()) {
		var wg sync.WaitGroup
		for range 10 {
			body, send := io.Pipe()
			begin := time.Now()
			resp, err := client.Do(client.request(t.Context(), t, body))
			if err != nil {
				t.Fatal(err)
			}
			if d := time.Since(begin); d > 50*time.Millisecond {
				t.Errorf("the header came after %v", d)
			}
			wg.Go(func() {
				time.Sleep(time.Hour)
				send.Close()
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			})
		}
		begin := time.Now()
		if got, status := client.call(t, grpctest.Framed("x"), ""); got != okGRPC || status != "0" || time.Since(begin) > 50*time.Millisecond {
			t.Errorf("%q, status %s, after %v", got, status, time.Since(begin))
		}
		wg.Wait()
	})
}

// TestGRPCClientLeaves has the upstream see that a client is gone.
func TestGRPCClientLeaves(t *testing.T) {
	var gone chan struct{}
	account := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		close(gone)
	})
	withGRPC(t, new(config), account, func(t *testing.T, client *grpcClient, _ func()) {
		gone = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Do(client.request(ctx, t, strings.NewReader(grpctest.Framed("x")))); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		<-gone
	})
}

// overSockets serves h over real sockets, as the proxy does.
func overSockets(t *testing.T, h http.Handler) *grpcClient {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(h)
	go server.Serve(l)
	client := newBase(true)
	t.Cleanup(func() { client.CloseIdleConnections(); server.Close() })
	return &grpcClient{&http.Client{Transport: client}, "http://" + l.Addr().String()}
}

// TestWaitingUploads has 64 uploads of 3 MiB wait on one connection and go one
// by one, whichever of them have filled their windows.
func TestWaitingUploads(t *testing.T) {
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			t.Error(err)
		}
		grpctest.Respond(w, grpctest.Framed(fmt.Sprint(n)))
	}))
	upstream.EnableHTTP2 = true
	upstream.StartTLS()
	defer upstream.Close()
	line := &held{released: make(chan struct{})}
	c := &config{
		base:     upstream.Client().Transport,
		throttle: clarifaihttp.Throttle{Limit: 1, Window: time.Millisecond, Limiter: line},
		timeout:  time.Minute,
		replay:   4 << 20,
	}
	c.upstream, _ = url.Parse(upstream.URL)
	client := overSockets(t, newProxy(t.Context(), c))

	sent := grpctest.Framed(strings.Repeat("x", 3<<20))
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if got, status := client.call(t, sent, "50S"); got != grpctest.Framed(fmt.Sprint(len(sent))) || status != "0" {
				t.Errorf("%q, status %s", got, status)
			}
		})
	}
	for c.throttle.Stats().Waiting < 64 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // they send what the windows take
	close(line.released)
	wg.Wait()
}

// held is a Limiter that lets nobody go until it is released.
type held struct{ released chan struct{} }

func (h *held) Wait(ctx context.Context) error {
	select {
	case <-h.released:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TestAsBareProxy compares what the client sees with what it sees behind an
// httputil.ReverseProxy alone.
func TestAsBareProxy(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"unary": func(w http.ResponseWriter, r *http.Request) { grpctest.Respond(w, okGRPC) },
		"stream": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w, okGRPC, okGRPC, grpctest.Framed(strings.Repeat("x", 1<<20)))
		},
		"no message": func(w http.ResponseWriter, r *http.Request) { grpctest.Respond(w) },
		"no message, header first": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w)
			http.NewResponseController(w).Flush()
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "5")
			w.Header().Set(http.TrailerPrefix+"Grpc-Message", "not found")
		},
		"trailers-only": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "7")
		},
		"announced trailers": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "Grpc-Status")
			w.Header().Set("Content-Type", "application/grpc")
			io.WriteString(w, okGRPC)
			w.Header().Set("Grpc-Status", "0")
		},
		"metadata": func(w http.ResponseWriter, r *http.Request) {
			for k, v := range r.Header {
				w.Header()["X-Got-"+k] = v
			}
			w.Header()["X-Many-Bin"] = []string{"AA", "AQ"}
			grpctest.Respond(w, okGRPC)
		},
		"JSON": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"status":{"code":10000}}`)
		},
		"error in JSON": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"status":{"code":11102}}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			upstream := overSockets(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Date"] = nil
				io.Copy(io.Discard, r.Body)
				h(w, r)
			}))
			c := &config{timeout: time.Minute}
			if err := c.setUpstream("h2c" + strings.TrimPrefix(upstream.url, "http")); err != nil {
				t.Fatal(err)
			}
			bare := &httputil.ReverseProxy{
				Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(c.upstream) },
				Transport: newBase(true),
			}
			var outcomes [2][]any
			for i, proxy := range []http.Handler{bare, newProxy(t.Context(), c)} {
				client := overSockets(t, proxy)
				req := client.request(t.Context(), t, strings.NewReader(grpctest.Framed("hello")))
				req.Header.Set("X-Bin", "AAEC")
				req.Header.Set("User-Agent", "grpc-node-js/1.14")
				req.Header.Set("Grpc-Timeout", "9S")
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Header.Del("Date") // the proxies' own
				before := []any{resp.StatusCode, resp.ContentLength, resp.Header.Clone(), resp.Trailer.Clone()}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				outcomes[i] = append(before, len(b), string(b[:min(100, len(b))]), err, resp.Trailer)
			}
			if !reflect.DeepEqual(outcomes[0], outcomes[1]) {
				t.Errorf("bare: %v\nours: %v", outcomes[0], outcomes[1])
			}
		})
	}
}
