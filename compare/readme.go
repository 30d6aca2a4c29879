package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// The README's section lies between these lines.
const (
	sectionBegin = "<!-- begin: written by go -C compare run . -w -->\n"
	sectionEnd   = "<!-- end -->\n"
)

// section returns the README's section, and whether there is one.
func section(readme string) (text string, ok bool) {
	_, rest, begun := strings.Cut(readme, sectionBegin)
	text, _, ended := strings.Cut(rest, sectionEnd)
	return text, begun && ended
}

// withSection returns the README with a new section, or as it is if it has no
// place for one.
func withSection(readme, text string) string {
	old, ok := section(readme)
	if !ok {
		return readme
	}
	return strings.Replace(readme, sectionBegin+old+sectionEnd, sectionBegin+text+sectionEnd, 1)
}

// readmeSection returns the summary, pictures, and where the rest is.
func readmeSection(rs records) string {
	return summary(rs) + `
![goodput of each client](compare/goodput.svg)
![requests served around a halt](compare/served.svg)

[compare/RESULTS.md](compare/RESULTS.md) has all clients and figures, tells where
others are better, and how it is measured. This measures anew and shows what differs:

` + "```sh\ngo -C compare run .\n```\n"
}

// A bullet is an alternative and what came of it.
type bullet struct{ what, text string }

func list(bullets []bullet) string {
	var b strings.Builder
	for _, p := range bullets {
		b.WriteString(fill("- **"+p.what+"** "+p.text, "  "))
	}
	return b.String()
}

// fill breaks a paragraph into lines of at most 82 characters. The lines after the
// first begin with indent. A number and its % stay together.
func fill(text, indent string) string {
	var b strings.Builder
	column := 0
	for i, word := range strings.Fields(strings.ReplaceAll(text, " %", "\x00%")) {
		switch n := len([]rune(word)); {
		case i == 0:
			column = n
		case column+1+n > 82:
			b.WriteString("\n" + indent)
			column = len(indent) + n
		default:
			b.WriteString(" ")
			column += 1 + n
		}
		b.WriteString(word)
	}
	return strings.ReplaceAll(b.String(), "\x00", " ") + "\n"
}

// summary returns what matters most, for the README. Every figure is measured.
func summary(rs records) string {
	ours := rs.ours()
	var ms, shares []string
	for _, j := range jitters {
		ms = append(ms, fmt.Sprint(j.Milliseconds()))
		least := 1.0
		for cond, f := range ours.flood {
			if cond.jitter == j {
				least = min(least, f.goodput)
			}
		}
		shares = append(shares, percent(least))
	}
	last := jitters[len(jitters)-1].Milliseconds()
	return fill(fmt.Sprintf("Simulated: %d workers, %d requests per second, a halt of %.0f s after one too many, ways of up to %s ms (jitter). *Goodput* is the share of the limit that is served. Alone on the account, %s reaches %s %% and is %s. At %d ms this needs `Transit` raised to %d ms: with the default, up to %.1f of 1000 requests are throttled.",
		workers, limit, backoff.Seconds(), alternatives(ms), nameOurs, enumeration(shares), never(ours.flood),
		last, last, most(ours.untold, func(f figures) float64 { return f.throttled })), "") +
		"\n" + list(mainBullets(rs))
}

// mainBullets are for the README.
func mainBullets(rs records) []bullet {
	ours := rs.ours()
	hand, margin, retryable, several, shares := rs.named(nameByHand), rs.named(nameMargin12), rs.named(nameRetryable), rs.named(nameProcesses), rs.named(nameShares)
	return []bullet{
		{"Sleep 15 s and try again,", fmt.Sprintf("as Clarifai's sample does: all come back at once and cause the next halt. Goodput is %s %%, and %s %% on servers that do not halt.",
			hand.goodputs(backoff), hand.goodputs(noHalt))},
		{"`rate.NewLimiter(12, 1)`", fmt.Sprintf("leaves a margin: %s %% everywhere, %s. That is as good for steady work on an account of your own. But %d requests from idle take %.1f s (ours: %.1f s), a neighbour who sends %d per second leaves it %s %% of the rest (ours: %s %%), and %d calls fail while another user halts the account (ours: %d).",
			margin.goodputs(0), never(margin.flood),
			limit, margin.burst[limit].p99.Seconds(), ours.burst[limit].p99.Seconds(),
			neighbours, percent(margin.neighbour.goodput), percent(ours.neighbour.goodput),
			margin.halted[usual.algorithm].lost, ours.halted[usual.algorithm].lost)},
		{"go-retryablehttp", fmt.Sprintf("retries each request by itself and holds back no other: %s %%, and %s %% on servers that do not halt.",
			retryable.goodputs(backoff), retryable.goodputs(noHalt))},
		{"This package in four processes", fmt.Sprintf("that do not know of each other: %s %% in the first %.0f s, %s. With a share of the limit each: %s %%, %s, but an idle one's share is lost.",
			several.goodputs(0), period.Seconds(), never(several.flood), shares.goodputs(0), never(shares.flood))},
	}
}

