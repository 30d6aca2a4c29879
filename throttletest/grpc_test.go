package throttletest_test

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/internal/grpctest"
	"example.com/clarifaihttp/throttletest"
)

// h2c has the client of srv speak HTTP/2.
func h2c(srv *httptest.Server) *http.Client {
	client := srv.Client()
	grpctest.H2C(client.Transport.(*http.Transport))
	return client
}

// call sends a gRPC request and returns its message, having checked what gRPC
// wants of the answer.
func call(ctx context.Context, t *testing.T, client *http.Client, url string, body io.Reader) (resp *http.Response, message string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/clarifai.api.V2/ListModelTypes", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc+proto")
	resp, err = client.Do(req)
	if err != nil {
		t.Error(err)
		return new(http.Response), ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || len(b) < 5 || string(b) != grpctest.Framed(string(b[5:])) {
		t.Errorf("%q, %v", b, err)
		return resp, ""
	}
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/grpc+proto" ||
		!maps.EqualFunc(resp.Trailer, http.Header{"Grpc-Status": {"0"}}, func(a, b []string) bool { return a[0] == b[0] }) {
		t.Errorf("%s %s, %v, trailers %v", resp.Proto, resp.Status, resp.Header, resp.Trailer)
	}
	return resp, string(b[5:])
}

const (
	grpcOk        = "\x0a\x07\x08\x90\x4e\x12\x02Ok"
	grpcThrottled = "\x0a\x69\x08\xfd\x55\x12\x18Making too many requests\x1a\x28exceeded limit of 15 requests per second\x3a\x20"
)

// TestGRPC has REST and gRPC clients share an account, over HTTP/1.1 and HTTP/2
// in virtual time.
func TestGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &throttletest.Handler{RetryAfter: "15", Status: 503, Code: throttletest.CodeInt}
		srv := throttletest.NewServer(h)
		defer srv.Close()
		client, rest := h2c(srv), &http.Client{Transport: srv.Client().Transport.(*http.Transport).Clone()}
		rest.Transport.(*http.Transport).Protocols = nil
		defer rest.CloseIdleConnections()
		begin := time.Now()
		for i, step := range []struct {
			at      time.Duration
			rest, n int
			message string
		}{
			{at: 0, rest: 8, n: 7, message: grpcOk},
			{at: 0, n: 1, message: grpcThrottled},
			{at: 15*s - 1, n: 2, message: grpcThrottled},
			{at: 15 * s, rest: 1, n: 14, message: grpcOk},
		} {
			time.Sleep(step.at - time.Since(begin))
			for range step.rest {
				if got := get(t.Context(), t, rest, srv.URL); got != 200 {
					t.Errorf("step %d: REST: status %d", i, got)
				}
			}
			for range step.n {
				resp, message := call(t.Context(), t, client, srv.URL, strings.NewReader(grpctest.Framed("")))
				throttled := step.message == grpcThrottled
				id := resp.Header.Get("X-Clarifai-Request-Id")
				if want := step.message + id; message != want || throttled != (len(id) == 32) {
					t.Errorf("step %d: %q, want %q", i, message, want)
				}
				if throttled != (resp.Header.Get("Retry-After") == "15") {
					t.Errorf("step %d: %v", i, resp.Header)
				}
			}
			if now := time.Since(begin); now != step.at {
				t.Errorf("step %d ends at %v, want %v", i, now, step.at)
			}
		}
		if got, want := h.Stats(), (throttletest.Stats{Served: 30, Throttled: 3, Peak: 17}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	})
}

// TestGRPCParallel has many calls wait at once on one connection, some of which
// send more than the windows of HTTP/2 hold, and be throttled while they send.
func TestGRPCParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &throttletest.Handler{Limit: 100, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			time.Sleep(20 * s)
			w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
			w.Write(b)
		})}
		srv := throttletest.NewServer(h)
		defer srv.Close()
		client := h2c(srv)
		var wg sync.WaitGroup
		for i := range 120 {
			wg.Go(func() {
				size := 100
				if i%10 == 0 {
					size = 1 << 20
				}
				sent := strings.Repeat("x", size)
				for {
					_, got := call(t.Context(), t, client, srv.URL, bytes.NewReader([]byte(grpctest.Framed(sent))))
					if got == sent {
						return
					}
					if !strings.HasPrefix(got, "\x0a") {
						t.Errorf("%d bytes came back", len(got))
						return
					}
					time.Sleep(15 * s)
				}
			})
		}
		wg.Wait()
		if s := h.Stats(); s.Served != 120 || s.Throttled < 20 {
			t.Errorf("%+v", s)
		}
	})
}

// TestGRPCType tells gRPC from what looks like it.
func TestGRPCType(t *testing.T) {
	h := new(throttletest.Handler)
	h.HaltFor(time.Hour)
	for contentType, grpc := range map[string]bool{
		"application/grpc":          true,
		"application/grpc+proto":    true,
		"application/grpc; x=y":     true,
		"Application/gRPC":          true,
		"application/grpc-web":      false,
		"application/json":          false,
		"application/x-grpc":        false,
		"application/json+grpc":     false,
		"text/application/grpc+xyz": false,
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if want := map[bool]int{true: 200, false: 429}[grpc]; w.Code != want {
			t.Errorf("%s: status %d, want %d", contentType, w.Code, want)
		}
	}
}
