package clarifaihttp_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/clarifaihttp"
)

// unbounded is a Throttle that never makes a benchmark wait.
func unbounded() clarifaihttp.Option {
	return clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Limit: 1_000_000, Window: ms})
}

// drain is a base that does nothing but what a base must: read and close the
// body.
func drain(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		buf := buffers.Get().(*[]byte)
		io.CopyBuffer(io.Discard, struct{ io.Reader }{req.Body}, *buf)
		buffers.Put(buf)
		req.Body.Close()
	}
	return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// BenchmarkRoundTrip compares the base alone with the Transport over it.
func BenchmarkRoundTrip(b *testing.B) {
	small, large := make([]byte, 4<<10), make([]byte, 64<<20)
	for _, bb := range []struct {
		name    string
		request func() (*http.Request, error)
	}{
		{"GET", func() (*http.Request, error) { return http.NewRequest("GET", "http://server/", nil) }},
		{"POST 4KiB", func() (*http.Request, error) {
			return http.NewRequest("POST", "http://server/", bytes.NewReader(small))
		}},
		{"POST 4KiB without GetBody", func() (*http.Request, error) {
			return http.NewRequest("POST", "http://server/", io.NopCloser(bytes.NewReader(small)))
		}},
		{"POST 64MiB", func() (*http.Request, error) {
			return http.NewRequest("POST", "http://server/", bytes.NewReader(large))
		}},
		{"POST 64MiB of known length without GetBody", func() (*http.Request, error) {
			req, err := http.NewRequest("POST", "http://server/", io.NopCloser(bytes.NewReader(large)))
			req.ContentLength = int64(len(large))
			return req, err
		}},
	} {
		for _, rt := range []struct {
			name string
			http.RoundTripper
		}{
			{"base", roundTripperFunc(drain)},
			{"Transport", clarifaihttp.NewTransport(roundTripperFunc(drain), unbounded())},
		} {
			b.Run(bb.name+"/"+rt.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					req, err := bb.request()
					if err != nil {
						b.Fatal(err)
					}
					resp, err := rt.RoundTrip(req)
					if err != nil {
						b.Fatal(err)
					}
					resp.Body.Close()
				}
			})
		}
	}
}

// TestAllocations holds the Transport against what its users are promised.
func TestAllocations(t *testing.T) {
	rt := clarifaihttp.NewTransport(roundTripperFunc(drain), unbounded())
	if n := testing.AllocsPerRun(1000, func() {
		req, _ := http.NewRequest("GET", "http://server/", nil)
		rt.RoundTrip(req)
	}); n > 16 {
		t.Errorf("%v allocations for a GET, want 16 at most", n)
	}
}

// BenchmarkWaiters has 100 000 requests in line end their wait at once, beside
// as many goroutines that wait in a bare select.
func BenchmarkWaiters(b *testing.B) {
	const n = 100_000
	var warm sync.WaitGroup // goroutines are used again, so that none counts below
	ctx, cancel := context.WithCancel(b.Context())
	for range n {
		warm.Go(func() { <-ctx.Done() })
	}
	cancel()
	warm.Wait()
	for _, end := range []string{"cancel", "expire"} {
		for _, in := range []string{"select", "Transport"} {
			b.Run(end+"/"+in, func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					ctx, cancel := context.WithCancel(b.Context())
					if end == "expire" {
						ctx, cancel = context.WithTimeout(b.Context(), 10*time.Second)
					}
					var waiting atomic.Int32
					wait := func(req *http.Request) {
						waiting.Add(1)
						<-req.Context().Done()
						runtime.KeepAlive(req)
					}
					arrived := func() int { return int(waiting.Load()) }
					release := func() {}
					if in == "Transport" {
						wait, arrived, release = standingLine(b)
					}
					before := heap()
					var wg sync.WaitGroup
					for range n {
						wg.Go(func() {
							req, _ := http.NewRequestWithContext(ctx, "GET", "http://server/", nil)
							wait(req)
						})
					}
					for arrived() < n && ctx.Err() == nil {
						time.Sleep(ms)
					}
					b.ReportMetric(float64(heap()-before)/n, "B/waiter")
					if deadline, ok := ctx.Deadline(); ok {
						time.Sleep(time.Until(deadline))
					}
					b.StartTimer()
					cancel()
					wg.Wait()
					b.StopTimer()
					release()
					b.StartTimer()
				}
			})
		}
	}
}

// standingLine returns requests that wait in a line behind a probe which is not
// answered, how many do, and what ends the probe.
func standingLine(b *testing.B) (wait func(*http.Request), waiting func() int, release func()) {
	th := &clarifaihttp.Throttle{Limit: 1_000_000, Backoff: time.Minute}
	attempts, released, done := 0, make(chan struct{}), make(chan struct{})
	rt := newTransport(th, func(*http.Request) (*http.Response, error) {
		if attempts++; attempts == 1 {
			resp := respond(http.StatusTooManyRequests, `{"status":{"code":11005}}`) // which names no limit
			resp.Header.Set("Retry-After", "0")
			return resp, nil
		}
		<-released
		return ok(), nil
	})
	go func() {
		defer close(done)
		rt.RoundTrip(get(context.Background(), b))
	}()
	for th.Stats().Attempts < 2 {
		time.Sleep(ms)
	}
	return func(req *http.Request) {
			if _, err := rt.RoundTrip(req); err == nil {
				panic("did not wait")
			}
		},
		func() int { return th.Stats().Waiting },
		func() { close(released); <-done }
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
