package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/throttletest"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// withProxy runs f in virtual time, with a client whose requests go by a
// proxy to an account whose API echoes.
func withProxy(t *testing.T, timeout time.Duration, f func(t *testing.T, account *throttletest.Handler, front *httptest.Server)) {
	synctest.Test(t, func(t *testing.T) {
		account := &throttletest.Handler{Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			time.Sleep(50 * time.Millisecond)
			io.WriteString(w, r.Header.Get("Authorization")+" "+string(b))
		})}
		upstream := throttletest.NewServer(account)
		defer upstream.Close()
		u, err := url.Parse(upstream.URL)
		if err != nil {
			t.Fatal(err)
		}
		front := throttletest.NewServer(newProxy(t.Context(), &config{upstream: u, base: upstream.Client().Transport, replay: 1 << 20, timeout: timeout}))
		defer front.Close()
		f(t, account, front)
	})
}

func post(ctx context.Context, server *httptest.Server, body string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Authorization", "Key k")
	resp, err := server.Client().Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestLimit(t *testing.T) {
	for name, halt := range map[string]time.Duration{"alone": 0, "after another's halt": 15 * time.Second} {
		t.Run(name, func(t *testing.T) {
			withProxy(t, 5*time.Minute, func(t *testing.T, account *throttletest.Handler, front *httptest.Server) {
				if halt > 0 {
					account.HaltFor(halt)
				}
				var wg sync.WaitGroup
				for range 60 {
					wg.Go(func() {
						resp, body, err := post(t.Context(), front, "hello")
						if err != nil {
							t.Error(err)
						} else if resp.StatusCode != http.StatusOK || body != "Key k hello" {
							t.Errorf("%s: %q", resp.Status, body)
						}
					})
				}
				wg.Wait()
				s := account.Stats()
				if s.Served != 60 || s.Peak > 15 || s.Throttled > 15 || s.Throttled > 0 != (halt > 0) {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestRefusal(t *testing.T) {
	withProxy(t, 10*time.Second, func(t *testing.T, account *throttletest.Handler, front *httptest.Server) {
		account.HaltFor(15 * time.Second)
		resp, body, err := post(t.Context(), front, "first")
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(body, "CONN_THROTTLED") {
			t.Errorf("the first one: %s: %s", resp.Status, body)
		}
		begin := time.Now()
		resp, body, err = post(t.Context(), front, "second")
		if err != nil {
			t.Fatal(err)
		}
		if after := resp.Header.Get("Retry-After"); resp.StatusCode != http.StatusServiceUnavailable || after != "15" || time.Since(begin) != 0 {
			t.Errorf("the second one, after %v: %s, Retry-After %q: %s", time.Since(begin), resp.Status, after, body)
		}
		if s := account.Stats(); s.Throttled != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A running is a proxy that serves over real sockets, with one request under
// way.
type running struct {
	listener *closeTold
	stop     context.CancelFunc
	answer   chan string // that the request got
	ended    chan error
}

// start starts one before an upstream that answers as soon as release is closed.
func start(t *testing.T, grace time.Duration, release <-chan struct{}) running {
	t.Helper()
	arrived := make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		select {
		case <-release:
			io.WriteString(w, "done")
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(upstream.Close)
	c := &config{timeout: time.Minute, grace: grace}
	if err := c.setUpstream(upstream.URL); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := running{listener: &closeTold{Listener: l, closed: make(chan struct{})}, answer: make(chan string, 1), ended: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	go func() { r.ended <- serve(ctx, r.listener, c) }()
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			r.answer <- "error"
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		r.answer <- string(b)
	}()
	<-arrived
	return r
}

func TestShutdown(t *testing.T) {
	release := make(chan struct{})
	r := start(t, time.Minute, release)
	r.stop()
	<-r.listener.closed
	if conn, err := net.Dial("tcp", r.listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("still takes connections")
	}
	select {
	case err := <-r.ended:
		t.Errorf("ended with a request under way: %v", err)
	default:
	}
	close(release)
	if got := <-r.answer; got != "done" {
		t.Errorf("the request under way got %q", got)
	}
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
}

func TestCutOff(t *testing.T) {
	r := start(t, time.Millisecond, nil)
	r.stop()
	if err := <-r.ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
	if got := <-r.answer; got != "error" {
		t.Errorf("the request under way got %q", got)
	}
}

// closeTold tells when it is closed.
type closeTold struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func (l *closeTold) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { close(l.closed) })
	return err
}

func TestUpstream(t *testing.T) {
	for s, valid := range map[string]bool{
		"https://api.clarifai.com": true,
		"http://127.0.0.1:1/base":  true,
		"h2c://127.0.0.1:1":        true,
		"h2c://":                   false,
		"api.clarifai.com":         false,
		"ftp://api.clarifai.com":   false,
		"https://":                 false,
		"http://[":                 false,
	} {
		if err := new(config).setUpstream(s); valid != (err == nil) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestNoAnswer(t *testing.T) {
	for name, tt := range map[string]struct {
		err    error
		status int
	}{
		"base failed": {errors.New("connection refused"), http.StatusBadGateway},
		"timed out":   {context.DeadlineExceeded, http.StatusGatewayTimeout},
		"client left": {context.Canceled, http.StatusOK},
	} {
		w := httptest.NewRecorder()
		refuse(w, httptest.NewRequest(http.MethodGet, "/", nil), tt.err)
		if w.Code != tt.status {
			t.Errorf("%s: %d, want %d", name, w.Code, tt.status)
		}
	}
}

// TestPriority has a client claim to be urgent.
func TestPriority(t *testing.T) {
	for _, tt := range []struct{ flag, want string }{{"", "u=0"}, {"none", ""}, {"u=5", "u=5"}} {
		var got []string
		upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header["Priority"] }))
		u, err := url.Parse(upstream.URL)
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Header.Set("Priority", "u=0")
		newProxy(t.Context(), &config{upstream: u, priority: tt.flag, timeout: time.Minute}).ServeHTTP(httptest.NewRecorder(), req)
		upstream.Close()
		if strings.Join(got, ",") != tt.want {
			t.Errorf("-priority %q: the upstream sees %q, want %q", tt.flag, got, tt.want)
		}
	}
}
