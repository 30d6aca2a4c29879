package clarifaihttp_test

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// A plan is all that TestSearch draws from one seed: a server, the network to
// it, a base and the jobs of its callers. What happens to the k-th arrival of
// a job comes from a hash of seed, job and k, not from a global order, so that
// it is the same whoever else is under way.
type plan struct {
	seed uint64

	// The server.
	h2         bool
	streams    int           // HTTP/2's MaxConcurrentStreams; 0: the default
	refuses    bool          // streams that it aborts are REFUSED_STREAM
	idle       time.Duration // IdleTimeout; 0: none
	quickest   time.Duration // answers take between these two
	slowest    time.Duration
	faults     float64         // part of the arrivals that get no whole answer
	throttles  float64         // part that is throttled for no reason
	form       form            // of throttled responses
	mixed      bool            // each throttled response draws its own form
	halt       time.Duration   // how long one takes
	restarts   bool            // a request during a halt starts it anew
	halts      []time.Duration // when one begins
	drops      []time.Duration // when all connections are dropped, as by a deploy
	goaway     bool            // GOAWAY precedes a drop by 50 ms (HTTP/2 only)
	algorithm  throttletest.Algorithm
	delay      time.Duration // one way on the network: uniform between 0 and this
	brokenDial float64       // part of the dials that fail or hang

	// The base.
	maxConns     int
	maxIdle      int
	clientIdle   time.Duration
	noKeepAlives bool

	// Ours.
	limit      int
	window     time.Duration
	backoff    time.Duration
	transit    time.Duration
	retries    int
	replay     int
	transports int // that share the Throttle
	nested     bool
	tokens     int // of a Limiter; 0: there is none

	jobs []*job
}

// A job is one request of a caller.
type job struct {
	n        int
	at       time.Duration // when the caller starts
	kind     bodyKind
	data     []byte
	known    bool          // ContentLength is set
	pieces   int           // how many Reads give it, for bodies that take time
	every    time.Duration // between these
	stuckAt  int           // Read blocks for ever from this byte on; -1: it does not
	poisoned bool          // its path always gets a bare 429
	hangs    bool          // its path is never answered
	deadline time.Duration // of these three, one at most: how long after the start; 0: none
	cancel   time.Duration
	canceled time.Duration // by Request.Cancel
	unread   bool          // the caller closes the response without reading it
	// The urgency will stand here, once requests have one (RFC 9218), and be
	// sent by world.request.
}

// bodyKind is what sort of request body a job has.
type bodyKind string

const (
	noBody       bodyKind = "none"
	inMemory     bodyKind = "in memory"         // http.NewRequest's own GetBody
	rewindable   bodyKind = "GetBody"           // GetBody returns a new one
	sameObject   bodyKind = "same object again" // GetBody rewinds the one there is
	failingGet   bodyKind = "GetBody fails"
	plainReader  bodyKind = "no GetBody"
	beyondReplay bodyKind = "no GetBody, larger than the replay buffer"
)

// endless reports whether nothing but a cancel need end j.
func (j *job) endless() bool { return j.hangs || j.stuckAt >= 0 }

// endsAfter returns when its caller ends j, after its start; 0: never.
func (j *job) endsAfter() time.Duration { return max(j.deadline, j.cancel, j.canceled) } // one of them at most is set

// uploads returns how long the body takes at most to be read, in all.
func (j *job) uploads() time.Duration { return time.Duration(j.pieces) * j.every }

// again reports whether the body can be sent again without fail.
func (j *job) again() bool {
	return j.kind == noBody || j.kind == inMemory || j.kind == rewindable
}

func (j *job) String() string {
	parts := []string{fmt.Sprintf("job %d at %v, %s", j.n, j.at, j.kind)}
	for _, part := range []struct {
		on     bool
		format string
		args   []any
	}{
		{j.kind != noBody, "%d bytes", []any{len(j.data)}},
		{j.known, "known length", nil},
		{j.pieces > 0, "%d pieces every %v", []any{j.pieces, j.every}},
		{j.stuckAt >= 0, "stuck at %d", []any{j.stuckAt}},
		{j.poisoned, "poisoned", nil},
		{j.hangs, "hangs", nil},
		{j.deadline != 0, "deadline %v", []any{j.deadline}},
		{j.cancel != 0, "cancel %v", []any{j.cancel}},
		{j.canceled != 0, "Request.Cancel %v", []any{j.canceled}},
		{j.unread, "unread", nil},
	} {
		if part.on {
			parts = append(parts, fmt.Sprintf(part.format, part.args...))
		}
	}
	return strings.Join(parts, ", ")
}

