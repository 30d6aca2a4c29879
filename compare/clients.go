package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"github.com/gofri/go-github-ratelimit/v2/github_ratelimit"
	"github.com/hashicorp/go-retryablehttp"
	"golang.org/x/time/rate"
	"resty.dev/v3"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/internal/simnet"
)

const (
	limit      = 15 // Clarifai's documented default, per second and account
	window     = time.Second
	backoff    = 15 * time.Second // what Clarifai recommends after CONN_THROTTLED
	maxBackoff = 60 * time.Second
	retries    = 10

	processes = 4
)

// A quota is what a client is set up for.
type quota struct {
	limit  int
	window time.Duration
	// transit bounds the way to the server, for those clients that can make
	// use of it. Zero: they are left at their default.
	transit time.Duration
}

// perSecond returns the limit as a rate.
func (q quota) perSecond() float64 { return float64(q.limit) / q.window.Seconds() }

// A client is one way to stay within a quota. Each is set up as its own
// documentation advises for "15 per second, wait 15 s when throttled"; where it
// leaves a choice, the one with the better figures was taken.
type client struct {
	name   string
	setup  string // for those who read the results
	module string // whose version was measured; empty: no module
	ours   bool
	margin bool // it gives up a part of the limit

	// open returns the client's transports over a base, one per process.
	open func(base http.RoundTripper, q quota) []http.RoundTripper
}

const (
	nameNone      = "none"
	nameByHand    = "sleep and retry"
	nameBurst     = "x/time/rate 15/15"
	nameSmooth    = "x/time/rate 15/1"
	nameMargin    = "x/time/rate 10/1"
	nameMargin12  = "x/time/rate 12/1"
	nameMargin14  = "x/time/rate 14/1"
	nameRetryable = "go-retryablehttp"
	nameBursty    = "failsafe-go, bursty"
	nameFailsafe  = "failsafe-go, smooth"
	nameGitHub    = "go-github-ratelimit"
	nameResty     = "resty"
	nameOurs      = "clarifaihttp"
	nameProcesses = "clarifaihttp, 4 processes"
	nameShares    = "clarifaihttp, 4 processes, shares"
)

