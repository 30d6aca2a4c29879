package clarifaihttp_test

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// TestKeptBodyIsSentAnew has net/http send a request again, whose body is kept, on a
// connection that waits too long for a slot.
func TestKeptBodyIsSentAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		server := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			b, _ := io.ReadAll(req.Body)
			got = append(got, string(b))
			if len(got) == 2 {
				panic(http.ErrAbortHandler)
			}
			io.WriteString(w, okBody)
		}))
		defer server.Close()
		th := &clarifaihttp.Throttle{Limit: 1}
		rt := forAll(server.Client().Transport, th)
		ctx := patient(t, time.Hour)
		served(t, together(ctx, rt, server.URL, 1), time.Minute)
		time.Sleep(5 * time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, newBody(t, content))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "1") // so that net/http sends it again
		resp, err := rt.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusOK || len(got) != 3 || got[2] != content {
			t.Fatalf("%v, %v, after the bodies %q", resp, err, got)
		}
		resp.Body.Close()
		idle(t, th)
	})
}
