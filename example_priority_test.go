package clarifaihttp_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"time"

	"example.com/clarifaihttp"
)

// urgent is a RoundTripper that marks its requests as urgent.
type urgent struct{ http.RoundTripper }

func (u urgent) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Priority", "u=1")
	return u.RoundTripper.RoundTrip(req)
}

// Two clients use one account. Someone waits for the requests of one of them.
func ExampleThrottle_priority() {
	account := &clarifaihttp.Throttle{Limit: 1, Window: 20 * time.Millisecond, Transit: -1}
	transport := clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(account))
	batch := &http.Client{Transport: transport}
	interactive := &http.Client{Transport: urgent{transport}}

	arrived := make(chan string)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- r.URL.Path
		for account.Stats().Attempts == 1 && account.Stats().Waiting < 3 {
			time.Sleep(time.Millisecond)
		}
	}))
	defer server.Close()
	get := func(client *http.Client, path string) {
		resp, err := client.Get(server.URL + path)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
	}

	go get(batch, "/batch/1") // goes at once
	fmt.Println(<-arrived)
	go get(batch, "/batch/2")
	go get(batch, "/batch/2")
	go get(interactive, "/interactive")
	for range 3 {
		fmt.Println(<-arrived)
	}
	// Output:
	// /batch/1
	// /interactive
	// /batch/2
	// /batch/2
}

// How long a request waits: GetConn of httptrace comes when the wait is over. It
// comes for each attempt; the last one is kept here. The server throttles the
// first attempt.
func ExampleTransport_waited() {
	server := throttledOnce()
	defer server.Close()

	client := &http.Client{Transport: clarifaihttp.NewTransport(nil,
		clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Backoff: 50 * time.Millisecond}),
		clarifaihttp.WithLogger(slog.New(slog.DiscardHandler)))}
	start, waited := time.Now(), time.Duration(0)
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GetConn: func(string) { waited = time.Since(start) },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println("waited for the pause:", waited >= 50*time.Millisecond)
	// Output: waited for the pause: true
}
