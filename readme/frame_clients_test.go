//go:build readme

package readme

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

const models = "https://api.clarifai.com/v2/models/types"

// A fake stands for Clarifai.
type fake struct {
	next      http.HandlerFunc
	throttle  atomic.Bool // the next request
	throttled atomic.Int64
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case f.throttle.CompareAndSwap(true, false):
		f.throttled.Add(1)
		w.Header().Set("Retry-After", "0")
		http.Error(w, `{"status":{"code":"CONN_THROTTLED"}}`, http.StatusTooManyRequests)
	case f.next != nil:
		f.next(w, r)
	}
}

// clarifai has http.DefaultTransport send all requests to a fake, whatever their
// host.
func clarifai(t *testing.T, next http.HandlerFunc) *fake {
	t.Helper()
	f := &fake{next: next}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	before := http.DefaultTransport
	t.Cleanup(func() { http.DefaultTransport = before })
	// Without TLS for https, too.
	http.DefaultTransport = &http.Transport{DialContext: dial, DialTLSContext: dial, DisableKeepAlives: true}
	return f
}

// status gets url and returns the status.
func status(t *testing.T, client *http.Client, url string, header ...string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// throttled has the fake throttle the next request, and expects client to get its
// response all the same.
func throttled(t *testing.T, client *http.Client, f *fake) {
	t.Helper()
	before := f.throttled.Load()
	f.throttle.Store(true)
	if got := status(t, client, models); got != http.StatusOK {
		t.Errorf("got %d", got)
	}
	if n := f.throttled.Load() - before; n != 1 {
		t.Errorf("%d requests were throttled", n)
	}
}

func TestQuickstart(t *testing.T) {
	f := clarifai(t, nil)
	//readme:quickstart
	throttled(t, client, f)
}

func TestSDK(t *testing.T) {
	f := clarifai(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"object":"list","data":[{"id":"a-model","object":"model"}]}`))
	})
	f.throttle.Store(true)
	//readme:sdk
	page, err := client.Models.List(t.Context())
	if err != nil || len(page.Data) != 1 || page.Data[0].ID != "a-model" {
		t.Errorf("got %+v and %v", page, err)
	}
	if n := f.throttled.Load(); n != 1 {
		t.Errorf("%d requests were throttled", n)
	}
}

func TestDefaultTransport(t *testing.T) {
	f := clarifai(t, nil)
	//readme:default
	throttled(t, new(http.Client), f)
	attempts := account.Stats().Attempts
	if status(t, new(http.Client), "http://other.example"); account.Stats().Attempts != attempts {
		t.Error("another host counts")
	}
}

func TestAccounts(t *testing.T) {
	f := clarifai(t, nil)
	t.Setenv("CLARIFAI_PAT_A", "a")
	t.Setenv("CLARIFAI_PAT_B", "b")
	//readme:accounts
	f.throttle.Store(true)
	status(t, client, models, "Authorization", "Key a")
	status(t, client, models, "Authorization", "Key b")
	status(t, client, models)
	if a, b := accounts["Key a"].Stats(), accounts["Key b"].Stats(); a.Pauses != 1 || b.Pauses != 0 || b.Attempts != 1 || b.Limit != 100 {
		t.Errorf("the accounts have %+v and %+v", a, b)
	}
}

func TestRetry(t *testing.T) {
	var broken atomic.Bool
	f := clarifai(t, func(w http.ResponseWriter, _ *http.Request) {
		if broken.CompareAndSwap(true, false) {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	//readme:retry
	client.Logger = nil
	client.RetryWaitMin = time.Millisecond
	broken.Store(true)
	f.throttle.Store(true)
	if got := status(t, client.StandardClient(), models); got != http.StatusOK {
		t.Errorf("got %d", got)
	}
	if n := f.throttled.Load(); n != 1 || broken.Load() {
		t.Errorf("%d requests were throttled, broken: %t", n, broken.Load())
	}
}

func TestUnitTest(t *testing.T) {
	yourHandler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	//readme:unittest
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted || account.Stats().Throttled == 0 {
		t.Errorf("got %s after %+v", resp.Status, account.Stats())
	}
}

func TestUrgent(t *testing.T) {
	req := httptest.NewRequest(http.MethodGet, models, nil)
	//readme:urgent
	synctest.Test(t, func(t *testing.T) { urgentFirst(t, req.Header) })
}

// urgentFirst has a request with that header overtake one without it.
func urgentFirst(t *testing.T, header http.Header) {
	server := throttletest.NewServer(nil)
	defer server.Close()
	client := server.Client()
	client.Transport = clarifaihttp.NewTransport(client.Transport, clarifaihttp.WithThrottle(&clarifaihttp.Throttle{Limit: 1}))
	var order []string
	send := func(name string, h http.Header) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		req.Header = h
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			order = append(order, name)
		}
	}
	send("first", http.Header{})
	go send("background", http.Header{})
	synctest.Wait()
	send("urgent", header)
	time.Sleep(time.Minute)
	synctest.Wait()
	if len(order) != 3 || order[1] != "urgent" {
		t.Errorf("the order is %q", order)
	}
}