var clients = []client{
	{
		name:  nameNone,
		setup: "http.Client as it is; a throttled response is an error.",
		open:  single(func(base http.RoundTripper, _ quota) http.RoundTripper { return base }),
	},
	{
		name: nameByHand,
		// https://docs.clarifai.com, on rate limits, shows it in Python.
		setup: "Clarifai's own sample in Go: on CONN_THROTTLED sleep 15 s, then again, until it works.",
		open:  single(func(base http.RoundTripper, _ quota) http.RoundTripper { return byHand{base} }),
	},
	{
		name:   nameBurst,
		setup:  "`rate.NewLimiter(15, 15).Wait` before each call; a throttled response is an error.",
		module: "golang.org/x/time",
		open: single(func(base http.RoundTripper, q quota) http.RoundTripper {
			return limited{base, rate.NewLimiter(rate.Limit(q.perSecond()), q.limit)}
		}),
	},
	{
		name:   nameSmooth,
		setup:  "`rate.NewLimiter(15, 1).Wait` before each call; a throttled response is an error.",
		module: "golang.org/x/time",
		open: single(func(base http.RoundTripper, q quota) http.RoundTripper {
			return limited{base, rate.NewLimiter(rate.Limit(q.perSecond()), 1)}
		}),
	},
	withMargin(nameMargin, 10, "a third of the limit"),
	withMargin(nameMargin12, 12, "a fifth of the limit"),
	withMargin(nameMargin14, 14, "a fifteenth of the limit"),
	{
		name: nameRetryable,
		// Its README sets RetryMax to 10; DefaultRetryPolicy retries 429, and
		// LinearJitterBackoff is there "to prevent a thundering herd". With
		// DefaultBackoff it does worse.
		setup:  "RoundTripper with RetryMax 10, LinearJitterBackoff, RetryWaitMin 15 s, RetryWaitMax 30 s; its default policy retries 429.",
		module: "github.com/hashicorp/go-retryablehttp",
		open: single(func(base http.RoundTripper, _ quota) http.RoundTripper {
			c := retryablehttp.NewClient()
			c.HTTPClient = &http.Client{Transport: base}
			c.Logger = nil
			c.RetryMax, c.RetryWaitMin, c.RetryWaitMax = retries, backoff, 2*backoff
			c.Backoff = retryablehttp.LinearJitterBackoff
			return &retryablehttp.RoundTripper{Client: c}
		}),
	},
	{
		name:   nameBursty,
		setup:  "failsafehttp: NewRetryPolicyBuilder (retries 429) with WithBackoff(15 s, 60 s), WithJitterFactor(0.25) and 10 retries, around NewBurstyBuilder(15, 1 s), which each attempt waits for.",
		module: "github.com/failsafe-go/failsafe-go",
		open: single(func(base http.RoundTripper, q quota) http.RoundTripper {
			return failsafeTransport(base, ratelimiter.NewBurstyBuilder[*http.Response](uint(q.limit), q.window))
		}),
	},
	{
		name:   nameFailsafe,
		setup:  "The same around NewSmoothBuilder(15, 1 s).",
		module: "github.com/failsafe-go/failsafe-go",
		open: single(func(base http.RoundTripper, q quota) http.RoundTripper {
			return failsafeTransport(base, ratelimiter.NewSmoothBuilder[*http.Response](uint(q.limit), q.window))
		}),
	},
	{
		name:   nameGitHub,
		setup:  "New(base) over an adapter that translates CONN_THROTTLED into GitHub's secondary limit with Retry-After: 15, the only such response that it knows.",
		module: "github.com/gofri/go-github-ratelimit/v2",
		open: single(func(base http.RoundTripper, _ quota) http.RoundTripper {
			return github_ratelimit.New(gitHubSpeaking{base})
		}),
	},
	{
		name: nameResty,
		// The doc of NewRateLimitSlidingWindow: "provides stricter enforcement
		// of the request limit"; of SetRetryAllowNonIdempotent: without it no
		// POST is retried. Its default delay is "capped exponential backoff
		// with jitter"; with a constant one it does worse.
		setup:  "SetRateLimiter(NewRateLimitSlidingWindow(15, 1 s)), SetRetryCount(10), RetryConditionStatusTooManyRequests, SetRetryWaitTime(15 s), SetRetryMaxWaitTime(60 s), SetRetryAllowNonIdempotent.",
		module: "resty.dev/v3",
		open: single(func(base http.RoundTripper, q quota) http.RoundTripper {
			c := resty.New().
				SetTransport(base).
				SetRateLimiter(resty.NewRateLimitSlidingWindow(q.limit, q.window)).
				SetRetryCount(retries).
				AddRetryConditions(resty.RetryConditionStatusTooManyRequests).
				SetRetryWaitTime(backoff).
				SetRetryMaxWaitTime(maxBackoff).
				SetRetryAllowNonIdempotent(true)
			return restyTransport{c}
		}),
	},
	{
		name:   nameOurs,
		setup:  "NewTransport(base).",
		module: "example.com/clarifaihttp",
		ours:   true,
		open:   single(ourTransport),
	},
	{
		name:   nameProcesses,
		setup:  "The same, four times over for one account; none knows of the others.",
		module: "example.com/clarifaihttp",
		open: func(base http.RoundTripper, q quota) (all []http.RoundTripper) {
			for range processes {
				all = append(all, ourTransport(base, q))
			}
			return all
		},
	},
	{
		name:   nameShares,
		setup:  "The same with Throttle.Limit 4, 4, 4 and 3.",
		module: "example.com/clarifaihttp",
		open: func(base http.RoundTripper, q quota) (all []http.RoundTripper) {
			for i := range processes {
				share := q
				share.limit = (q.limit + processes - 1 - i) / processes
				all = append(all, ourTransport(base, share))
			}
			return all
		},
	},
}

