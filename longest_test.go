package clarifaihttp_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// TestLongestWait has a server throttle everything. A request without a deadline
// gets its throttled response after ten retries, which the package comment says
// how long take.
func TestLongestWait(t *testing.T) {
	for _, c := range []struct {
		name, retryAfter string
		want             time.Duration
	}{
		{"Backoff", "", 8*time.Minute + 45*time.Second},
		{"Retry-After", "240", 40 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if c.retryAfter != "" {
						w.Header().Set("Retry-After", c.retryAfter)
					}
					w.WriteHeader(http.StatusTooManyRequests)
					w.Write([]byte(`{"status":{"code":11005}}`))
				}))
				defer server.Close()
				client := server.Client()
				client.Transport = clarifaihttp.NewTransport(client.Transport, clarifaihttp.WithLogger(quiet))
				begin := time.Now()
				resp, err := client.Get(server.URL)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if d := time.Since(begin); resp.StatusCode != http.StatusTooManyRequests || d != c.want {
					t.Errorf("%s after %v, want the 429 after %v", resp.Status, d, c.want)
				}
			})
		})
	}
}
