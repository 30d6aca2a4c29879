package throttletest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// get returns the status of the answer, having read it all.
func get(ctx context.Context, t *testing.T, client *http.Client, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, client, req)
}

func do(t *testing.T, client *http.Client, req *http.Request) int {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

// TestServer goes through a throttle and its halt by net/http on both sides.
// That a bubble ends proves that no goroutine is left.
func TestServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(throttletest.Handler)
		srv := throttletest.NewServer(h)
		defer srv.Close()
		if u, err := url.Parse(srv.URL); err != nil || u.Scheme != "http" || u.Host == "" || u.Path != "" {
			t.Errorf("URL %q: %v", srv.URL, err)
		}

		conns := 0
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
			if !info.Reused {
				conns++
			}
		}})
		begin := time.Now()
		for i, step := range []struct {
			at        time.Duration
			n, status int
		}{
			{0, 15, 200},
			{0, 1, 429},
			{15*s - 1, 1, 429},
			{15 * s, 15, 200},
			{time.Hour, 1, 200},
		} {
			time.Sleep(step.at - time.Since(begin))
			for range step.n {
				if got := get(ctx, t, srv.Client(), srv.URL+"/v2/models"); got != step.status {
					t.Errorf("step %d, at %v: status %d, want %d", i, step.at, got, step.status)
				}
			}
			if now := time.Since(begin); now != step.at {
				t.Errorf("step %d ends at %v, want %v", i, now, step.at)
			}
		}
		if conns != 1 {
			t.Errorf("%d connections, want 1 that is kept alive", conns)
		}
		if got, want := h.Stats(), (throttletest.Stats{Served: 31, Throttled: 2, Peak: 16}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	})
}

// TestServerHosts reaches the server under names that are written into clients.
func TestServerHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hosts []string
		srv := throttletest.NewServer(&throttletest.Handler{Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			hosts = append(hosts, r.Host)
		})})
		defer srv.Close()
		client := &http.Client{Transport: srv.Client().Transport} // as clients do that make their own
		for _, url := range []string{srv.URL, "https://api.clarifai.com", "http://192.0.2.1:8080"} {
			if got := get(t.Context(), t, client, url); got != 200 {
				t.Errorf("%s: status %d", url, got)
			}
		}
		if got, want := strings.Join(hosts, " "), "throttletest.invalid api.clarifai.com 192.0.2.1:8080"; got != want {
			t.Errorf("hosts %s, want %s", got, want)
		}
	})
}

func TestServerParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &throttletest.Handler{Limit: 100, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(20 * s) // as inference does
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
		})}
		srv := throttletest.NewServer(h)
		begin := time.Now()
		body := strings.Repeat("x", 10_000)
		var wg sync.WaitGroup
		for range 300 {
			wg.Go(func() {
				for {
					resp, err := srv.Client().Post(srv.URL, "text/plain", strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if resp.StatusCode == http.StatusOK {
						if err != nil || string(got) != body {
							t.Errorf("%d bytes came back, %v", len(got), err)
						}
						return
					}
					time.Sleep(15 * s)
				}
			})
		}
		wg.Wait()
		srv.Close()
		if got, want := h.Stats(), (throttletest.Stats{Served: 300, Throttled: 200 + 100, Peak: 300}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
		if got, want := time.Since(begin), 50*s; got != want {
			t.Errorf("it took %v, want %v", got, want)
		}
	})
}