// moreBullets are for RESULTS.md.
func moreBullets(rs records) []bullet {
	ours := rs.ours()
	better := func(r record) int { n, _ := rs.better(r); return n }
	usually := condition{usual.halt, usual.algorithm, usual.jitter}
	still := condition{usual.halt, throttletest.SlidingLog, 0}
	wide := condition{usual.halt, throttletest.SlidingLog, 100 * time.Millisecond}
	peak := func(r record) int { return most(r.flood, func(f figures) int { return f.peak }) }
	burst, smooth, less, least := rs.named(nameBurst), rs.named(nameSmooth), rs.named(nameMargin14), rs.named(nameMargin)
	failsafe, bursty, github, resty := rs.named(nameFailsafe), rs.named(nameBursty), rs.named(nameGitHub), rs.named(nameResty)
	return []bullet{
		{"`rate.NewLimiter(15, 15)`", fmt.Sprintf("lets up to %d requests through in a second, and a throttled response is the caller's error. At worst the goodput is %s %%, and %s %% of the calls fail. On a token bucket it is at least %s %%.",
			peak(burst), percent(burst.worst().goodput), percent(most(burst.flood, figures.failed)), percent(burst.worstOn(throttletest.TokenBucket)))},
		{"`rate.NewLimiter(15, 1)`", fmt.Sprintf("is the best there is without jitter: %s %% (ours: %s %%). But requests that leave evenly do not arrive evenly. At a jitter of %d ms, a sliding log sees %d in a second and halts: goodput is %s %% (ours: %s %%).",
			percent(smooth.flood[still].goodput), percent(ours.flood[still].goodput), usualJitter.Milliseconds(),
			smooth.flood[usually].peak, percent(smooth.flood[usually].goodput), percent(ours.flood[usually].goodput))},
		{"`rate.NewLimiter(14, 1)`", fmt.Sprintf("has a small margin: %s %% at a jitter of %d ms on a sliding log, but %s %% at %d ms. `rate.NewLimiter(10, 1)` has a large one: %s %% everywhere.",
			percent(less.flood[usually].goodput), usualJitter.Milliseconds(), percent(less.flood[wide].goodput), wide.jitter.Milliseconds(), least.goodputs(0))},
		{"failsafe-go,", fmt.Sprintf("a retry policy around a rate limiter: the smooth limiter fails as `rate.NewLimiter(15, 1)` does, the bursty one lets up to %d requests through in a second. Their worst goodput is %s and %s %%, and some calls of the job fail after all retries. In %d and %d of %d floods they are better than ours.",
			peak(bursty), percent(failsafe.worst().goodput), percent(bursty.worst().goodput), better(failsafe), better(bursty), len(conditions()))},
		{"go-github-ratelimit,", fmt.Sprintf("taught what Clarifai's throttled responses are, pauses all requests. But it keeps no limit and sends no probe: all come back at once, and goodput is %s %%. A POST from a stream is %s.",
			github.goodputs(0), strings.Trim(github.stream, "*"))},
		{"resty,", fmt.Sprintf("with its sliding window and retries: the window holds where requests leave, not where they arrive. Up to %d arrive in a second, and goodput is %s %% at worst. In %d of %d floods it is better than ours. It is no http.RoundTripper for other people's clients.",
			peak(resty), percent(resty.worst().goodput), better(resty), len(conditions()))},
	}
}

// goodputs returns the lowest and the highest goodput of floods, in %, with halts
// of that length; 0: of all.
func (r record) goodputs(halt time.Duration) string {
	var all []float64
	for cond, f := range r.flood {
		if halt == 0 || cond.halt == halt {
			all = append(all, f.goodput)
		}
	}
	from, to := percent(slices.Min(all)), percent(slices.Max(all))
	if from == to {
		return from
	}
	return from + " to " + to
}

// worstOn returns the lowest goodput on a server.
func (r record) worstOn(a throttletest.Algorithm) float64 {
	least := 1.0
	for cond, f := range r.flood {
		if cond.algorithm == a {
			least = min(least, f.goodput)
		}
	}
	return least
}

// never says how often a client is throttled in floods, at most.
func never(flood map[condition]figures) string {
	if n := most(flood, func(f figures) float64 { return f.throttled }); n > 0 {
		return fmt.Sprintf("with up to %.0f of 1000 requests throttled", n)
	}
	return "never throttled"
}

// enumeration joins words by "and", alternatives by "or".
func enumeration(words []string) string  { return joined(words, "and") }
func alternatives(words []string) string { return joined(words, "or") }

func joined(words []string, by string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " " + by + " " + words[last]
}
