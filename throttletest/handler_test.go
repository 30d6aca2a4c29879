package throttletest_test

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/throttletest"
)

func TestHalt(t *testing.T) {
	take := func(n, want int) func(*throttletest.Handler) {
		return func(h *throttletest.Handler) {
			if got := h.Take(n); got != want {
				t.Errorf("Take(%d) = %d, want %d", n, got, want)
			}
		}
	}
	haltFor := func(d time.Duration) func(*throttletest.Handler) {
		return func(h *throttletest.Handler) { h.HaltFor(d) }
	}
	for _, tt := range []struct {
		name  string
		h     *throttletest.Handler
		steps []step
		want  throttletest.Stats
	}{
		{
			name: "15 s, whatever comes during it",
			steps: []step{
				{at: 0, n: 16, served: 15},
				{at: s, n: 1, served: 0},
				{at: 15*s - 1, n: 20, served: 0},
				{at: 15 * s, n: 16, served: 15},
				{at: 30*s - 1, n: 1, served: 0},
				{at: 30 * s, n: 1, served: 1},
			},
			want: throttletest.Stats{Served: 31, Throttled: 24, Peak: 36},
		},
		{
			name:  "none below the limit",
			steps: []step{{at: 0, n: 15, served: 15}, {at: s, n: 15, served: 15}, {at: 2 * s, n: 15, served: 15}},
			want:  throttletest.Stats{Served: 45, Peak: 15},
		},
		{
			name: "restarted by each request",
			h:    &throttletest.Handler{RestartHalt: true},
			steps: []step{
				{at: 0, n: 16, served: 15},
				{at: 10 * s, n: 1, served: 0},
				{at: 15 * s, n: 1, served: 0},
				{at: 30*s - 1, n: 1, served: 0},
				{at: 45*s - 1, n: 1, served: 1},
			},
			want: throttletest.Stats{Served: 16, Throttled: 4, Peak: 16},
		},
		{
			name: "shorter than the window: the log goes on where it was",
			h:    &throttletest.Handler{Halt: 100 * ms},
			steps: []step{
				{at: 0, n: 16, served: 15},
				{at: 100*ms - 1, n: 1, served: 0},
				{at: 100 * ms, n: 1, served: 0}, // over the limit still: the next halt
				{at: s - 1, n: 1, served: 0},    // and the next
				{at: s, n: 1, served: 0},
				{at: 1100*ms - 1, n: 15, served: 15},
			},
			want: throttletest.Stats{Served: 30, Throttled: 5, Peak: 19},
		},
		{
			name:  "none if negative",
			h:     &throttletest.Handler{Halt: -1},
			steps: []step{{at: 0, n: 20, served: 15}, {at: s, n: 20, served: 15}, {at: s, do: haltFor(0), n: 1}, {at: 2 * s, n: 1, served: 1}},
			want:  throttletest.Stats{Served: 31, Throttled: 11, Peak: 21},
		},
		{
			name: "others of the account count against the limit",
			steps: []step{
				{at: 0, do: take(10, 10), n: 5, served: 5},
				{at: s, do: take(10, 10), n: 6, served: 5},
				{at: 2 * s, do: take(1, 0), n: 1, served: 0},
				{at: 16 * s, do: take(0, 0), n: 1, served: 1},
			},
			want: throttletest.Stats{Served: 11, Throttled: 2, Peak: 6, Taken: 20},
		},
		{
			name: "others of the account begin one",
			steps: []step{
				{at: 0, do: take(20, 15)},
				{at: 15*s - 1, n: 1, served: 0},
				{at: 15 * s, n: 1, served: 1},
			},
			want: throttletest.Stats{Served: 1, Throttled: 1, Peak: 2, Taken: 15},
		},
		{
			name: "begun by HaltFor, for so long",
			steps: []step{
				{at: 0, n: 1, served: 1},
				{at: 1, do: haltFor(40 * s), n: 1, served: 0},
				{at: 40 * s, n: 1, served: 0},
				{at: 40*s + 1, n: 15, served: 15},
			},
			want: throttletest.Stats{Served: 16, Throttled: 2, Peak: 16},
		},
		{
			name: "begun by HaltFor, for Halt",
			h:    &throttletest.Handler{Halt: 3 * s},
			steps: []step{
				{at: 0, do: haltFor(0)},
				{at: 3*s - 1, n: 1, served: 0},
				{at: 3 * s, n: 1, served: 1},
			},
			want: throttletest.Stats{Served: 1, Throttled: 1, Peak: 2},
		},
		{
			name: "never cut short",
			h:    &throttletest.Handler{RestartHalt: true},
			steps: []step{
				{at: 0, do: haltFor(60 * s)},
				{at: s, do: haltFor(s)},
				{at: 2 * s, n: 1, served: 0},
				{at: 59 * s, do: haltFor(s)},
				{at: 60 * s, n: 1, served: 1},
			},
			want: throttletest.Stats{Served: 1, Throttled: 1, Peak: 1},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.h == nil {
				tt.h = new(throttletest.Handler)
			}
			run(t, tt.h, tt.steps)
			if got := tt.h.Stats(); got != tt.want {
				t.Errorf("stats %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestPeak(t *testing.T) {
	for _, tt := range []struct {
		name     string
		window   time.Duration
		arrivals []time.Duration
		want     int
	}{
		{"none", s, nil, 0},
		{"a window apart", s, []time.Duration{0, s, 2 * s}, 1},
		{"less than a window apart", s, []time.Duration{0, s - 1, 2*s - 2}, 2},
		{"throttled ones too", s, []time.Duration{0, 0, 0, 0, 0}, 5},
		{"across a boundary", s, []time.Duration{900 * ms, 900 * ms, 1100 * ms, 1899 * ms, 1900 * ms}, 4},
		{"of the past", s, []time.Duration{0, 1, 2, 10 * s, 20 * s}, 3},
		{"in the handler's window", 20 * s, []time.Duration{0, 10 * s, 20 * s, 30 * s, 30 * s}, 3},
		{"a clock that goes back", s, []time.Duration{s, 0, s}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &throttletest.Handler{Limit: 2, Window: tt.window, Halt: -1}
			begin := time.Unix(0, 0)
			for _, at := range tt.arrivals {
				h.Allow(begin.Add(at))
			}
			if got := h.Stats().Peak; got != tt.want {
				t.Errorf("peak %d, want %d", got, tt.want)
			}
		})
	}
}

// TestMemory has many arrivals: only the latest window's are remembered.
func TestMemory(t *testing.T) {
	h := &throttletest.Handler{Limit: 1000, Halt: -1}
	now := time.Unix(0, 0)
	i := 0
	if per := testing.AllocsPerRun(100_000, func() {
		h.Allow(now.Add(time.Duration(i) * ms))
		i++
	}); per > 0 { // on average, rounded down
		t.Errorf("%v allocations per request", per)
	}
	if got := h.Stats(); got.Peak != 1000 || got.Throttled != 0 {
		t.Errorf("stats %+v", got)
	}
}

// unread is a body that must not be read.
type unread struct{ t *testing.T }

func (b unread) Read([]byte) (int, error) {
	b.t.Error("the body of a throttled request was read")
	return 0, io.EOF
}

func TestThrottledAnswer(t *testing.T) {
	const body = `{"status":{"code":%s,"description":"Making too many requests","details":"exceeded limit of %s","req_id":"%032x"}}`
	for _, tt := range []struct {
		name    string
		h       *throttletest.Handler
		status  int
		code    string
		details string
	}{
		{"zero value", &throttletest.Handler{}, 429, `"CONN_THROTTLED"`, "15 requests per second"},
		{"int", &throttletest.Handler{Code: throttletest.CodeInt}, 429, `11005`, "15 requests per second"},
		{"numeric string", &throttletest.Handler{Code: throttletest.CodeString}, 429, `"11005"`, "15 requests per second"},
		{"status", &throttletest.Handler{Status: 200}, 200, `"CONN_THROTTLED"`, "15 requests per second"},
		{"limit", &throttletest.Handler{Limit: 100, Window: s}, 429, `"CONN_THROTTLED"`, "100 requests per second"},
		{"minute", &throttletest.Handler{Window: time.Minute}, 429, `"CONN_THROTTLED"`, "15 requests per minute"},
		{"hour", &throttletest.Handler{Window: time.Hour}, 429, `"CONN_THROTTLED"`, "15 requests per hour"},
		{"another window", &throttletest.Handler{Window: 1500 * ms}, 429, `"CONN_THROTTLED"`, "15 requests per 1.5s"},
		{"Retry-After", &throttletest.Handler{RetryAfter: "0"}, 429, `"CONN_THROTTLED"`, "15 requests per second"},
		{"Retry-After, a date", &throttletest.Handler{RetryAfter: "Sat, 01 Jan 2000 00:00:00 GMT"}, 429, `"CONN_THROTTLED"`, "15 requests per second"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.h.HaltFor(time.Hour)
			for i := range 2 {
				w := httptest.NewRecorder()
				tt.h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v2/inputs", unread{t}))
				resp := w.Result()
				id := fmt.Sprintf("%032x", i+1)
				if got, want := w.Body.String(), fmt.Sprintf(body, tt.code, tt.details, i+1); got != want {
					t.Errorf("body %s\nwant %s", got, want)
				}
				if resp.StatusCode != tt.status || resp.ContentLength != int64(w.Body.Len()) {
					t.Errorf("status %d, length %d, want %d, %d", resp.StatusCode, resp.ContentLength, tt.status, w.Body.Len())
				}
				for name, want := range map[string]string{
					"Content-Type":          "application/json",
					"X-Clarifai-Request-Id": id,
					"Retry-After":           tt.h.RetryAfter,
				} {
					if got := resp.Header.Get(name); got != want {
						t.Errorf("header %s: %q, want %q", name, got, want)
					}
				}
				if _, sent := resp.Header["Retry-After"]; sent != (tt.h.RetryAfter != "") {
					t.Errorf("Retry-After was sent: %t", sent)
				}
			}
		})
	}
}

func TestServedAnswer(t *testing.T) {
	h := new(throttletest.Handler)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if got, want := w.Body.String(), `{"status":{"code":10000,"description":"Ok"}}`; got != want || w.Code != 200 {
		t.Errorf("%d %s, want 200 %s", w.Code, got, want)
	}

	h = &throttletest.Handler{Limit: 1, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		io.Copy(w, r.Body)
	})}
	for i, want := range []int{http.StatusTeapot, http.StatusTooManyRequests} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader("hello")))
		if w.Code != want || (w.Body.String() == "hello") != (i == 0) {
			t.Errorf("request %d: %d %q, want %d", i, w.Code, w.Body, want)
		}
	}
}

