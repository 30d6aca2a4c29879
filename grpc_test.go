package clarifaihttp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/grpctest"
	"example.com/clarifaihttp/throttletest"
)

// Messages as Clarifai's V2 service sends them; throttledGRPC has request id
// "id".
var (
	okGRPC        = grpctest.Framed("\x0a\x07\x08\x90\x4e\x12\x02Ok\x12\x05first")
	throttledGRPC = grpctest.Framed("\x0a\x13\x08\xfd\x55\x12\x01d\x1a\x07details\x3a\x02id")
)

// grpcServer serves HTTP/2 over TLS, or without, as h2c.
func grpcServer(t *testing.T, tls bool, h http.Handler) (*httptest.Server, *http.Transport) {
	srv := httptest.NewUnstartedServer(h)
	t.Cleanup(srv.Close)
	if tls {
		startServer(srv, http2)
	} else {
		srv.Config.Protocols = new(http.Protocols)
		srv.Config.Protocols.SetUnencryptedHTTP2(true)
		srv.Start()
	}
	tr := srv.Client().Transport.(*http.Transport)
	if !tls {
		grpctest.H2C(tr)
	}
	return srv, tr
}

// pipeServer is a server in virtual time, and its HTTP/2 transport.
func pipeServer(h http.Handler) (*httptest.Server, *http.Transport) {
	srv := newServer(http2, true, h)
	return srv, srv.Client().Transport.(*http.Transport)
}

// grpcRequest is one whose body has no known length, as a proxy has it.
func grpcRequest(ctx context.Context, t *testing.T, url string, body io.Reader) *http.Request {
	t.Helper()
	if _, ok := body.(io.Closer); !ok {
		body = io.NopCloser(body)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/clarifai.api.V2/PostModelOutputs", body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Authorization": {"Key k"}}
	return req
}

// TestGRPCAsBare compares what comes back through a Transport with what comes
// back through the bare base, at the first byte and at the end.
func TestGRPCAsBare(t *testing.T) {
	handlers := map[string]http.HandlerFunc{
		"unary": func(w http.ResponseWriter, r *http.Request) { grpctest.Respond(w, okGRPC) },
		"stream": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w, okGRPC, grpctest.Framed("second"), grpctest.Framed(""), grpctest.Framed(strings.Repeat("x", 100_000)))
		},
		"long first message": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w, grpctest.Framed(strings.Repeat("x", 3<<20)))
		},
		"no message": func(w http.ResponseWriter, r *http.Request) { grpctest.Respond(w) },
		"cut message": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w, okGRPC[:7])
		},
		"no trailers": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			io.WriteString(w, okGRPC)
		},
		"trailers-only": func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", "application/grpc")
			h.Set("Grpc-Status", "14")
			h.Set("Grpc-Message", "try again")
		},
		"trailers-only of a throttling gateway": func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", "application/grpc")
			h.Set("Grpc-Status", "8")
		},
		"error after messages": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w, okGRPC, grpctest.Framed("second"))
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "13")
			w.Header().Set(http.TrailerPrefix+"Grpc-Message", "broken")
			w.Header().Set(http.TrailerPrefix+"Details-Bin", "AAAA")
		},
		"announced trailers": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "Grpc-Status, X-Never-Sent")
			w.Header().Set("Content-Type", "application/grpc+proto")
			io.WriteString(w, okGRPC)
			w.Header().Set("Grpc-Status", "0")
		},
		"metadata": func(w http.ResponseWriter, r *http.Request) {
			w.Header()["X-Clarifai-Request-Id"] = []string{"a"}
			w.Header()["X-Many"] = []string{"a", "b"}
			w.Header()["X-Bin"] = []string{"AAECAw"}
			w.Header().Set("Grpc-Accept-Encoding", "gzip")
			w.Header().Set("Set-Cookie", "a=b")
			grpctest.Respond(w, okGRPC)
		},
		"compressed": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Grpc-Encoding", "gzip")
			grpctest.Respond(w, "\x01"+okGRPC[1:])
		},
		"reset": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w, okGRPC)
			panic(http.ErrAbortHandler)
		},
		"reset before a message": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w)
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"HTTP error": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "no healthy upstream")
		},
		"another status of Clarifai's": func(w http.ResponseWriter, r *http.Request) {
			grpctest.Respond(w, grpctest.Framed("\x0a\x03\x08\xfb\x55")) // 11003
		},
	}
	for name, h := range handlers {
		for _, tls := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %t", name, tls), func(t *testing.T) {
				srv, tr := grpcServer(t, tls, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					w.Header()["Date"] = nil
					h(w, r)
				}))
				outcome := func(rt http.RoundTripper) any {
					resp, err := rt.RoundTrip(grpcRequest(t.Context(), t, srv.URL, strings.NewReader(grpctest.Framed("hello"))))
					if err != nil {
						return err.Error()
					}
					defer resp.Body.Close()
					before := []any{resp.StatusCode, resp.Proto, resp.ContentLength, resp.Uncompressed, resp.Header.Clone(), resp.Trailer.Clone()}
					b, err := io.ReadAll(resp.Body)
					failure := regexp.MustCompile(`stream ID \d+`).ReplaceAllString(fmt.Sprint(err), "stream")
					return append(before, len(b), string(b[:min(len(b), 100)]), failure, resp.Trailer)
				}
				throttle := quick()
				bare, ours := outcome(tr), outcome(clarifaihttp.NewTransport(tr, clarifaihttp.WithThrottle(throttle)))
				if !reflect.DeepEqual(bare, ours) {
					t.Errorf("bare: %v\nours: %v", bare, ours)
				}
				if s := throttle.Stats(); s.Throttled != 0 {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// TestGRPCThrottled has calls of all kinds throttled by a halt: each is sent
// again after it.
func TestGRPCThrottled(t *testing.T) {
	for name, body := range map[string]func(*http.Request, string){
		"unknown length": func(r *http.Request, s string) {},
		"known length":   func(r *http.Request, s string) { r.ContentLength = int64(len(s)) },
		"GetBody": func(r *http.Request, s string) {
			r.ContentLength = int64(len(s))
			r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
		},
		"no body": func(r *http.Request, s string) { r.Body = nil; r.ContentLength = 0 },
		"in many reads": func(r *http.Request, s string) {
			rest := strings.NewReader(s)
			r.Body = io.NopCloser(readerFunc(func(p []byte) (int, error) { return rest.Read(p[:min(len(p), 1000)]) }))
		},
		"end comes later": func(r *http.Request, s string) {
			rest := strings.NewReader(s)
			r.Body = io.NopCloser(readerFunc(func(p []byte) (int, error) {
				if rest.Len() == 0 {
					time.Sleep(300 * ms) // throttled meanwhile
				}
				return rest.Read(p)
			}))
		},
	} {
		for _, size := range []int{0, 5, 900_000} {
			t.Run(fmt.Sprintf("%s, %d bytes", name, size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					account := &throttletest.Handler{Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						b, err := io.ReadAll(r.Body)
						if err != nil {
							t.Error(err)
						}
						grpctest.Respond(w, okGRPC, string(b))
					})}
					srv, tr := pipeServer(account)
					defer srv.Close()
					account.HaltFor(15 * time.Second)
					throttle := new(clarifaihttp.Throttle)
					rt := over(tr, throttle)
					begin := time.Now()
					content := grpctest.Framed(strings.Repeat("x", size))
					req := grpcRequest(t.Context(), t, srv.URL, strings.NewReader(content))
					body(req, content)
					if req.Body == nil {
						content = ""
					}
					resp, err := rt.RoundTrip(req)
					if err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || string(b) != okGRPC+content || resp.Trailer.Get("Grpc-Status") != "0" {
						t.Errorf("%d bytes, %v, %v", len(b), err, resp.Trailer)
					}
					if resp.Request != req {
						t.Error("the response is not to the caller's request")
					}
					if d := time.Since(begin); d < 15*time.Second || d > 15*time.Second+600*ms {
						t.Errorf("it took %v", d)
					}
					if s := account.Stats(); s.Throttled != 1 || s.Served != 1 {
						t.Errorf("%+v", s)
					}
					if s := throttle.Stats(); s.Throttled != 1 || s.Attempts != 2 {
						t.Errorf("%+v", s)
					}
				})
			})
		}
	}
}

