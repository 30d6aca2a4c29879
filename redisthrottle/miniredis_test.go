package redisthrottle_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/redisthrottle"
)

// TestMiniredis is a unit test as users of this package write it.
func TestMiniredis(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { client.Close() })
	limiter := redisthrottle.New(client, redisthrottle.Config{NoRestart: true, StartAtOnce: true})
	httpClient := &http.Client{Transport: clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Limiter: limiter}))}
	begin, n := time.Now(), listen(t)
	for i := range 18 {
		resp, err := httpClient.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if d := time.Since(begin); i == 15 && d < time.Second {
			t.Errorf("request %d after %v", i, d)
		} else if i == 14 && d > time.Second {
			n.slow(t, "request %d after %v", i, d)
		}
	}
	if err := limiter.Close(); err != nil {
		t.Error(err)
	}
}
