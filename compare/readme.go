package main

import (
	"fmt"
	"strings"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// The README's section lies between these lines.
const (
	sectionBegin = "<!-- begin: written by go -C compare run . -->\n"
	sectionEnd   = "<!-- end -->\n"
)

// withSection returns the README with a new section, or as it is if it has no
// place for one.
func withSection(readme, section string) string {
	before, rest, begun := strings.Cut(readme, sectionBegin)
	_, after, ended := strings.Cut(rest, sectionEnd)
	if !begun || !ended {
		return readme
	}
	return before + sectionBegin + section + sectionEnd + after
}

// whyNot returns a few lines for each alternative. Every figure is measured.
func whyNot(rs records) string {
	var b strings.Builder
	instead := func(what, text string, figures ...any) {
		fmt.Fprintf(&b, "- **%s** "+text+"\n", append([]any{what}, figures...)...)
	}
	ours := rs.ours()
	usually := condition{usual.halt, usual.algorithm, usual.jitter}
	still := condition{usual.halt, throttletest.SlidingLog, 0}
	wide := condition{usual.halt, throttletest.SlidingLog, 100 * time.Millisecond}
	far := condition{usual.halt, throttletest.SlidingLog, jitters[len(jitters)-1]}

	fmt.Fprintf(&b, "%d workers against a server of %d requests per second that halts for %.0f s; goodput is the share of the limit that is served. %s: %s to %s %% over all servers and networks tried, never throttled. Where nothing else is said, the others' figures are their worst.\n\n",
		workers, limit, backoff.Seconds(), nameOurs, percent(ours.worst().goodput), percent(most(ours.flood, func(f figures) float64 { return f.goodput })))

	r := rs.named(nameByHand)
	instead("sleep 15 s and try again,", "as Clarifai's sample does? Each worker sleeps by itself, then all come back at once and halt the account again: goodput %s %%. A job of %d requests takes %.0f s instead of %.0f.",
		percent(r.worst().goodput), jobSize, r.job.time.Seconds(), ours.job.time.Seconds())

	r = rs.named(nameBurst)
	instead("`rate.NewLimiter(15, 15)`?", "It lets up to %d requests through in a second, and a throttle is the caller's error: goodput %s %%, %s %% of the calls fail.",
		most(r.flood, func(f figures) int { return f.peak }), percent(r.worst().goodput), percent(most(r.flood, figures.failed)))

	r = rs.named(nameSmooth)
	instead("`rate.NewLimiter(15, 1)`?", "Without jitter it is the best there is, %s %% against our %s %%. But requests that leave evenly do not arrive so: at a jitter of %d ms, a sliding log sees %d in a second, halts, and goodput is %s %% against %s %%.",
		percent(r.flood[still].goodput), percent(ours.flood[still].goodput), usualJitter.Milliseconds(),
		r.flood[usually].peak, percent(r.flood[usually].goodput), percent(ours.flood[usually].goodput))

	r = rs.named(nameMargin12)
	instead("`rate.NewLimiter(12, 1)`, with a margin?", "For steady work on an account of your own, this line does as well: %s %% on every network, never throttled. Ours has %s %% without jitter and %s %% at %d ms of it. The line uploads images at %s %%, ours at %s %%. It does worse in three cases. A burst of %d from idle takes %.1f s (ours: %.1f s). Beside a neighbour who takes %d/s, it gets %s %% of the rest (ours: %s %%). When somebody halts the account for %.0f s, %d of its calls fail (ours: %d). `rate.NewLimiter(10, 1)` is the same at %s %%.",
		percent(r.worst().goodput), percent(ours.flood[still].goodput), percent(ours.flood[far].goodput), far.jitter.Milliseconds(),
		percent(r.images.goodput), percent(ours.images.goodput),
		limit, r.burst[limit].p99.Seconds(), ours.burst[limit].p99.Seconds(),
		neighbours, percent(r.neighbour.goodput), percent(ours.neighbour.goodput),
		backoff.Seconds(), r.halted[usual.algorithm].lost, ours.halted[usual.algorithm].lost,
		percent(rs.named(nameMargin).worst().goodput))

	r = rs.named(nameMargin14)
	instead("`rate.NewLimiter(14, 1)`?", "The same with a small margin: %s %% at a jitter of %d ms, but %s %% at %d ms.",
		percent(r.flood[usually].goodput), usualJitter.Milliseconds(), percent(r.flood[wide].goodput), wide.jitter.Milliseconds())

	r = rs.named(nameRetryable)
	instead("go-retryablehttp?", "It retries each request by itself and holds back no other: goodput %s %%. A job of %d requests takes %.0f s instead of %.0f.",
		percent(r.worst().goodput), jobSize, r.job.time.Seconds(), ours.job.time.Seconds())

	r = rs.named(nameFailsafe)
	bursty := rs.named(nameBursty)
	instead("failsafe-go,", "a retry policy around a rate limiter? Smooth, it shares the fate of `rate.NewLimiter(15, 1)`, bursty it is up to %d in a second: goodput %s and %s %%, and some calls fail after all retries. On a fixed window or a token bucket it is mostly better than ours: see `compare/RESULTS.md`.",
		most(bursty.flood, func(f figures) int { return f.peak }), percent(r.worst().goodput), percent(bursty.worst().goodput))

	r = rs.named(nameGitHub)
	instead("go-github-ratelimit,", "taught Clarifai's throttle? It does pause all requests, but keeps no limit and sends no probe: all come back at once, goodput %s %%. A POST from a stream is %s.",
		percent(r.worst().goodput), strings.Trim(r.stream, "*"))

	r = rs.named(nameResty)
	instead("resty", "with its sliding window and retries? The window is right where requests leave, not where they arrive: up to %d in a second, goodput %s %%, and it is no http.RoundTripper for other people's clients.",
		most(r.flood, func(f figures) int { return f.peak }), percent(r.worst().goodput))

	several, shares := rs.named(nameProcesses), rs.named(nameShares)
	instead("this package in several processes?", "Four that do not know of each other get %s %%, with up to %.0f of 1000 requests throttled. With a share of the limit each, %s %% and no throttle.",
		percent(several.worst().goodput), most(several.flood, func(f figures) float64 { return f.throttled }), percent(shares.worst().goodput))
	return b.String()
}
