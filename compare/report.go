package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"example.com/clarifaihttp/internal/simnet"
	"example.com/clarifaihttp/throttletest"
)

const summaryTitle = "## In short\n\n"

// words explains what stands in tables and pictures.
func words() string {
	var b strings.Builder
	b.WriteString("Words:\n\n")
	for _, w := range [][2]string{
		{"goodput", "requests that are served, as a share of the limit"},
		{"halt", "what the server does after a request too many: it throttles all requests of the account for a while"},
		{"throttled", "answered CONN_THROTTLED instead of being served"},
		{"jitter", "a request, and its answer, takes a random time to the other end: from 0 to this, uniformly"},
		{throttletest.SlidingLog.String(), fmt.Sprintf("the server serves a request if it has served fewer than %d in the second before", limit)},
		{throttletest.FixedWindow.String(), fmt.Sprintf("the server serves %d requests in each second of the clock, so up to %d at once around its beginning", limit, 2*limit)},
		{throttletest.TokenBucket.String(), fmt.Sprintf("a bucket holds up to %d tokens and gains %d per second, evenly; each request that is served takes one", limit, limit)},
		{"flood", "workers send as fast as their client lets them"},
		{"neighbour", "another user of the account, who does not wait"},
	} {
		b.WriteString(fill("- **"+w[0]+"**: "+w[1]+".", "  "))
	}
	return b.String()
}

