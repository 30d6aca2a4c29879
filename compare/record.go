package main

import (
	"fmt"
	"math"
	"net/http"
	"testing"
	"time"

	"example.com/clarifaihttp/internal/simnet"
	"example.com/clarifaihttp/throttletest"
)

// A condition is one cell of the flood's table.
type condition struct {
	halt      time.Duration
	algorithm throttletest.Algorithm
	jitter    time.Duration
}

// halts are how long the server throttles everything after it throttled once.
var halts = []time.Duration{backoff, noHalt}

// conditions are all of them.
func conditions() (all []condition) {
	for _, halt := range halts {
		for _, a := range algorithms {
			for _, j := range jitters {
				all = append(all, condition{halt, a, j})
			}
		}
	}
	return all
}

// Figures are what one run came to.
type figures struct {
	goodput   float64 // of the limit, or of what the neighbour leaves of it
	throttled float64 // per 1000 requests at the server
	peak      int     // most arrivals at the server in any second
	lost      int     // calls that failed
	calls     int
	time      time.Duration   // when the last call ended
	p50, p99  time.Duration   // of the served calls
	known     time.Duration   // longest time until a caller knew
	arrived   int             // requests at the server
	served    []time.Duration // when it let one pass
}

func figuresOf(w *world, goodput float64) figures {
	stats := w.server.Stats()
	f := figures{
		goodput:   goodput,
		throttled: w.perThousand(),
		peak:      stats.Peak,
		arrived:   stats.Served + stats.Throttled,
		lost:      w.lost(),
		calls:     len(w.calls),
		p50:       w.took(0.50, true),
		p99:       w.took(0.99, true),
		known:     w.took(1, false),
	}
	for _, c := range w.calls {
		f.time = max(f.time, c.at+c.took)
	}
	for _, at := range w.served {
		f.served = append(f.served, at.Sub(w.begin))
	}
	return f
}

func (f figures) String() string {
	return fmt.Sprintf("%d of %d requests served, %d of %d calls failed, p99 %v, longest %v, the last ended at %v",
		len(f.served), f.arrived, f.lost, f.calls, f.p99, f.known, f.time)
}

// failed returns the share of calls that failed.
func (f figures) failed() float64 { return float64(f.lost) / float64(max(f.calls, 1)) }

// A record is all that was measured of a client.
type record struct {
	client
	flood     map[condition]figures
	untold    map[condition]figures // the floods whose jitter is beyond Transit's default, with this left alone; for ours
	halted    map[throttletest.Algorithm]figures
	job       figures
	burst     map[int]figures
	inference figures
	deadline  figures
	neighbour figures
	both      figures // slow inference beside the neighbour

	beside, besideUsual side // the user's requests being urgent, and not; the latter for ours

	body   string // fate of a POST whose body can be had again
	stream string // and of one whose body cannot
}

type records []record

// parts fill a record, with floods of the duration given. They may run at the same
// time.
var parts = []func(*testing.T, *record, time.Duration){measureBeside, measureFloods, measureRest}

func measureBeside(t *testing.T, r *record, _ time.Duration) {
	r.beside = beside(t, r.client, batchSize, urgentest)
	if r.ours {
		r.besideUsual = beside(t, r.client, batchSize, "")
	}
}

func measureFloods(t *testing.T, r *record, d time.Duration) {
	r.flood = measureFlood(t, r.client, d)
	if r.ours {
		r.untold = measureUntold(t, r.client, d)
	}
}

func measureRest(t *testing.T, r *record, d time.Duration) {
	c := r.client
	r.job = figuresOf(job(t, c), 0)
	r.body, r.stream = bodyFate(t, c, false), bodyFate(t, c, true)
	r.halted = map[throttletest.Algorithm]figures{}
	for _, a := range panels {
		r.halted[a] = figuresOf(halted(t, c, a), 0)
	}
	r.burst = map[int]figures{}
	for _, n := range []int{limit, 2 * limit} {
		r.burst[n] = figuresOf(burst(t, c, n), 0)
	}
	w := inference(t, c, d)
	r.inference = figuresOf(w, w.goodput(d))
	r.deadline = figuresOf(deadlines(t, c), 0)
	const left = limit / float64(limit-neighbours)
	w = neighbour(t, c, usual, workers, d)
	r.neighbour = figuresOf(w, w.goodput(d)*left)
	w = neighbour(t, c, slow, inferenceWorkers, d)
	r.both = figuresOf(w, w.goodput(d)*left)
}

func measureFlood(t *testing.T, c client, d time.Duration) map[condition]figures {
	flood := map[condition]figures{}
	for _, cond := range conditions() {
		flood[cond] = measureOne(t, c, cond, d)
	}
	return flood
}

func measureOne(t *testing.T, c client, cond condition, d time.Duration) figures {
	w := flooded(t, c, setting{cond.algorithm, cond.halt, cond.jitter, simnet.Fixed(50 * time.Millisecond)}, workers, d)
	return figuresOf(w, w.goodput(d))
}

// measureUntold floods where c would be told to bound the way to the server,
// without telling it.
func measureUntold(t *testing.T, c client, d time.Duration) map[condition]figures {
	open := c.open
	c.open = func(base http.RoundTripper, q quota) []http.RoundTripper {
		q.transit = 0
		return open(base, q)
	}
	flood := map[condition]figures{}
	for _, cond := range conditions() {
		if cond.jitter > defaultTransit {
			flood[cond] = measureOne(t, c, cond, d)
		}
	}
	return flood
}

// worst returns the flood's figures where the goodput was lowest.
func (r record) worst() figures { return worst(r.flood) }

func worst(flood map[condition]figures) figures {
	worst := figures{goodput: math.Inf(1)}
	for _, f := range flood {
		if f.goodput < worst.goodput {
			worst = f
		}
	}
	return worst
}

// most returns the greatest that f finds in a flood's figures.
func most[T int | float64](flood map[condition]figures, f func(figures) T) (greatest T) {
	for _, fig := range flood {
		greatest = max(greatest, f(fig))
	}
	return greatest
}

// better returns in how many floods r has more goodput than ours, and in how many
// of these it is not throttled.
func (rs records) better(r record) (better, clean int) {
	for _, cond := range conditions() {
		if f := r.flood[cond]; !r.ours && f.goodput > rs.ours().flood[cond].goodput {
			better++
			if f.throttled == 0 {
				clean++
			}
		}
	}
	return better, clean
}

// named returns the record of the client of that name.
func (rs records) named(name string) record {
	for _, r := range rs {
		if r.name == name {
			return r
		}
	}
	panic("no client " + name)
}

func (rs records) ours() record { return rs.named(nameOurs) }
