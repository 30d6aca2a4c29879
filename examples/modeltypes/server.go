package main

import (
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// The built-in server's limit, as Clarifai documents it.
const (
	limit = 15 // requests per second
	halt  = 15 * time.Second
)

// A site is where the API is.
type site struct {
	base string
	via  http.RoundTripper // nil: http.DefaultTransport
	stop func()
}

// serve starts a server on a loopback port.
func serve(h http.Handler) (site, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return site{}, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(l)
	return site{base: "http://" + l.Addr().String(), stop: func() { srv.Close() }}, nil
}

// newAccount returns the API of the built-in server, with the limit of one
// account in front.
func newAccount() *throttletest.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/models/types", func(w http.ResponseWriter, r *http.Request) {
		page, _ := strconv.Atoi(r.FormValue("page"))
		perPage, _ := strconv.Atoi(r.FormValue("per_page"))
		types := []modelType{}
		if pages := slices.Collect(slices.Chunk(builtin, max(perPage, 1))); 1 <= page && page <= len(pages) {
			types = pages[page-1]
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"status":      map[string]any{"code": 10000, "description": "Ok", "req_id": rand.Text()},
			"model_types": types,
		})
	})
	return &throttletest.Handler{Next: mux, Limit: limit, Halt: halt}
}
