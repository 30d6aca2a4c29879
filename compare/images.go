package main

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"example.com/clarifaihttp/internal/simnet"
	"example.com/clarifaihttp/throttletest"
)

// Images: uploads with slow answers. What becomes of these depends on the kernel,
// so they go over real sockets, in real time, for all clients at once.

const (
	imageSize   = 300_000
	imageAnswer = 3 * time.Second
	imagesFor   = 30 * time.Second
)

// measureImages has each client upload for d. It returns what came of it, and how
// late goroutines ran at the worst.
func measureImages(t *testing.T, clients []client, d time.Duration) (all []figures, late time.Duration) {
	ctx, cancel := context.WithCancel(t.Context()) // a deadline would have requests refused
	time.AfterFunc(d, cancel)
	all = make([]figures, len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() { all[i] = uploaded(ctx, c, d) })
	}
	for ctx.Err() == nil {
		const nap = 5 * time.Millisecond
		due := time.Now().Add(nap)
		time.Sleep(nap)
		late = max(late, time.Since(due))
	}
	wg.Wait()
	return all, late
}

// uploaded uploads through c until ctx ends, after d, to a server of its own. It
// counts a request at its headers, up to the usual jitter after they came, and
// reads the body in any case.
func uploaded(ctx context.Context, c client, d time.Duration) figures {
	w := &world{ctx: ctx, begin: time.Now()}
	account := &throttletest.Handler{Limit: limit, Window: window, Halt: usual.halt, Algorithm: usual.algorithm}
	account.Next = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.served = append(w.served, time.Now())
		w.mu.Unlock()
		if _, err := io.Copy(io.Discard, r.Body); err == nil && simnet.Sleep(r.Context(), imageAnswer) == nil {
			rw.Header().Set("Content-Type", "application/json")
			io.WriteString(rw, simnet.ServedBody)
		}
	})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		time.Sleep(rand.N(usual.jitter))
		if ctx.Err() == nil {
			account.ServeHTTP(rw, r)
		}
		io.Copy(io.Discard, r.Body)
	}))
	defer server.Close()
	base := &http.Transport{MaxIdleConnsPerHost: workers}
	defer base.CloseIdleConnections()

	image := make([]byte, imageSize)
	transports := c.open(base, quota{limit: limit, window: window})
	w.server = account
	for i := range workers {
		client := &http.Client{Transport: transports[i%len(transports)]}
		w.workers.Go(func() {
			for ctx.Err() == nil {
				if !w.upload(client, server.URL, image) {
					simnet.Sleep(ctx, afterError)
				}
			}
		})
	}
	w.workers.Wait()
	base.CloseIdleConnections()
	server.Close() // its handlers have ended then
	return figuresOf(w, w.goodput(d))
}

// upload sends one image and reports whether it was served.
func (w *world) upload(c *http.Client, url string, image []byte) (ok bool) {
	at := time.Since(w.begin)
	req, err := http.NewRequestWithContext(w.ctx, http.MethodPost, url, bytes.NewReader(image))
	if err == nil {
		err = do(c, req)
	}
	return w.note(at, err)
}
