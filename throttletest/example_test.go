package throttletest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// A user's client, to be tested: it tries again 15 s after a throttle.
func listModels(client *http.Client, baseURL string) error {
	for {
		resp, err := client.Get(baseURL + "/v2/models")
		if err != nil {
			return err
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusTooManyRequests {
			return nil
		}
		time.Sleep(15 * time.Second)
	}
}

// A test of a client against a server that halts, over in no time.
func ExampleNewServer() {
	t := new(testing.T) // in a test: its own

	synctest.Test(t, func(t *testing.T) {
		account := new(throttletest.Handler)
		srv := throttletest.NewServer(account)
		defer srv.Close()

		account.HaltFor(20 * time.Second) // by another user of the account
		begin := time.Now()
		if err := listModels(srv.Client(), srv.URL); err != nil {
			t.Error(err)
		}
		fmt.Println("it took", time.Since(begin))
		fmt.Printf("%+v\n", account.Stats())
	})
	// Output:
	// it took 30s
	// {Served:1 Throttled:2 Peak:1 Taken:0}
}

// A Handler is an http.Handler like any other.
func ExampleHandler() {
	srv := httptest.NewServer(&throttletest.Handler{Limit: 1, Window: time.Minute, RetryAfter: "15"})
	defer srv.Close()

	for range 2 {
		resp, err := srv.Client().Get(srv.URL)
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Printf("%s, Retry-After %q\n%s\n", resp.Status, resp.Header.Get("Retry-After"), body)
	}
	// Output:
	// 200 OK, Retry-After ""
	// {"status":{"code":10000,"description":"Ok"}}
	// 429 Too Many Requests, Retry-After "15"
	// {"status":{"code":"CONN_THROTTLED","description":"Making too many requests","details":"exceeded limit of 1 requests per minute","req_id":"00000000000000000000000000000001"}}
}

// A simulation: 20 requests per second, evenly, for a minute.
func ExampleHandler_Allow() {
	account := &throttletest.Handler{Algorithm: throttletest.TokenBucket}
	now := time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	for range 60 * 20 {
		account.Allow(now)
		now = now.Add(time.Second / 20)
	}
	fmt.Printf("%+v\n", account.Stats())
	// Output: {Served:228 Throttled:972 Peak:20 Taken:0}
}
