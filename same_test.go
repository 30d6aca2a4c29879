package clarifaihttp_test

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// TestGetBodyOfSameObjectInMemory has GetBody rewind the one reader in memory.
func TestGetBodyOfSameObjectInMemory(t *testing.T) {
	for _, mode := range []string{"closes", "drains"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n, size atomic.Int64
				size.Store(-1)
				server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					if n.Add(1) == 1 {
						if mode == "closes" {
							w.Header().Set("Connection", "close")
						}
						w.WriteHeader(http.StatusTooManyRequests)
						io.WriteString(w, throttledBody)
						w.(http.Flusher).Flush()
						return
					}
					b, _ := io.ReadAll(req.Body)
					size.Store(int64(len(b)))
				}))
				defer server.Close()
				th := new(clarifaihttp.Throttle)
				rt := forAll(server.Client().Transport, th)
				r := bytes.NewReader(make([]byte, 60000))
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, r)
				body := req.Body
				req.GetBody = func() (io.ReadCloser, error) {
					r.Seek(0, io.SeekStart)
					return body, nil
				}
				resp, err := rt.RoundTrip(req)
				if err != nil || resp.StatusCode == 200 && size.Load() != 60000 {
					t.Errorf("%v, %v, %d bytes arrived", resp, err, size.Load())
				}
				if err == nil {
					resp.Body.Close()
				}
				idle(t, th)
			})
		})
	}
}
