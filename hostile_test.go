package clarifaihttp_test

import (
	"cmp"
	"compress/gzip"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// TestHostileAnswers has a server throttle with answers that are made to cost
// time or memory, or to mislead.
func TestHostileAnswers(t *testing.T) {
	repeat := func(s string) func(io.Writer) { // 4 MiB of it
		s = strings.Repeat(s, 1<<16/len(s))
		return func(w io.Writer) {
			for range 64 {
				io.WriteString(w, s)
			}
		}
	}
	text := func(s string) func(io.Writer) { return func(w io.Writer) { io.WriteString(w, s) } }
	named := func(limit string) func(io.Writer) {
		return text(`{"status":{"code":11005,"details":"exceeded limit of ` + limit + ` requests per second"}}`)
	}
	for _, tt := range []struct {
		name       string
		retryAfter string
		gzip       bool
		body       func(io.Writer)
		limit      int // 0: as it was
		attempts   int // 0: 3, the retries are used up
	}{
		{name: "arrays", body: repeat("[")},
		{name: "objects", body: repeat(`{"status":`)},
		{name: "number", body: func(w io.Writer) { io.WriteString(w, `{"status":{"code":`); repeat("1")(w) }},
		{name: "string", body: func(w io.Writer) { io.WriteString(w, `{"status":{"details":"`); repeat(`\u0000`)(w) }},
		{name: "gzip bomb", gzip: true, body: text(zippedBomb())},
		{name: "late code", body: func(w io.Writer) {
			io.WriteString(w, `{"a":"`)
			repeat("a")(w)
			io.WriteString(w, `","status":{"code":11006}}`)
		}},
		{name: "two codes", body: text(`{"status":{"code":11005,"code":11006}}`)},
		{name: "two codes the other way", attempts: 1, body: text(`{"status":{"code":11006,"code":11005}}`)},
		{name: "Status", attempts: 1, body: text(`{"Status":{"code":11005},"status":{"Code":11005,"code":11006}}`)},
		{name: "limit 0", body: named("0")},
		{name: "limit -1", body: named("-1")},
		{name: "limit 5", body: named("5"), limit: 5},
		{name: "limit 10^18", body: named("1000000000000000000")},
		{name: "limit 2^64+1", body: named("18446744073709551617")},
		{name: "limit of a megabyte", body: func(w io.Writer) {
			io.WriteString(w, `{"status":{"code":11005,"details":"exceeded limit of 1`)
			repeat("0")(w)
			io.WriteString(w, ` requests per second"}}`)
		}},
		{name: "Retry-After 0", retryAfter: "0"},
		{name: "Retry-After -1", retryAfter: "-1"},
		{name: "Retry-After 0.001", retryAfter: "0.001"},
		{name: "Retry-After garbage", retryAfter: "\x80\xff soon"},
		{name: "Retry-After long ago", retryAfter: "Thu, 01 Jan 1970 00:00:00 GMT"},
		{name: "Retry-After never", retryAfter: "Fri, 31 Dec 9999 23:59:59 GMT", attempts: 1},
		{name: "Retry-After 2^63", retryAfter: "9223372036854775808", attempts: 1},
		{name: "Retry-After 10^100000", retryAfter: "1" + strings.Repeat("0", 100_000), attempts: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin, wait := time.Now(), time.Duration(0)
			synctest.Test(t, func(t *testing.T) {
				srv := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if tt.retryAfter != "" {
						w.Header().Set("Retry-After", tt.retryAfter)
					}
					if tt.gzip {
						w.Header().Set("Content-Encoding", "gzip")
					}
					w.WriteHeader(http.StatusTooManyRequests)
					if tt.body != nil {
						tt.body(w)
					}
				}))
				defer srv.Close()
				base := srv.Client().Transport.(*http.Transport)
				base.DisableCompression = true
				th := &clarifaihttp.Throttle{Backoff: ms, MaxBackoff: 4 * ms}
				rt := over(base, th, clarifaihttp.WithMaxRetries(2))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				begin := time.Now()
				resp, err := rt.RoundTrip(get(t.Context(), t))
				wait = time.Since(begin)
				runtime.ReadMemStats(&after)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusTooManyRequests {
					t.Errorf("status %d", resp.StatusCode)
				}
				if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 { // client and server
					t.Errorf("%d bytes allocated", n)
				}
				want := clarifaihttp.Stats{Attempts: cmp.Or(tt.attempts, 3), Limit: cmp.Or(tt.limit, 15)}
				if s := th.Stats(); s.Attempts != want.Attempts || s.Limit != want.Limit {
					t.Errorf("%+v, want %d attempts, limit %d", s, want.Attempts, want.Limit)
				}
				if wait := time.Until(th.Stats().PausedUntil); wait > time.Second {
					t.Errorf("paused for %v", wait)
				}
			})
			if took := time.Since(begin); wait > 5*time.Second || took > 10*time.Second {
				t.Errorf("it waited %v and worked %v", wait, took)
			}
		})
	}
}

// zippedBomb is some 10 KiB that become 10 MiB.
func zippedBomb() string {
	var b strings.Builder
	z := gzip.NewWriter(&b)
	io.WriteString(z, `{"status":{"details":"`+strings.Repeat("x", 10<<20))
	z.Close()
	return b.String()
}