// dice draws. Instants are drawn to the nanosecond, so that no two coincide:
// several goroutines of a bubble that receive from timers of one instant crash
// the race detector of Go 1.26.
type dice struct{ *rand.Rand }

// roll returns the dice for what is named so under a seed.
func roll(seed uint64, name ...any) dice {
	h := fnv.New64a()
	fmt.Fprint(h, name...)
	return dice{rand.New(rand.NewPCG(seed, h.Sum64()))}
}

func (d dice) chance(p float64) bool { return d.Float64() < p }

func (d dice) span(a, b time.Duration) time.Duration {
	return a + time.Duration(d.Int64N(int64(b-a)+1))
}

func pick[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

// newPlan draws the plan of a seed.
func newPlan(seed uint64) *plan {
	d := roll(seed, "plan")
	p := &plan{
		seed:         seed,
		h2:           d.chance(0.5),
		streams:      pick(d, 0, 0, 3, 20),
		refuses:      d.chance(0.5),
		idle:         pick(d, 0, time.Second, 5*time.Second, 30*time.Second),
		faults:       pick(d, 0, 0.05, 0.25),
		throttles:    pick(d, 0, 0, 0.02, 0.1),
		form:         newForm(d),
		mixed:        d.chance(0.3),
		halt:         pick(d, 15*time.Second, 40*time.Second),
		restarts:     d.chance(0.3),
		goaway:       d.chance(0.5),
		algorithm:    throttletest.Algorithm(d.IntN(4)),
		delay:        pick(d, 0, 20*ms, 100*ms, 240*ms),
		brokenDial:   pick(d, 0, 0, 0.1, 0.5),
		maxConns:     pick(d, 0, 0, 1, 2, 3, 10),
		maxIdle:      pick(d, 0, 100),
		clientIdle:   pick(d, 0, time.Second, 90*time.Second),
		noKeepAlives: d.chance(0.05),
		limit:        pick(d, 1, 2, 5, 15, 15),
		window:       pick(d, time.Second, time.Second, time.Second, 5*time.Second),
		backoff:      pick(d, 15*time.Second, 15*time.Second, 2*time.Second),
		transit:      pick(d, 250*ms, 250*ms, 250*ms, -1),
		retries:      pick(d, 0, 2, 10, 10, 10),
		replay:       pick(d, 0, 32<<10, 1<<20),
		transports:   pick(d, 1, 1, 2),
		nested:       d.chance(0.1),
		tokens:       pick(d, 0, 0, 0, 2, 4),
	}
	slow := pick(d, [2]time.Duration{ms, 50 * ms}, [2]time.Duration{100 * ms, 2 * time.Second}, [2]time.Duration{2 * time.Second, 6 * time.Second}, [2]time.Duration{ms, 4 * time.Second})
	p.quickest, p.slowest = slow[0], slow[1]
	for range pick(d, 0, 0, 1, 3) {
		p.halts = append(p.halts, d.span(0, time.Minute))
	}
	for range pick(d, 0, 0, 1, 1, 4) {
		p.drops = append(p.drops, d.span(100*ms, 20*time.Second))
	}
	p.drawJobs(d)
	return p
}

// drawJobs draws bursts and trickles.
func (p *plan) drawJobs(d dice) {
	var (
		bodies   = pick(d, 0, 0.3, 1)
		slow     = pick(d, 0, 0.2, 0.7) // part of the bodies that take time
		stuck    = pick(d, 0, 0, 0.3)   // part of those that get stuck
		ends     = pick(d, 0, 0.1, 0.4)
		poisoned = pick(d, 0, 0, 0.02, 0.1)
		hangs    = pick(d, 0, 0, 0.1, 0.3)
		// Where the connections are few, others wait for those of what never
		// ends, and where only answers count, for its slots.
		forever = p.maxConns == 0 && p.transit > 0 && d.chance(0.5)
		at      = time.Duration(0)
	)
	for group := range 1 + d.IntN(5) {
		at += d.span(0, 15*time.Second) * time.Duration(min(group, 1))
		apart := pick(d, 5*ms, 5*ms, 500*ms, 3*time.Second)
		for range pick(d, 1, 5, 20, 30) {
			j := &job{n: len(p.jobs), at: at + d.span(0, ms), kind: noBody, stuckAt: -1}
			at += d.span(0, apart)
			j.poisoned = d.chance(poisoned)
			j.hangs = d.chance(hangs)
			j.unread = d.chance(0.05)
			if d.chance(bodies) {
				p.drawBody(d, j, slow, stuck)
			}
			if d.chance(ends) || j.endless() && !forever {
				switch within := d.span(ms, 40*time.Second); d.IntN(4) {
				case 0, 1:
					j.cancel = within
				case 2:
					j.deadline = within
				case 3:
					j.canceled = within
				}
			}
			p.jobs = append(p.jobs, j)
		}
	}
}

func (p *plan) drawBody(d dice, j *job, slow, stuck float64) {
	j.kind = pick(d, inMemory, inMemory, rewindable, sameObject, failingGet, plainReader, plainReader, beyondReplay)
	size := pick(d, 1+d.IntN(4000), 1+d.IntN(60_000), 70_000+d.IntN(100_000))
	if j.kind == beyondReplay {
		size = p.replay%(1<<20) + 1 + d.IntN(100_000) // a MiB would cost too much time
	}
	j.known = j.kind == inMemory || d.chance(0.5)
	j.data = letters(d, size)
	if j.kind != inMemory && d.chance(slow) {
		j.pieces = 1 + d.IntN(4)
		j.every = d.span(ms, 1500*ms)
		if d.chance(stuck) && j.kind != sameObject { // which Close does not end
			j.stuckAt = d.IntN(size)
		}
	}
}

// letters returns n letters. No part of them looks like the head of a request,
// and no two parts are likely to be alike.
func letters(d dice, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(d.Uint32()%26)
	}
	return b
}

