package clarifaihttp_test

import (
	"encoding/json"
	"expvar"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
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
	handler := &throttletest.Handler{Halt: 200 * time.Millisecond}
	server := httptest.NewServer(handler)
	defer server.Close()
	handler.HaltFor(0) // another user of the account was too fast

	client := &http.Client{Transport: clarifaihttp.NewTransport(server.Client().Transport,
		clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Backoff: 200 * time.Millisecond}),
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

// Stats shows how the account is doing.
func ExampleThrottle_Stats() {
	server := throttledOnce()
	defer server.Close()

	account := &clarifaihttp.Throttle{Backoff: 10 * time.Millisecond}
	client := &http.Client{Transport: clarifaihttp.NewTransport(nil,
		clarifaihttp.WithThrottle(account),
		clarifaihttp.WithLogger(slog.New(slog.DiscardHandler)))}
	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	s := account.Stats()
	fmt.Println(s.Attempts, "attempts:", s.Throttled, "throttled,", s.HandedBack, "of these handed back")
	fmt.Println(s.Pauses, "pause,", s.Waiting, "waiting,", s.WaitingByUrgency[0], "of these most urgent")
	// Output:
	// 2 attempts: 1 throttled, 0 of these handed back
	// 1 pause, 0 waiting, 0 of these most urgent
}

// The expvar page shows Stats.
func ExampleThrottle_Stats_expvar() {
	server := httptest.NewServer(new(throttletest.Handler))
	defer server.Close()

	account := new(clarifaihttp.Throttle)
	client := &http.Client{Transport: clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(account))}
	expvar.Publish("clarifai", expvar.Func(func() any { return account.Stats() }))

	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	var page struct{ Attempts, Throttled int }
	if err := json.Unmarshal([]byte(expvar.Get("clarifai").String()), &page); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%+v\n", page)
	// Output: {Attempts:1 Throttled:0}
}

// The log lines of several accounts are told apart by a Logger for each, which
// adds an attribute of yours.
func ExampleWithLogger() {
	server := throttledOnce()
	defer server.Close()

	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: brief}))
	images := &http.Client{Transport: clarifaihttp.NewTransport(nil,
		clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Backoff: 10 * time.Millisecond}),
		clarifaihttp.WithLogger(logger.With("account", "images")))}
	resp, err := images.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	// Output:
	// level=WARN msg="clarifaihttp: throttled, pausing all requests" account=images code=11005
	// level=INFO msg="clarifaihttp: pause is over" account=images
}

// throttledOnce returns a server that throttles the first request.
func throttledOnce() *httptest.Server {
	var requests atomic.Int32
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) == 1 {
			http.Error(w, `{"status":{"code":11005}}`, http.StatusTooManyRequests)
		}
	}))
}

// brief leaves out what differs each time.
func brief(_ []string, a slog.Attr) slog.Attr {
	switch a.Key {
	case slog.LevelKey, slog.MessageKey, "account", "code":
		return a
	}
	return slog.Attr{}
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
