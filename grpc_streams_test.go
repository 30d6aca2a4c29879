package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/grpctest"
	"example.com/clarifaihttp/throttletest"
)

// TestGRPCOpen has streams whose client waits before it sends more.
func TestGRPCOpen(t *testing.T) {
	const soon = 50 * ms
	t.Run("waits for the header", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			srv, tr := pipeServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				grpctest.Respond(w)
				rc := http.NewResponseController(w)
				rc.Flush()
				p := make([]byte, 6)
				for {
					if _, err := io.ReadFull(r.Body, p); err != nil {
						return
					}
					io.WriteString(w, okGRPC+string(p))
					rc.Flush()
				}
			}))
			defer srv.Close()
			throttle := new(clarifaihttp.Throttle)
			rt := clarifaihttp.NewTransport(tr, clarifaihttp.WithThrottle(throttle))
			body, client := io.Pipe()
			begin := time.Now()
			resp, err := rt.RoundTrip(grpcRequest(t.Context(), t, srv.URL, body))
			if err != nil {
				t.Fatal(err)
			}
			if d := time.Since(begin); d > soon {
				t.Errorf("the header came after %v", d)
			}
			for i := range 3 {
				time.Sleep(time.Hour)
				begin := time.Now()
				sent := grpctest.Framed(fmt.Sprint(i))
				io.WriteString(client, sent)
				p := make([]byte, len(okGRPC)+len(sent))
				if _, err := io.ReadFull(resp.Body, p); err != nil || string(p) != okGRPC+sent || time.Since(begin) != 0 {
					t.Errorf("%q, %v, after %v", p, err, time.Since(begin))
				}
			}
			client.Close()
			if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil || resp.Trailer.Get("Grpc-Status") != "0" {
				t.Errorf("%q, %v, %v", b, err, resp.Trailer)
			}
			resp.Body.Close()
			if s := throttle.Stats(); s.Throttled != 0 || s.Attempts != 1 {
				t.Errorf("%+v", s)
			}
		})
	})

	t.Run("throttled later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			srv, tr := pipeServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				grpctest.Respond(w)
				http.NewResponseController(w).Flush()
				time.Sleep(100 * ms)
				io.WriteString(w, throttledGRPC)
			}))
			defer srv.Close()
			throttle := new(clarifaihttp.Throttle)
			rt := over(tr, throttle)
			body, client := io.Pipe()
			defer client.Close()
			resp, err := rt.RoundTrip(grpcRequest(t.Context(), t, srv.URL, body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if s := throttle.Stats(); s.Throttled != 0 {
				t.Errorf("before the look: %+v", s)
			}
			if b, err := io.ReadAll(resp.Body); string(b) != throttledGRPC || err != nil {
				t.Errorf("%q, %v", b, err)
			}
			if s := throttle.Stats(); s.Throttled != 1 || s.Attempts != 1 || time.Until(s.PausedUntil) != 15*time.Second {
				t.Errorf("%+v", s)
			}
		})
	})

	// A throttled response comes whole; the client has not sent all it has. Its
	// body can not be sent again, since a Read of it is under way.
	t.Run("throttled at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			account := new(throttletest.Handler)
			srv, tr := pipeServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(ms) // until the client's next Read is under way
				account.ServeHTTP(w, r)
			}))
			defer srv.Close()
			account.HaltFor(0)
			throttle := new(clarifaihttp.Throttle)
			rt := over(tr, throttle)
			body, client := io.Pipe()
			go io.WriteString(client, grpctest.Framed("hello"))
			begin := time.Now()
			resp, err := rt.RoundTrip(grpcRequest(t.Context(), t, srv.URL, body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); !strings.Contains(string(b), "Making too many requests") || err != nil || resp.Trailer.Get("Grpc-Status") != "0" {
				t.Errorf("%q, %v, %v", b, err, resp.Trailer)
			}
			if d := time.Since(begin); d != time.Second+ms { // so long, one waits for the Read
				t.Errorf("it took %v", d)
			}
			if s := throttle.Stats(); s.Throttled != 1 || s.Attempts != 1 {
				t.Errorf("%+v", s)
			}
			client.Close()
		})
	})

	// As the probe, a stream that nobody reads holds up the account for a Window.
	t.Run("as the probe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int32
			srv, tr := pipeServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					grpctest.Respond(w, throttledGRPC)
					return
				}
				grpctest.Respond(w)
				http.NewResponseController(w).Flush()
				io.Copy(io.Discard, r.Body)
			}))
			defer srv.Close()
			rt := clarifaihttp.NewTransport(tr, clarifaihttp.WithMaxRetries(0), clarifaihttp.WithLogger(quiet))
			begin := time.Now()
			send := func(body io.Reader) *http.Response {
				resp, err := rt.RoundTrip(grpcRequest(t.Context(), t, srv.URL, body))
				if err != nil {
					t.Fatal(err)
				}
				return resp
			}
			send(strings.NewReader("")).Body.Close()
			body, client := io.Pipe()
			open := send(body)
			if d := time.Since(begin); d < 15*time.Second || d > 15*time.Second+soon {
				t.Errorf("the probe's header came after %v", d)
			}
			send(strings.NewReader("")).Body.Close()
			if d := time.Since(begin); d > 16*time.Second+soon {
				t.Errorf("the next one came after %v", d)
			}
			client.Close()
			open.Body.Close()
		})
	})
}