// report returns RESULTS.md, with this section on images.
func report(rs records, images string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Results

Written by `+"`go -C compare run . -w`"+` with %s, not by hand.

`, runtime.Version())
	b.WriteString(summaryTitle + summary(rs))
	b.WriteString("\n## How it is measured\n\n" + words() + "\n")
	b.WriteString(fill(fmt.Sprintf("Time is virtual and randomness seeded, but for the images. Two runs differ by the order of what happens at the same instant, and by the random delays of some clients. The server takes 50 ms (inference: 2 to 30 s), and %d ms for a throttled response. A flood has %d workers, lasts for %.0f s, and each worker waits for %.0f s after a call that failed. Clients start %d ms after a boundary of the server's windows. Everything but the flood has a sliding log, halts of %.0f s and a jitter of %d ms.",
		simnet.Refusal.Milliseconds(), workers, period.Seconds(), afterError.Seconds(), phase.Milliseconds(), backoff.Seconds(), usualJitter.Milliseconds()), ""))
	fmt.Fprintf(&b, "\n**Bold: better than %s.**\n\n", nameOurs)

	b.WriteString("## Clients\n\n")
	clientTable(&b, rs)
	b.WriteString("\n## All floods at a glance\n\nThe lowest goodput, and the most of the rest, over all servers, halts and jitters below.\n\n")
	worstTable(&b, rs)
	untold := rs.ours().untold
	fmt.Fprintf(&b, "\nWhere the jitter is more than Throttle.Transit's default of %d ms, Transit is raised to it for %s. With the default, its goodput is %s %% at worst there, and up to %.1f of 1000 requests are throttled.\n",
		defaultTransit.Milliseconds(), nameOurs, percent(worst(untold).goodput), most(untold, func(f figures) float64 { return f.throttled }))
	for _, halt := range halts {
		fmt.Fprintf(&b, "\n## Goodput, %s\n\n%% of the limit, at a jitter of %s ms.\n\n", haltName(halt), jitterNames())
		floodTable(&b, rs, halt, func(f figures) float64 { return 100 * f.goodput }, func(f, ours float64) bool { return f > ours })
		fmt.Fprintf(&b, "\n## Throttled per 1000 requests, %s\n\n", haltName(halt))
		floodTable(&b, rs, halt, func(f figures) float64 { return f.throttled }, func(f, ours float64) bool { return f < ours })
	}
	b.WriteString("\n![goodput of each client](goodput.svg)\n\n## Where another client is better\n\n")
	betterList(&b, rs)
	fmt.Fprintf(&b, "\n## A job of %d requests\n\nBy %d workers; nobody sends a failed call again.\n\n", jobSize, workers)
	jobTable(&b, rs)
	fmt.Fprintf(&b, "\n## Bursts from idle\n\n%d times, a minute apart; latency of those that were served.\n\n", bursts)
	burstTable(&b, rs)
	fmt.Fprintf(&b, "\n## Slow inference, and a neighbour\n\nInference takes 2 to 30 s, %d workers. The neighbour takes %d requests per second of the account, goodput is the share of the other %d. Both: slow inference beside the neighbour.\n\n", inferenceWorkers, neighbours, limit-neighbours)
	loadTable(&b, rs)
	b.WriteString("\n" + images)
	fmt.Fprintf(&b, "\n## What a caller sees while the account is halted\n\n%d calls with a deadline of %.0f s, within %.0f s of the halt's begin: longest time until a caller knew, and requests that reached the server meanwhile. Then, through net/http and without a deadline: what came of a POST whose body can be had again (GetBody), and of one whose body cannot (a stream).\n\n", deadlineCalls, deadline.Seconds(), deadlineCalls*deadlineEvery.Seconds())
	callerTable(&b, rs)
	besideSection(&b, rs)
	b.WriteString("\n## Served around a halt\n\nThe halt is another user's doing.\n\n![requests served around a halt](served.svg)\n")
	b.WriteString("\n## Why not just ...\n\n" + list(moreBullets(rs)))
	return b.String()
}

// row writes a line of a Markdown table.
func row(b *strings.Builder, cells ...string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }

// head writes a table's titles: the first column is aligned left, others right.
func head(b *strings.Builder, titles ...string) {
	row(b, titles...)
	rules := slices.Repeat([]string{"--:"}, len(titles))
	rules[0] = "---"
	row(b, rules...)
}

func clientTable(b *strings.Builder, rs records) {
	versions := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			versions[m.Path] = m.Version
			if m.Replace != nil {
				versions[m.Path] = "this"
			}
		}
	}
	row(b, "client", "version", "set up as")
	row(b, "---", "---", "---")
	for _, r := range rs {
		row(b, r.name, versions[r.module], r.setup)
	}
}

func worstTable(b *strings.Builder, rs records) {
	head(b, "client", "lowest goodput, %", "throttled per 1000", "arrivals in any second", "failed calls, %")
	for _, r := range rs {
		row(b, r.name,
			percent(r.worst().goodput),
			fmt.Sprintf("%.0f", most(r.flood, func(f figures) float64 { return f.throttled })),
			fmt.Sprint(most(r.flood, func(f figures) int { return f.peak })),
			percent(most(r.flood, figures.failed)))
	}
}

// floodTable shows one figure of all floods with halts of that length.
func floodTable(b *strings.Builder, rs records, halt time.Duration, of func(figures) float64, better func(f, ours float64) bool) {
	titles := []string{"client"}
	for _, a := range algorithms {
		titles = append(titles, a.String())
	}
	head(b, titles...)
	for _, r := range rs {
		cells := []string{r.name}
		for _, a := range algorithms {
			var values []string
			for _, j := range jitters {
				cond := condition{halt, a, j}
				f, ours := of(r.flood[cond]), of(rs.ours().flood[cond])
				values = append(values, bold(fmt.Sprintf("%.0f", f), better(f, ours)))
			}
			cells = append(cells, strings.Join(values, " / "))
		}
		row(b, cells...)
	}
}

// betterList counts the floods in which a client got more out of the limit.
func betterList(b *strings.Builder, rs records) {
	for _, r := range rs {
		if better, clean := rs.better(r); better > 0 {
			fmt.Fprintf(b, "- %s: more goodput in %d of %d floods, in %d of them without being throttled; at worst %s %%.\n",
				r.name, better, len(conditions()), clean, percent(r.worst().goodput))
		}
	}
}

func jobTable(b *strings.Builder, rs records) {
	head(b, "client", "done after, s", "throttled per 1000", "failed calls")
	ours := rs.ours().job
	for _, r := range rs {
		f := r.job
		row(b, r.name,
			bold(fmt.Sprintf("%.0f", f.time.Seconds()), f.time < ours.time && f.lost == 0),
			fmt.Sprintf("%.0f", f.throttled), fmt.Sprint(f.lost))
	}
}

func burstTable(b *strings.Builder, rs records) {
	sizes := []int{limit, 2 * limit}
	titles := []string{"client"}
	for _, n := range sizes {
		titles = append(titles, fmt.Sprintf("%d: p50, s", n), "p99, s", "failed, %")
	}
	head(b, titles...)
	for _, r := range rs {
		cells := []string{r.name}
		for _, n := range sizes {
			f, ours := r.burst[n], rs.ours().burst[n]
			clean := f.lost == 0
			cells = append(cells,
				bold(seconds(f.p50), clean && f.p50 < ours.p50), bold(seconds(f.p99), clean && f.p99 < ours.p99), percent(f.failed()))
		}
		row(b, cells...)
	}
}

func loadTable(b *strings.Builder, rs records) {
	head(b, "client", "inference: goodput, %", "throttled per 1000", "neighbour: goodput, %", "throttled per 1000", "both: goodput, %", "throttled per 1000")
	for _, r := range rs {
		cells := []string{r.name}
		for _, pair := range [][2]figures{{r.inference, rs.ours().inference}, {r.neighbour, rs.ours().neighbour}, {r.both, rs.ours().both}} {
			f, ours := pair[0], pair[1]
			cells = append(cells, bold(percent(f.goodput), f.goodput > ours.goodput), fmt.Sprintf("%.0f", f.throttled))
		}
		row(b, cells...)
	}
}

const imagesTitle = "## Images\n\n"

// imagesSection returns what came of uploads through clients. Late is how late
// goroutines ran meanwhile.
func imagesSection(clients []client, uploads []figures, late time.Duration) string {
	var b strings.Builder
	b.WriteString(imagesTitle)
	fmt.Fprintf(&b, "Uploads of %d kB with answers after %.0f s, by %d workers for %.0f s, over real sockets: HTTP/1.1 on loopback, where all clients run at the same time. The server counts a request up to %d ms after its headers came. Goroutines ran up to %d ms late.\n\n",
		imageSize/1000, imageAnswer.Seconds(), workers, imagesFor.Seconds(), usual.jitter.Milliseconds(), late.Milliseconds())
	head(&b, "client", "goodput, %", "throttled per 1000", "arrivals in any second", "failed calls, %")
	ours := uploads[slices.IndexFunc(clients, func(c client) bool { return c.ours })]
	for i, f := range uploads {
		row(&b, clients[i].name, bold(percent(f.goodput), f.goodput > ours.goodput), fmt.Sprintf("%.0f", f.throttled), fmt.Sprint(f.peak), percent(f.failed()))
	}
	return b.String()
}

// sectionOf returns the section of that title, or nothing.
func sectionOf(results, title string) string {
	_, rest, ok := strings.Cut(results, title)
	if !ok {
		return ""
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return title + text
}

func callerTable(b *strings.Builder, rs records) {
	head(b, "client", "knew after, s", "requests", "POST, GetBody", "POST, stream")
	ours := rs.ours().deadline
	for _, r := range rs {
		f := r.deadline
		row(b, r.name, bold(seconds(f.known), f.known < ours.known), bold(fmt.Sprint(f.arrived), f.arrived < ours.arrived), r.body, r.stream)
	}
}

func bold(s string, yes bool) string {
	if yes {
		return "**" + s + "**"
	}
	return s
}

func percent(share float64) string { return fmt.Sprintf("%.0f", 100*share) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

func haltName(d time.Duration) string {
	if d == noHalt {
		return "no halts"
	}
	return fmt.Sprintf("halts of %.0f s", d.Seconds())
}

func jitterNames() string {
	var names []string
	for _, j := range jitters {
		names = append(names, fmt.Sprint(j.Milliseconds()))
	}
	return strings.Join(names, " / ")
}