// A form is a way to throttle.
type form struct {
	bare       bool   // no Clarifai status, as of a gateway: a bare 429
	status     int    // of HTTP
	code       string // in JSON
	retryAfter string // "": none
	long       bool   // more than is read of it
}

func newForm(d dice) form {
	f := form{
		status:     pick(d, 429, 429, 429, 403, 503, 200),
		code:       pick(d, `"CONN_THROTTLED"`, `11005`, `"11005"`),
		retryAfter: pick(d, "", "", "0", "1", "7"),
	}
	if f.bare = d.chance(0.25); f.bare {
		f.status = 429
	}
	f.long = f.status != 200 && d.chance(0.1)
	return f
}

// A fate is what the server does to one arrival.
type fate struct {
	what   string
	after  time.Duration // it takes so long
	size   int           // of the response's body
	bytes  int           // of the response, after which the connection is reset
	unread bool          // it answers without reading the request's body
	form   form
}

const (
	serves      = "serves"
	streams     = "streams" // its response takes some seconds
	cuts        = "cuts"    // resets the connection amid the response
	aborts      = "aborts"  // resets the stream, or closes the connection, instead of an answer
	throttlesIt = "throttles"
	hangs       = "hangs"
)

// fate returns what happens to the k-th arrival of j.
func (p *plan) fate(j *job, k int) fate {
	d := roll(p.seed, "fate", j.n, k)
	f := fate{
		what:   serves,
		after:  d.span(p.quickest, p.slowest),
		size:   pick(d, 0, 100, 100, 5000, 100_000),
		bytes:  pick(d, 0, 5, 40, 200, 2000),
		unread: d.chance(0.1),
		form:   p.form,
	}
	if p.mixed {
		f.form = newForm(d)
	}
	switch {
	case j.poisoned:
		f.what, f.after, f.form = throttlesIt, d.span(0, 50*ms), form{bare: true, status: http.StatusTooManyRequests}
	case j.hangs:
		f.what, f.unread = hangs, false // what is unread would hold up others on HTTP/2
	case d.chance(p.throttles):
		f.what = throttlesIt
	case d.chance(p.faults):
		f.what = pick(d, aborts, aborts, cuts, streams)
		f.after = d.span(0, f.after)
		f.size = max(f.size, 10) // of a stream, whose end is not to be seen before it comes
	}
	return f
}

// String is the plan without its jobs.
func (p *plan) String() string {
	q := *p
	q.jobs = nil
	return fmt.Sprintf("%+v, %d jobs", struct{ plan }{q}.plan.fields(), len(p.jobs))
}

// fields is a plan that has no String method.
func (p plan) fields() any {
	type fields plan
	return fields(p)
}