// TestGRPCHandedBack has a throttled response handed back: it is as it came.
func TestGRPCHandedBack(t *testing.T) {
	for name, opts := range map[string][]clarifaihttp.Option{
		"no retries":      {clarifaihttp.WithMaxRetries(0)},
		"not kept":        {clarifaihttp.WithReplayBuffer(3)},
		"retries refused": {}, // by a second pause, see below
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				account := new(throttletest.Handler)
				srv, tr := pipeServer(account)
				defer srv.Close()
				account.HaltFor(time.Hour)
				throttle := new(clarifaihttp.Throttle)
				var log bytes.Buffer
				rt := clarifaihttp.NewTransport(tr, append(opts, clarifaihttp.WithThrottle(throttle), clarifaihttp.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))...)
				outcome := func(rt http.RoundTripper) []any {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					defer cancel()
					resp, err := rt.RoundTrip(grpcRequest(ctx, t, srv.URL, strings.NewReader(grpctest.Framed("hello"))))
					if err != nil {
						return []any{err}
					}
					defer resp.Body.Close()
					resp.Header.Del("Date")
					resp.Header.Del("X-Clarifai-Request-Id")
					before := []any{resp.StatusCode, resp.ContentLength, resp.Header.Clone(), resp.Trailer.Clone()}
					b, err := io.ReadAll(resp.Body)
					b = b[:len(b)-4] // the request id ends it
					return append(before, string(b), err, resp.Trailer)
				}
				bare, ours := outcome(tr), outcome(rt)
				if !reflect.DeepEqual(bare, ours) {
					t.Errorf("bare: %v\nours: %v", bare, ours)
				}
				if s := throttle.Stats(); s.Throttled == 0 || !s.PausedUntil.After(time.Now()) {
					t.Errorf("%+v", s)
				}
				for _, attr := range []string{"code=11005", "exceeded limit of 15 requests per second", "request_id=0000000000000000000000000000000", "wait=15s"} {
					if !strings.Contains(log.String(), attr) {
						t.Errorf("log without %s:\n%s", attr, log.String())
					}
				}
			})
		})
	}
}
