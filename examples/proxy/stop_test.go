package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/grpctest"
)

// TestStop stops the proxy with requests in line, for the first time and to be
// sent again, and under way.
func TestStop(t *testing.T) {
	var calls atomic.Int32
	account := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if calls.Add(1) == 1 {
			grpctest.Respond(w) // a stream, without a message for long
			http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Second)
			io.WriteString(w, okGRPC)
			return
		}
		grpctest.Respond(w, grpctest.Framed("\x0a\x03\x08\xfd\x55")) // throttled
	})
	withGRPC(t, new(config), account, func(t *testing.T, client *grpcClient, stop func()) {
		var wg sync.WaitGroup
		begin := time.Now()
		wg.Go(func() {
			if got, status := client.call(t, grpctest.Framed("under way"), ""); got != okGRPC || status != "0" {
				t.Errorf("under way: %q, status %s", got, status)
			}
		})
		time.Sleep(time.Second)
		for range 10 {
			wg.Go(func() {
				if got, status := client.call(t, grpctest.Framed("in line"), ""); status != "14" || time.Since(begin) != 3*time.Second {
					t.Errorf("in line: %q, status %s, after %v", got, status, time.Since(begin))
				}
			})
			time.Sleep(time.Millisecond) // the first one is throttled, the others wait
		}
		wg.Go(func() {
			resp, err := client.Get(client.url)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable || time.Since(begin) != 3*time.Second {
				t.Errorf("REST in line: %s after %v", resp.Status, time.Since(begin))
			}
		})
		time.Sleep(3*time.Second - time.Since(begin))
		stop()
		synctest.Wait()
		if got, status := client.call(t, grpctest.Framed("new"), ""); status != "14" {
			t.Errorf("new: %q, status %s", got, status)
		}
		wg.Wait()
		if n := calls.Load(); n != 2 {
			t.Errorf("%d calls reached the upstream, want 2", n)
		}
	})
}

// TestThrottledWhileStopping has a call come back in line after the stop.
func TestThrottledWhileStopping(t *testing.T) {
	account := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		time.Sleep(2 * time.Second)
		grpctest.Respond(w, grpctest.Framed("\x0a\x03\x08\xfd\x55"))
	})
	withGRPC(t, new(config), account, func(t *testing.T, client *grpcClient, stop func()) {
		time.AfterFunc(time.Second, stop)
		begin := time.Now()
		if got, status := client.call(t, grpctest.Framed("x"), ""); status != "14" || time.Since(begin) != 2*time.Second {
			t.Errorf("%q, status %s, after %v", got, status, time.Since(begin))
		}
	})
}

// TestServeStops stops serve, over real sockets, with a call in line and one
// under way on one HTTP/2 connection.
func TestServeStops(t *testing.T) {
	for name, finish := range map[string]bool{"in time": true, "cut off": false} {
		t.Run(name, func(t *testing.T) {
			release, arrived := make(chan struct{}), make(chan struct{})
			upstream := overSockets(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				close(arrived)
				select {
				case <-release:
					grpctest.Respond(w, okGRPC)
				case <-r.Context().Done():
				}
			}))
			c := &config{timeout: time.Minute, grace: 100 * time.Millisecond, throttle: clarifaihttp.Throttle{Limit: 1, Window: 20 * time.Second}}
			if finish {
				c.grace = time.Minute
			}
			if err := c.setUpstream("h2c" + strings.TrimPrefix(upstream.url, "http")); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- serve(ctx, l, c) }()
			tr := newBase(true)
			defer tr.CloseIdleConnections()
			client := &grpcClient{&http.Client{Transport: tr}, "http://" + l.Addr().String()}

			var wg sync.WaitGroup
			wg.Go(func() {
				if finish {
					if got, status := client.call(t, grpctest.Framed("x"), ""); got != okGRPC || status != "0" {
						t.Errorf("under way: %q, status %s", got, status)
					}
				} else if resp, err := client.Do(client.request(t.Context(), t, strings.NewReader(""))); err == nil {
					t.Errorf("under way: %s, though it was to be cut off", resp.Status)
				}
			})
			<-arrived
			refused := make(chan struct{})
			wg.Go(func() {
				defer close(refused)
				if got, status := client.call(t, grpctest.Framed("x"), ""); status != "14" {
					t.Errorf("in line: %q, status %s", got, status)
				}
			})
			for c.throttle.Stats().Waiting == 0 {
				time.Sleep(time.Millisecond)
			}
			stop()
			<-refused
			if finish {
				close(release)
			}
			wg.Wait()
			if err := <-ended; finish != (err == nil) {
				t.Error(err)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	throttle := &clarifaihttp.Throttle{Limit: 7}
	for path, want := range map[string]int{"/healthz": 200, "/": 404} {
		w := httptest.NewRecorder()
		health(throttle).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("%s: %d", path, w.Code)
		}
		var s clarifaihttp.Stats
		if err := json.Unmarshal(w.Body.Bytes(), &s); want == 200 && (err != nil || s != throttle.Stats() || s.Limit != 7) {
			t.Errorf("%s: %+v, %v", w.Body, s, err)
		}
	}
}

// TestRun listens on both addresses and ends.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &config{upstream: new(url.URL), timeout: time.Second, grace: time.Second}
	if err := run(ctx, "127.0.0.1:0", "127.0.0.1:0", c); err != nil {
		t.Error(err)
	}
	if err := run(ctx, "127.0.0.1:0", "nowhere.invalid:1", c); err == nil {
		t.Error("no error of the admin address")
	}
	if err := run(ctx, "nowhere.invalid:1", "", c); err == nil {
		t.Error("no error of the address")
	}
}