// TestGRPCServerStream gets the first message as soon as it is there.
func TestGRPCServerStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, tr := pipeServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			grpctest.Respond(w)
			for range 3 {
				http.NewResponseController(w).Flush()
				time.Sleep(3 * time.Second)
				io.WriteString(w, okGRPC)
			}
		}))
		defer srv.Close()
		rt := clarifaihttp.NewTransport(tr)
		begin := time.Now()
		resp, err := rt.RoundTrip(grpcRequest(t.Context(), t, srv.URL, strings.NewReader(grpctest.Framed("hello"))))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for i := range 3 {
			p := make([]byte, len(okGRPC))
			_, err := io.ReadFull(resp.Body, p)
			if want := time.Duration(i+1) * 3 * time.Second; err != nil || string(p) != okGRPC || time.Since(begin) != want {
				t.Errorf("message %d: %q, %v, after %v", i, p, err, time.Since(begin))
			}
		}
	})
}

// TestGRPCCanceled ends the context while RoundTrip waits for a message.
func TestGRPCCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan struct{})
		srv, tr := pipeServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			grpctest.Respond(w)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
			close(gone)
		}))
		defer srv.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		resp, err := clarifaihttp.NewTransport(tr).RoundTrip(grpcRequest(ctx, t, srv.URL, strings.NewReader(grpctest.Framed("hello"))))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		resp.Body.Close()
		<-gone
	})
}

// TestGRPCSharedAccount has REST and gRPC clients work on one account, in
// virtual time, with a halt begun by somebody else.
func TestGRPCSharedAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		account := &throttletest.Handler{}
		srv, tr := pipeServer(account)
		defer srv.Close()
		throttle := new(clarifaihttp.Throttle)
		overHTTP1 := tr.Clone()
		overHTTP1.Protocols = nil
		defer overHTTP1.CloseIdleConnections()
		rest, grpc := over(overHTTP1, throttle), over(tr, throttle)
		time.AfterFunc(2*time.Second, func() { account.HaltFor(15 * time.Second) })
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if i%2 == 0 {
					req := get(t.Context(), t)
					resp, err := rest.RoundTrip(req)
					if err != nil {
						t.Error(err)
					} else if b := body(t, resp); b != okBody {
						t.Errorf("REST: %s", b)
					}
					return
				}
				resp, err := grpc.RoundTrip(grpcRequest(t.Context(), t, srv.URL, strings.NewReader(grpctest.Framed("hello"))))
				if err != nil {
					t.Error(err)
				} else if b := body(t, resp); b != grpctest.Framed("\x0a\x07\x08\x90\x4e\x12\x02Ok") {
					t.Errorf("gRPC: %q", b)
				}
			})
		}
		wg.Wait()
		if s := account.Stats(); s.Served != 200 || s.Peak > 15 || s.Throttled == 0 || s.Throttled > 15 {
			t.Errorf("%+v", s)
		}
	})
}

// TestGRPCBuffers has uploads of several sizes throttled while they are under
// way, over real sockets and HTTP/2 with TLS.
func TestGRPCBuffers(t *testing.T) {
	t.Parallel()
	lateness := watchLateness()
	defer lateness()
	calls := 20
	if testing.Short() {
		calls = 8
	}
	for _, size := range []int{10, 100_000, 1_000_000} {
		var attempts atomic.Int32
		srv, tr := grpcServer(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if attempts.Add(1)%2 == 1 {
				grpctest.Respond(w, throttledGRPC) // before anything of the body was read
				return
			}
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			grpctest.Respond(w, okGRPC, string(b))
		}))
		rt := over(tr, quick())
		content := grpctest.Framed(strings.Repeat("x", size))
		for range calls {
			resp, err := rt.RoundTrip(grpcRequest(t.Context(), t, srv.URL, strings.NewReader(content)))
			if err != nil {
				t.Fatal(err)
			}
			switch got := body(t, resp); got {
			case okGRPC + content:
			case throttledGRPC: // the upload of the first attempt took too long to end
				judge(t, lateness(), time.Second)("%d bytes: throttled", size)
				return
			default:
				t.Errorf("%d bytes: %d bytes came back", size, len(got))
			}
			if keys := slices.Collect(maps.Keys(resp.Trailer)); !slices.Equal(keys, []string{"Grpc-Status"}) {
				t.Errorf("trailers %v", resp.Trailer)
			}
		}
	}
}

// TestGoAway has the server leave its connections with streams on them that it
// has not processed. Bodies of unknown length are sent again from what is kept.
func TestGoAway(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	srv, tr := grpcServer(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1)%3 == 0 {
			w.Header().Set("Connection", "close") // GOAWAY
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return // of a stream that is not on the connection any more
		}
		grpctest.Respond(w, okGRPC, string(b))
	}))
	rt := over(tr, quick())
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			content := grpctest.Framed(strings.Repeat("x", i*10_000))
			for range 20 {
				resp, err := rt.RoundTrip(grpcRequest(t.Context(), t, srv.URL, strings.NewReader(content)))
				if err != nil {
					t.Error(err)
				} else if got := body(t, resp); got != okGRPC+content {
					t.Errorf("%d bytes came back of %d", len(got), len(content))
				}
			}
		})
	}
	wg.Wait()
}