// TestUploadThrottled refuses uploads that nobody reads, also such as are longer
// than net/http's server is willing to throw away.
func TestUploadThrottled(t *testing.T) {
	upload := func(t *testing.T, srv *httptest.Server, sizes ...int) {
		defer srv.Close()
		srv.Client().Transport.(*http.Transport).ExpectContinueTimeout = s // else Expect is not heeded
		for _, size := range sizes {
			for _, expect := range []string{"", "100-continue"} {
				req, err := http.NewRequest(http.MethodPost, srv.URL, bytes.NewReader(make([]byte, size)))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Expect", expect)
				if got := do(t, srv.Client(), req); got != http.StatusTooManyRequests {
					t.Errorf("%d bytes, Expect %q: status %d", size, expect, got)
				}
			}
		}
	}
	t.Run("pipe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := new(throttletest.Handler)
			h.HaltFor(time.Hour)
			upload(t, throttletest.NewServer(h), 1, 100<<10, 8<<20)
		})
	})
	t.Run("socket", func(t *testing.T) {
		h := new(throttletest.Handler)
		h.HaltFor(time.Hour)
		upload(t, httptest.NewServer(h), 1, 100<<10) // net/http would really sleep, 0.5 s, after longer ones
	})
}

func TestServerClose(t *testing.T) {
	t.Run("waits for the requests under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			srv := throttletest.NewServer(&throttletest.Handler{Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				time.Sleep(3 * s)
			})})
			begin := time.Now()
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if got := get(t.Context(), t, srv.Client(), srv.URL); got != http.StatusOK {
						t.Errorf("status %d", got)
					}
				})
			}
			synctest.Wait()
			srv.Close()
			if got := time.Since(begin); got != 3*s {
				t.Errorf("Close returned after %v", got)
			}
			wg.Wait()
			srv.Close()
			srv.CloseClientConnections()
		})
	})

	t.Run("refuses connections afterwards", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			srv := throttletest.NewServer(new(throttletest.Handler))
			get(t.Context(), t, srv.Client(), srv.URL)
			srv.Close()
			srv.Close()
			for _, url := range []string{srv.URL, "https://api.clarifai.com"} {
				_, err := srv.Client().Get(url)
				opErr, ok := errors.AsType[*net.OpError](err)
				if !ok || opErr.Op != "dial" || !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: error %v", url, err)
				}
			}
		})
	})

	t.Run("breaks an answer that is not read by CloseClientConnections", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			srv := throttletest.NewServer(&throttletest.Handler{Next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Write(make([]byte, 1<<20))
			})})
			resp, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			srv.CloseClientConnections()
			srv.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Error("no error")
			}
			resp.Body.Close()
		})
	})

	t.Run("among requests", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			srv := throttletest.NewServer(&throttletest.Handler{Limit: 1_000_000})
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					for {
						resp, err := srv.Client().Get(srv.URL)
						if err != nil {
							return
						}
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
						time.Sleep(ms)
					}
				})
			}
			time.Sleep(10 * ms) // they all begin the next at this instant
			srv.Close()
			wg.Wait()
		})
	})
}

func TestServerContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan struct{})
		srv := throttletest.NewServer(&throttletest.Handler{Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			close(gone)
		})})
		defer srv.Close()
		ctx, cancel := context.WithTimeout(t.Context(), s)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := srv.Client().Do(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		<-gone

		dial := srv.Client().Transport.(*http.Transport).DialContext
		_, err = dial(ctx, "tcp", "anything:80")
		if opErr, ok := errors.AsType[*net.OpError](err); !ok || !opErr.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial with a context that is done: %v", err)
		}
	})
}

// TestSocket is over real sockets; nothing in it waits.
func TestSocket(t *testing.T) {
	h := &throttletest.Handler{Window: time.Hour, RetryAfter: "3600"}
	srv := httptest.NewServer(h)
	defer srv.Close()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			resp, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			throttled := strings.Contains(string(b), "CONN_THROTTLED")
			if err != nil || throttled != (resp.StatusCode == http.StatusTooManyRequests) {
				t.Errorf("%s: %s, %v", resp.Status, b, err)
			}
			if throttled {
				if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); n != 3600 || err != nil {
					t.Errorf("Retry-After %d, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	if got, want := h.Stats(), (throttletest.Stats{Served: 15, Throttled: 35, Peak: 50}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}
