package redisthrottle_test

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/redisthrottle"
	"example.com/clarifaihttp/redisthrottle/internal/redisserver"
)

// BenchmarkCalls has 100 processes, all with requests in line, share 15 requests
// per second for an operation of 10 s, and reports what that is for Redis.
func BenchmarkCalls(b *testing.B) {
	server, err := redisserver.Start()
	if err == redisserver.ErrMissing {
		b.Skip(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	ctx, stop := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	begun := make(chan bool, 100)
	var requests atomic.Int32
	for range 100 {
		client := redis.NewClient(&redis.Options{Addr: server.Addr})
		defer client.Close()
		l := redisthrottle.New(client, redisthrottle.Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
		wg.Go(func() {
			for first := true; l.Wait(ctx) == nil; first = false {
				requests.Add(1)
				time.AfterFunc(50*ms, l.Arrived) // the answer
				if first {
					begun <- true
				}
			}
		})
	}
	for range 100 {
		<-begun // each of them has had one
	}
	client := redis.NewClient(&redis.Options{Addr: server.Addr})
	defer client.Close()
	called, sent := calls(b, client), requests.Load()
	begin := time.Now()
	b.ResetTimer()
	for range b.N {
		time.Sleep(10 * time.Second)
	}
	b.StopTimer()
	seconds := time.Since(begin).Seconds()
	called = calls(b, client) - called
	sent = requests.Load() - sent
	b.ReportMetric(float64(called)/seconds, "calls/s")
	b.ReportMetric(float64(sent)/seconds, "requests/s")
}