// withMargin is a limiter for less than the limit, of 15.
func withMargin(name string, rps int, margin string) client {
	return client{
		name:   name,
		setup:  fmt.Sprintf("`rate.NewLimiter(%d, 1).Wait` before each call, %s given up as a margin; a throttled response is an error.", rps, margin),
		module: "golang.org/x/time",
		margin: true,
		open: single(func(base http.RoundTripper, q quota) http.RoundTripper {
			return limited{base, rate.NewLimiter(rate.Limit(q.perSecond()*float64(rps)/limit), 1)}
		}),
	}
}

func single(open func(http.RoundTripper, quota) http.RoundTripper) func(http.RoundTripper, quota) []http.RoundTripper {
	return func(base http.RoundTripper, q quota) []http.RoundTripper {
		return []http.RoundTripper{open(base, q)}
	}
}

func ourTransport(base http.RoundTripper, q quota) http.RoundTripper {
	th := &clarifaihttp.Throttle{Limit: q.limit, Window: q.window, Transit: q.transit}
	return clarifaihttp.NewTransport(base, clarifaihttp.WithThrottle(th), clarifaihttp.WithLogger(slog.New(slog.DiscardHandler)))
}

// byHand is the loop that Clarifai's sample has around each call.
type byHand struct{ base http.RoundTripper }

func (t byHand) RoundTrip(req *http.Request) (*http.Response, error) {
	for {
		resp, err := t.base.RoundTrip(req)
		if err != nil || resp.StatusCode < 400 {
			return resp, err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		var answer struct{ Status struct{ Code any } }
		json.Unmarshal(b, &answer) // what is no JSON is no throttle
		if answer.Status.Code != "CONN_THROTTLED" || req.Body != nil && req.GetBody == nil {
			resp.Body = io.NopCloser(bytes.NewReader(b))
			return resp, nil
		}
		if err := simnet.Sleep(req.Context(), backoff); err != nil {
			return nil, err
		}
		if req.Body != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
	}
}

// limited waits for a rate.Limiter before each call.
type limited struct {
	base    http.RoundTripper
	limiter *rate.Limiter
}

func (t limited) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := t.limiter.Wait(req.Context()); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	return t.base.RoundTrip(req)
}

// failsafeTransport composes the policies in the order that the documentation
// of failsafe.With gives: the retry policy is the outer one, so that each of
// its attempts takes a permit. A jitter is what its documentation of delays
// offers against retries in step; without it does worse. ReturnLastFailure hands
// the throttled response to the caller where ExceededError would hide it.
func failsafeTransport(base http.RoundTripper, limiter ratelimiter.Builder[*http.Response]) http.RoundTripper {
	retry := failsafehttp.NewRetryPolicyBuilder().
		WithBackoff(backoff, maxBackoff).
		WithJitterFactor(0.25).
		WithMaxRetries(retries).
		ReturnLastFailure().
		Build()
	var policies []failsafe.Policy[*http.Response]
	policies = append(policies, retry, limiter.WithMaxWaitTime(24*time.Hour).Build())
	return failsafehttp.NewRoundTripper(base, policies...)
}

// gitHubSpeaking answers as GitHub does when Clarifai throttles: see "About
// secondary rate limits" in GitHub's REST documentation.
type gitHubSpeaking struct{ base http.RoundTripper }

func (t gitHubSpeaking) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests {
		return resp, err
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	translated := simnet.Respond(req, http.StatusForbidden, `{"message":"You have exceeded a secondary rate limit. Please wait a few minutes before you try again."}`)
	translated.Header.Set("Retry-After", "15")
	return translated, nil
}

// restyTransport sends requests by a resty.Client, which is no RoundTripper.
type restyTransport struct{ client *resty.Client }

func (t restyTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	r := t.client.R().SetContext(req.Context()).SetResponseDoNotParse(true)
	r.Header = req.Header.Clone()
	switch {
	case req.Body == nil:
	case req.GetBody != nil && req.ContentLength <= 1<<20: // as its users set a body that they have at hand
		b, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		r.SetBody(b)
	default:
		r.SetBody(req.Body)
	}
	resp, err := r.Execute(req.Method, req.URL.String())
	if err != nil {
		if resp != nil && resp.RawResponse != nil {
			resp.RawResponse.Body.Close()
		}
		return nil, err
	}
	resp.RawResponse.Body = resp.Body
	return resp.RawResponse, nil
}
