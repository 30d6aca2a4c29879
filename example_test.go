package clarifaihttp_test

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// One Transport for all requests of an account is all there is to set up.
func Example() {
	server := httptest.NewServer(new(throttletest.Handler)) // stands for https://api.clarifai.com
	defer server.Close()

	client := &http.Client{Transport: clarifaihttp.NewTransport(nil)}
	resp, err := client.Get(server.URL + "/v2/models/types?page=1&per_page=20")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

// Clients that use one account share its Throttle.
func ExampleWithThrottle() {
	server := httptest.NewServer(new(throttletest.Handler))
	defer server.Close()

	account := &clarifaihttp.Throttle{Limit: 15}
	images := &http.Client{Transport: clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(account))}
	texts := &http.Client{Transport: clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(account)), Timeout: time.Minute}
	for _, client := range []*http.Client{images, texts, texts} {
		resp, err := client.Get(server.URL)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
	}
	fmt.Println(account.Stats().Attempts, "requests")
	// Output: 3 requests
}

// Code that builds its own clients is reached through http.DefaultTransport;
// hosts other than Clarifai's pass untouched.
func ExampleWithThrottleFunc() {
	account := new(clarifaihttp.Throttle)
	old := http.DefaultTransport
	http.DefaultTransport = clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottleFunc(
		func(req *http.Request) *clarifaihttp.Throttle {
			if req.URL.Hostname() == "api.clarifai.com" {
				return account
			}
			return nil
		}))
	defer func() { http.DefaultTransport = old }()

	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	resp, err := new(http.Client).Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(resp.StatusCode, "after", account.Stats().Attempts, "attempts for Clarifai")
	// Output: 404 after 0 attempts for Clarifai
}

// A unit test of code that is throttled once: the server here halts for 10 ms,
// so that the test need not wait for 15 s. Package throttletest also has a
// server for tests in virtual time, which wait in no time.
func ExampleNewTransport_unitTest() {
	handler := &throttletest.Handler{Halt: 10 * time.Millisecond}
	server := httptest.NewServer(handler)
	defer server.Close()
	handler.HaltFor(0) // another user of the account was too fast

	client := &http.Client{Transport: clarifaihttp.NewTransport(server.Client().Transport,
		clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Backoff: 10 * time.Millisecond}),
		clarifaihttp.WithLogger(slog.New(slog.DiscardHandler)))}
	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	stats := handler.Stats()
	fmt.Println(resp.Status, "with", stats.Throttled, "throttled")
	// Output: 200 OK with 1 throttled
}

func ExampleDetect() {
	resp := &http.Response{
		StatusCode: http.StatusTooManyRequests,
		Body: io.NopCloser(strings.NewReader(`{"status":{
			"code": "CONN_THROTTLED",
			"description": "Making too many requests",
			"details": "exceeded limit of 15 requests per second",
			"req_id": "4d1f0a"
		}}`)),
	}
	status, throttled := clarifaihttp.Detect(resp)
	fmt.Println(throttled, status.Code, status.Details)
	// Output: true 11005 exceeded limit of 15 requests per second
}
