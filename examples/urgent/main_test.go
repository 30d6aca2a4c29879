package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// perform runs the program in virtual time and returns the longest wait of the
// batch and of the user, as printed.
func perform(t *testing.T, plain bool) (batch, user string) {
	var out strings.Builder
	synctest.Test(t, func(t *testing.T) {
		server := throttletest.NewServer(newServer())
		defer server.Close()
		if err := run(t.Context(), &out, server.URL, server.Client().Transport, plain); err != nil {
			t.Fatal(err)
		}
	})
	t.Log(out.String())
	found := regexp.MustCompile(`longest ([0-9.]+) s`).FindAllStringSubmatch(out.String(), -1)
	if len(found) != 2 || !strings.Contains(out.String(), " 0 throttled") {
		t.Fatal("not the expected output")
	}
	return found[0][1], found[1][1]
}

func TestRun(t *testing.T) {
	if batch, user := perform(t, false); batch != "6.4" || user != "0.4" {
		t.Errorf("longest waits: batch %s s, user %s s", batch, user)
	}
	if batch, user := perform(t, true); batch != "5.3" || user != "5.7" {
		t.Errorf("without the header: longest waits: batch %s s, user %s s", batch, user)
	}
}

func TestFails(t *testing.T) {
	refused := roundTripperFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{Status: "500 broken", StatusCode: http.StatusInternalServerError, Body: http.NoBody}, nil
	})
	if err := run(t.Context(), io.Discard, "http://server", refused, false); err == nil || !strings.Contains(err.Error(), "500 broken") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	slow := roundTripperFunc(func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	})
	if err := run(ctx, io.Discard, "http://server", slow, false); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
