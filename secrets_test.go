package clarifaihttp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// secret marks what must be in no log line and in no error of this package.
const secret = "s3cr3t"

// confidential is a request with secrets wherever there is room for one.
func confidential(ctx context.Context, t *testing.T) *http.Request {
	type key string
	req, err := http.NewRequestWithContext(context.WithValue(ctx, key(secret), secret), http.MethodPost,
		"https://"+secret+"-user:"+secret+"-password@server:8443/"+secret+"/path?key="+secret+"#"+secret, newBody(t, secret+"-body"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Authorization", "X-Clarifai-Session-Token", "Cookie", "Referer", "User-Agent", "X-" + secret} {
		req.Header.Set(name, "Key "+secret+"-"+name)
	}
	req.Trailer = http.Header{"X-Trailer": {secret}}
	req.Host = secret + ".invalid"
	req.Form = url.Values{secret: {secret}}
	return req
}

// TestSecrets goes through all that this package logs and all errors of its
// own. The details and the request id of a throttle are the server's words, the
// texts of a Limiter's and of a base's errors are theirs.
func TestSecrets(t *testing.T) {
	// Nothing may be written past the logger.
	var stray bytes.Buffer
	defer log.SetFlags(log.Flags())
	defer log.SetOutput(log.Writer())
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(&stray, nil)))
	log.SetOutput(&stray)

	type base = func(n int, req *http.Request) (*http.Response, error)
	// answers sends the request and answers the n-th with the n-th, or the last.
	answers := func(answers ...func() *http.Response) base {
		return func(n int, req *http.Request) (*http.Response, error) {
			sent(req)
			io.Copy(io.Discard, req.Body)
			req.Body.Close()
			return answers[min(n, len(answers)-1)](), nil
		}
	}
	again := func() *http.Response { return throttled("") }
	const (
		begins = `level=WARN msg="clarifaihttp: throttled, pausing all requests" host=server:8443 `
		over   = `level=INFO msg="clarifaihttp: pause is over" host=server:8443`
		back   = `level=WARN msg="clarifaihttp: throttled response handed back" host=server:8443 code=11005 request_id=4d1f reason=`
	)
	for _, tt := range []struct {
		name    string
		base    base
		limiter clarifaihttp.Limiter
		alter   func(*http.Request)
		timeout time.Duration
		busy    bool // another request holds the only slot
		cancel  bool // by Request.Cancel
		error   string
		log     []string // how the lines begin
	}{
		{name: "throttle", base: answers(again, ok), log: []string{begins, over}},
		{name: "throttle without a status", base: answers(func() *http.Response { return respond(429, "slow down") }, ok)},
		{name: "throttled probes", base: answers(again, again, again, ok), log: []string{begins, begins, begins, over}},
		{name: "throttle handed back", timeout: time.Second, base: answers(again), log: []string{begins, back + "deadline"}},
		{name: "refused for its deadline", busy: true, timeout: time.Second,
			error: "clarifaihttp: rate limit wait of at least "},
		{name: "Request.Cancel", busy: true, cancel: true, error: "clarifaihttp: request canceled while waiting"},
		{name: "Limiter", limiter: limiterFunc(func() error { return errOwn }), error: "clarifaihttp: limiter: own"},
		{name: "nothing returned", base: answers(func() *http.Response { return nil }),
			error: "clarifaihttp: base clarifaihttp_test.roundTripperFunc returned a nil *Response with a nil error"},
		{name: "nil body", base: answers(func() *http.Response { return &http.Response{StatusCode: 200, ContentLength: 7} }),
			error: "clarifaihttp: base clarifaihttp_test.roundTripperFunc returned a *Response with content length 7 but a nil Body"},
		{name: "nil URL", alter: func(req *http.Request) { req.URL = nil }, error: "clarifaihttp: nil Request.URL"},
		{name: "sent again by net/http", base: func(n int, req *http.Request) (*http.Response, error) {
			connected(req)
			return answers(ok)(n, req)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lines bytes.Buffer
				logger := slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug - 100}))
				th := &clarifaihttp.Throttle{Limiter: tt.limiter}
				if tt.busy {
					th.Limit, th.Window = 1, time.Hour
				}
				n := 0
				rt := clarifaihttp.NewTransport(roundTripperFunc(func(req *http.Request) (*http.Response, error) {
					if req.Method == http.MethodGet {
						return ok(), nil
					}
					n++
					return tt.base(n-1, req)
				}), clarifaihttp.WithThrottle(th), clarifaihttp.WithLogger(logger))
				if tt.busy {
					all(t, rt, 1)
				}
				ctx := t.Context()
				if tt.timeout != 0 {
					var stop context.CancelFunc
					ctx, stop = context.WithTimeout(ctx, tt.timeout)
					defer stop()
				}
				req := confidential(ctx, t)
				if tt.cancel {
					cancelAfter(req, time.Second)
				}
				if tt.alter != nil {
					tt.alter(req)
				}
				_, err := rt.RoundTrip(req)
				if (err == nil) != (tt.error == "") || err != nil && !strings.HasPrefix(err.Error(), tt.error) {
					t.Errorf("error %v, want %q", err, tt.error)
				}
				if text := fmt.Sprintf("%v\n%+v\n%#v\n%s", err, err, err, &lines); strings.Contains(text, secret) {
					t.Errorf("a secret is in\n%s", text)
				}
				for i, line := range strings.Split(strings.TrimSuffix(lines.String(), "\n"), "\n") {
					_, line, _ = strings.Cut(line, " ") // the time
					if want := append(tt.log, "")[min(i, len(tt.log))]; want == "" && line != "" || !strings.HasPrefix(line, want) {
						t.Errorf("line %d is %q, want %q", i, line, want)
					}
				}
				if got := strings.Count(lines.String(), "\n"); got != len(tt.log) {
					t.Errorf("%d lines, want %d", got, len(tt.log))
				}
			})
		})
	}
	if stray.Len() > 0 {
		t.Errorf("written elsewhere:\n%s", &stray)
	}
}
