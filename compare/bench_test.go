package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/clarifaihttp/internal/simnet"
)

// BenchmarkClients measures what each client costs beside none, while nothing
// has to wait. Its names are benchstat's keys:
//
//	go -C compare test -run '^$' -bench . -count 10 . | tee bench.txt
//	go run golang.org/x/perf/cmd/benchstat@latest -col /client -row '/base /op' bench.txt
func BenchmarkClients(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, simnet.ServedBody)
	}))
	defer server.Close()
	ample := quota{limit: 1e6, window: time.Millisecond}
	upload := make([]byte, 64<<20)
	key := strings.NewReplacer("x/time/", "", "/", "-", ", ", "-", " ", "-")

	for _, base := range []struct {
		name string
		base http.RoundTripper
	}{{"stub", stub{}}, {"loopback", server.Client().Transport}} {
		for _, op := range []struct {
			name, method string
			body         []byte
		}{
			{"GET", http.MethodGet, nil},
			{"POST-4KiB", http.MethodPost, upload[:bodySize]},
			{"POST-64MiB", http.MethodPost, upload},
		} {
			for _, c := range clients {
				if c.margin || c.name == nameProcesses || c.name == nameShares {
					continue // like the one before
				}
				b.Run("base="+base.name+"/op="+op.name+"/client="+key.Replace(c.name), func(b *testing.B) {
					client := &http.Client{Transport: c.open(base.base, ample)[0]}
					b.ReportAllocs()
					for b.Loop() {
						var body io.Reader
						if op.body != nil {
							body = bytes.NewReader(op.body)
						}
						req, err := http.NewRequestWithContext(context.Background(), op.method, server.URL, body)
						if err != nil {
							b.Fatal(err)
						}
						if err := do(client, req); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// A stub is a base that answers at once.
type stub struct{}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func (stub) RoundTrip(req *http.Request) (*http.Response, error) {
	simnet.Sent(req.Context())
	if req.Body != nil {
		buf := buffers.Get().(*[32 << 10]byte)
		for err := error(nil); err == nil; {
			_, err = req.Body.Read(buf[:])
		}
		buffers.Put(buf)
		req.Body.Close()
	}
	return simnet.Respond(req, http.StatusOK, simnet.ServedBody), nil
}
