// Command urgent has a batch and an interactive user share one account, and
// shows live how long either waits.
//
//	go run ./examples/urgent          the user's requests carry Priority: u=0
//	go run ./examples/urgent -plain   they do not
//
// A built-in server answers, which throttles as Clarifai does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

const (
	limit     = 15 // requests per second, of the built-in server
	batchSize = 90
	think     = 700 * time.Millisecond // of the user, between two requests
	service   = 50 * time.Millisecond
)

func main() {
	plain := flag.Bool("plain", false, "send the user's requests without a Priority header")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	server := httptest.NewServer(newServer())
	defer server.Close()
	if err := run(ctx, os.Stdout, server.URL, server.Client().Transport, *plain); err != nil {
		fmt.Fprintln(os.Stderr, "urgent:", err)
		os.Exit(1)
	}
}

// newServer returns a server with the limit of one account.
func newServer() http.Handler {
	return &throttletest.Handler{Limit: limit, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(service) })}
}

// prioritized gives all requests a Priority header.
type prioritized struct {
	http.RoundTripper
	priority string
}

func (p prioritized) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Priority", p.priority)
	return p.RoundTripper.RoundTrip(req)
}

// run has the batch sent at once, and the user ask until it is done.
func run(ctx context.Context, w io.Writer, url string, via http.RoundTripper, plain bool) error {
	account := &clarifaihttp.Throttle{Limit: limit}
	transport := clarifaihttp.NewTransport(via, clarifaihttp.WithThrottle(account))
	batch := &http.Client{Transport: transport}
	user := &http.Client{Transport: prioritized{transport, "u=0"}}
	if plain {
		user = batch
	}

	fmt.Fprintf(w, "A batch of %d requests, all at once, and a user who asks now and then: %d requests per second for both\n", batchSize, limit)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now()
	waits := make([]time.Duration, batchSize)
	errs := make([]error, batchSize)
	var all sync.WaitGroup
	for i := range batchSize {
		all.Go(func() {
			waits[i], errs[i] = ask(ctx, batch, url)
			if errs[i] != nil {
				cancel()
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()

	var users []time.Duration
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-time.After(think):
			took, err := ask(ctx, user, url)
			if err != nil {
				cancel()
				<-done
				return errors.Join(append(errs, err)...)
			}
			users = append(users, took)
			fmt.Fprintf(w, "%5.1f s: the user was answered within %.1f s; %d of the batch wait\n",
				time.Since(begin).Seconds(), took.Seconds(), account.Stats().Waiting)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s := account.Stats()
	fmt.Fprintf(w, "The batch is done within %.1f s, %d throttled\n", time.Since(begin).Seconds(), s.Throttled)
	summary(w, "the batch", waits)
	summary(w, "the user", users)
	return nil
}

// ask sends one request and returns how long it took.
func ask(ctx context.Context, client *http.Client, url string) (took time.Duration, err error) {
	begin := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, errors.New(resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return time.Since(begin), err
}

func summary(w io.Writer, who string, waits []time.Duration) {
	if len(waits) == 0 {
		return
	}
	slices.Sort(waits)
	fmt.Fprintf(w, "  %-9s  %3d answered  median %.1f s  longest %.1f s\n",
		who, len(waits), waits[len(waits)/2].Seconds(), waits[len(waits)-1].Seconds())
}
