package clarifaihttp

import (
	"math"
	"math/big"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 500e6, time.UTC)
	const date = "Fri, 01 May 2026 12:01:00 GMT" // the server's clock is a minute ahead
	for _, tt := range []struct {
		value, date string
		want        time.Duration
		ok          bool
	}{
		{"15", "", 15 * time.Second, true},
		{" \t15 ", "", 15 * time.Second, true},
		{"0", "", 0, true},
		{"007", "", 7 * time.Second, true},
		{"15", date, 15 * time.Second, true},
		{"-1", "", 0, true},
		{"-0", "", 0, true},
		{"-" + strings.Repeat("9", 100), "", 0, true},
		{"9223372036", "", 9223372036 * time.Second, true},
		{"9223372037", "", math.MaxInt64, true},
		{"9223372036854775807", "", math.MaxInt64, true},
		{"9223372036854775808", "", math.MaxInt64, true},
		{strings.Repeat("9", 1<<16), "", math.MaxInt64, true},
		{strings.Repeat("0", 1<<16) + "2", "", 2 * time.Second, true},

		{"Fri, 01 May 2026 12:01:15 GMT", date, 15 * time.Second, true},
		{"Friday, 01-May-26 12:01:15 GMT", date, 15 * time.Second, true},
		{"Fri May  1 12:01:15 2026", date, 15 * time.Second, true},
		{" Fri, 01 May 2026 12:01:15 GMT ", " " + date + " ", 15 * time.Second, true},
		{"Fri, 01 May 2026 12:01:15 GMT", "", 74500 * time.Millisecond, true},
		{"Fri, 01 May 2026 12:01:15 GMT", "yesterday", 74500 * time.Millisecond, true},
		{"Fri, 01 May 2026 12:00:59 GMT", date, 0, true},
		{date, date, 0, true},
		{"Thu, 01 Jan 1970 00:00:00 GMT", "", 0, true},
		{"Fri, 31 Dec 9999 23:59:59 GMT", "", math.MaxInt64, true},
		{"Sat, 01 Jan 0000 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", 0, true},

		{"", "", 0, false},
		{" ", "", 0, false},
		{"soon", "", 0, false},
		{"-", "", 0, false},
		{"--1", "", 0, false},
		{"+5", "", 0, false},
		{"1.5", "", 0, false},
		{"1e3", "", 0, false},
		{"0x10", "", 0, false},
		{"1_000", "", 0, false},
		{"15s", "", 0, false},
		{"15, 20", "", 0, false},
		{"٣", "", 0, false},
		{strings.Repeat("9", 100) + "x", "", 0, false},
		{"2026-05-01T12:01:15Z", "", 0, false},
	} {
		h := http.Header{"Retry-After": {tt.value, "99"}, "Date": {tt.date}}
		if got, ok := retryAfter(h, now); got != tt.want || ok != tt.ok {
			t.Errorf("retryAfter(%.40q, date %q) = %v, %v; want %v, %v", tt.value, tt.date, got, ok, tt.want, tt.ok)
		}
	}
	for _, h := range []http.Header{nil, {}, {"Retry-After": nil}, {"Date": {date}}} {
		if got, ok := retryAfter(h, now); got != 0 || ok {
			t.Errorf("retryAfter(%v) = %v, %v; want none", h, got, ok)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{
		"", "0", "15", " 15 ", "-1", "+5", "1.5", "9223372036", "9223372037", strings.Repeat("9", 30), strings.Repeat("9", 30) + "x",
		"Fri, 01 May 2026 12:01:15 GMT", "Friday, 01-May-26 12:01:15 GMT", "Fri May  1 12:01:15 2026", "Fri, 31 Dec 9999 23:59:59 GMT",
	} {
		f.Add(v, "", int64(0))
		f.Add(v, "Fri, 01 May 2026 12:01:00 GMT", int64(1777636800))
	}
	number := regexp.MustCompile(`^-?[0-9]+$`)
	f.Fuzz(func(t *testing.T, value, date string, unix int64) {
		now := time.Unix(unix, 0)
		got, ok := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, now)

		wait, wantOK := new(big.Int), true
		value, date = strings.TrimSpace(value), strings.TrimSpace(date)
		if number.MatchString(value) {
			wait.SetString(value, 10)
			wait.Mul(wait, big.NewInt(1e9))
		} else if until, err := http.ParseTime(value); err == nil {
			if d, err := http.ParseTime(date); err == nil {
				now = d
			}
			wait.Sub(big.NewInt(until.Unix()), big.NewInt(now.Unix()))
			wait.Mul(wait, big.NewInt(1e9)) // dates and now have no fraction here
			if now.Year() > 1<<20 || now.Year() < -1<<20 {
				return // beyond the range of Time.Sub
			}
		} else {
			wantOK = false
		}
		if wait.Sign() < 0 {
			wait.SetInt64(0)
		}
		if limit := big.NewInt(math.MaxInt64); wait.Cmp(limit) > 0 {
			wait = limit
		}
		if int64(got) != wait.Int64() || ok != wantOK {
			t.Errorf("retryAfter(%q, date %q, now %v) = %v, %v; want %v, %v", value, date, now, got, ok, wait, wantOK)
		}
	})
}

func TestLimitOf(t *testing.T) {
	for _, tt := range []struct {
		details string
		want    int
		ok      bool
	}{
		{statusDocumented.Details, 15, true},
		{statusMock.Details, 10, true},
		{"exceeded limit of 1 request per second", 1, true},
		{"Limit of 100 Requests per second.", 100, true},
		{"limit of 999999999 requests per second", 999999999, true},
		{"limit of 0010 requests per second", 10, true},
		{"limit of 5 requests per second, limit of 7 requests per second", 5, true},
		{"limit of 600 requests per minute, limit of 10 requests per second", 10, true},

		{"", 0, false},
		{"limit of requests per second", 0, false},
		{"limit of 0 requests per second", 0, false},
		{"limit of -5 requests per second", 0, false},
		{"limit of 0.5 requests per second", 0, false},
		{"limit of 1,000 requests per second", 0, false},
		{"limit of ten requests per second", 0, false},
		{"limit of 10 requests per minute", 0, false},
		{"limit of 10 requests", 0, false},
		{"limit of 10 tokens per second", 0, false},
		{"10 requests per second", 0, false},
		{"delimit of 10 requests per second", 0, false},
		{"limit of " + strings.Repeat("9", 1000) + " requests per second", 0, false},
	} {
		got, ok := limitOf(tt.details)
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("limitOf(%.60q) = %d, %v; want %d, %v", tt.details, got, ok, tt.want, tt.ok)
		}
	}
}