func TestInvalid(t *testing.T) {
	for want, h := range map[string]*throttletest.Handler{
		"throttletest: invalid Limit: -1":               {Limit: -1},
		"throttletest: invalid Limit: 2147483647":       {Limit: math.MaxInt32, Window: 5 * s},
		"throttletest: invalid Window: -1s":             {Window: -s},
		"throttletest: invalid Algorithm: Algorithm(4)": {Algorithm: throttletest.GCRA + 1},
		"throttletest: invalid Code: 3":                 {Code: throttletest.CodeString + 1},
		"throttletest: invalid Status: 103":             {Status: http.StatusEarlyHints},
		"throttletest: invalid Status: 1000":            {Status: 1000},
	} {
		for name, use := range map[string]func(){
			"Allow":     func() { h.Allow(time.Now()) },
			"Take":      func() { h.Take(1) },
			"HaltFor":   func() { h.HaltFor(s) },
			"ServeHTTP": func() { h.ServeHTTP(httptest.NewRecorder(), nil) },
			"NewServer": func() { throttletest.NewServer(h).Close() },
		} {
			func() {
				defer func() {
					if got := recover(); got != want {
						t.Errorf("%s panics with %v, want %q", name, got, want)
					}
				}()
				use()
			}()
		}
	}
}

// TestConcurrent has all methods called at once, for the race detector.
func TestConcurrent(t *testing.T) {
	const workers, each = 16, 200
	for _, algorithm := range []throttletest.Algorithm{throttletest.SlidingLog, throttletest.FixedWindow, throttletest.TokenBucket, throttletest.GCRA} {
		t.Run(algorithm.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // the clock stands still
				h := &throttletest.Handler{Limit: 100, Algorithm: algorithm}
				var wg sync.WaitGroup
				for range workers {
					wg.Go(func() {
						for range each {
							h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
							h.Take(1)
							h.Stats()
						}
						h.HaltFor(s)
					})
				}
				wg.Wait()
				got := h.Stats()
				if got.Served+got.Taken != 100 || got.Served+got.Throttled != workers*each || got.Peak != workers*each {
					t.Errorf("stats %+v", got)
				}
			})
		})
	}
}
