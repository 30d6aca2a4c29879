package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"example.com/clarifaihttp/internal/simnet"
	"example.com/clarifaihttp/throttletest"
)

const bodySize = 4096

// bodyFate has the client send one POST while the account is halted, through
// net/http's own Transport and server, and returns what came of it. A stream
// is a body of unknown length that net/http alone cannot send twice.
func bodyFate(t *testing.T, c client, stream bool) (fate string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		got := -1
		handler := &throttletest.Handler{Limit: limit, Window: window, Halt: backoff}
		handler.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			got = int(n)
			io.WriteString(w, simnet.ServedBody)
		})
		server := throttletest.NewServer(handler)
		defer server.Close()
		handler.HaltFor(backoff)

		var body io.Reader = strings.NewReader(strings.Repeat("x", bodySize))
		if stream {
			body = io.MultiReader(body)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, body)
		if err != nil {
			t.Fatal(err)
		}
		base := server.Client().Transport
		resp, err := (&http.Client{Transport: c.open(base, quota{limit: limit, window: window})[0]}).Do(req)
		if err != nil {
			fate = "an error"
			return
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
		switch {
		case resp.StatusCode != http.StatusOK:
			fate = fmt.Sprintf("the %d", resp.StatusCode)
		case got == bodySize:
			fate = "served"
		default:
			fate = fmt.Sprintf("**served with %d of %d bytes**", got, bodySize)
		}
	})
	return fate
}
