package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"golang.org/x/time/rate"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// A Throttle holds the limit of one account, here one with a custom limit. The
// server counts how many requests arrive within 100 ms.
func ExampleThrottle() {
	handler := &throttletest.Handler{Limit: 5, Window: 100 * time.Millisecond}
	server := httptest.NewServer(handler)
	defer server.Close()

	account := &clarifaihttp.Throttle{Limit: 5, Window: 100 * time.Millisecond}
	client := &http.Client{Transport: clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(account))}
	for range 12 {
		resp, err := client.Get(server.URL)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
	}
	s := handler.Stats()
	fmt.Println(s.Served, "served,", s.Throttled, "throttled,", s.Peak, "at most within 100 ms")
	// Output: 12 served, 0 throttled, 5 at most within 100 ms
}

// spaced is a Limiter: a budget that this process keeps besides, of one request
// per 20 ms, and that knows of pauses.
type spaced struct{ *rate.Limiter }

// Throttled makes it a PauseLimiter.
func (spaced) Throttled(wait time.Duration) {
	fmt.Println("the server told the account to pause:", wait > 0)
}

// A Limiter is asked before each attempt. A [*rate.Limiter] is one.
func ExampleLimiter() {
	server := throttledOnce()
	defer server.Close()

	account := &clarifaihttp.Throttle{
		Limiter: spaced{rate.NewLimiter(rate.Every(20*time.Millisecond), 1)},
		Backoff: 50 * time.Millisecond,
	}
	client := &http.Client{Transport: clarifaihttp.NewTransport(nil,
		clarifaihttp.WithThrottle(account),
		clarifaihttp.WithLogger(slog.New(slog.DiscardHandler)))}
	begin := time.Now()
	for range 4 {
		resp, err := client.Get(server.URL)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
	}
	fmt.Println("spaced:", time.Since(begin) >= 100*time.Millisecond)
	// Output:
	// the server told the account to pause: true
	// spaced: true
}

// A request whose turn comes after its deadline is refused at once. The error
// says how long to wait before the next try.
func ExampleWaitError() {
	server := httptest.NewServer(new(throttletest.Handler))
	defer server.Close()

	account := &clarifaihttp.Throttle{Limit: 1, Window: time.Hour}
	client := &http.Client{Transport: clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(account))}
	resp, err := client.Get(server.URL) // the only one in an hour
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	_, err = client.Do(req)
	var wait *clarifaihttp.WaitError
	if errors.As(err, &wait) {
		fmt.Println("try again in", wait.Wait.Round(time.Hour))
	}
	fmt.Println("deadline exceeded:", errors.Is(err, context.DeadlineExceeded))
	// Output:
	// try again in 1h0m0s
	// deadline exceeded: true
}

// A retryablehttp.Client that retries throttled responses, besides what it
// retries by default.
func ExampleCheckRetry() {
	server := throttledOnce()
	defer server.Close()

	client := retryablehttp.NewClient()
	client.Logger = nil
	client.RetryWaitMin = time.Millisecond // 15 s for Clarifai
	client.CheckRetry = func(ctx context.Context, resp *http.Response, err error) (bool, error) {
		if again, err := clarifaihttp.CheckRetry(ctx, resp, err); again || err != nil {
			return again, err
		}
		return retryablehttp.DefaultRetryPolicy(ctx, resp, err) // 5xx and connection errors
	}
	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}
