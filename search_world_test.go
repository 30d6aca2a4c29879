package clarifaihttp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// A world is one run of a plan: the server, the network and the base, with
// ours over it or without, and a record of all that happens.
type world struct {
	*plan
	compare *world // the bare run, which this one is held against; nil: this is the bare one
	begin   time.Time
	account throttletest.Handler
	base    *http.Transport
	accepts chan net.Conn
	over    chan struct{} // closed when all is to end
	dials   atomic.Int64

	// Of ours.
	throttle *clarifaihttp.Throttle
	pool     *tokenPool

	mu           sync.Mutex // guards all below
	ended        bool       // the bubble is over, and with it virtual time
	events       []event
	failures     []string
	links        map[*link]bool
	arrivals     [][]*arrival // of each job, by its handler
	heads        []time.Time  // of requests, as they come to the server
	ends         []time.Time  // of request bodies, as the handler has read them
	breaks       []time.Time  // when connections or dials broke
	answers      []*answer
	lateArrivals []string // after their callers had ended them
	uploads      []*upload
	pauses       int
	paused       time.Time     // begin of the latest pause
	pausedUntil  time.Time     // its end, as far as was seen
	tooLong      time.Duration // the longest that nothing explains
	throttled    int           // responses CONN_THROTTLED
	bare         int           // bare 429s
}

type event struct {
	at   time.Duration
	what string
}

// An arrival is what the handler knows of one wire request.
type arrival struct {
	k         int
	at        time.Time
	fate      string
	status    int // of its answer; 0: none was begun
	throttled bool
	over      bool      // nothing more will be written
	end       time.Time // since when
	answered  bool      // completely
}

func newBare(p *plan) *world { return &world{plan: p} }

func newOurs(p *plan, bare *world) *world { return &world{plan: p, compare: bare} }

// start sets w up. What it makes belongs to a bubble.
func (w *world) start() {
	w.begin = time.Now()
	w.account = throttletest.Handler{Limit: w.limit, Window: w.window, Halt: w.halt, RestartHalt: w.restarts, Algorithm: w.algorithm}
	w.accepts = make(chan net.Conn)
	w.over = make(chan struct{})
	w.links = make(map[*link]bool)
	w.arrivals = make([][]*arrival, len(w.jobs))
	w.answers = make([]*answer, len(w.jobs))
	w.base = &http.Transport{
		DialContext:           w.dial,
		MaxConnsPerHost:       w.maxConns,
		MaxIdleConnsPerHost:   w.maxIdle,
		IdleConnTimeout:       w.clientIdle,
		DisableKeepAlives:     w.noKeepAlives,
		ExpectContinueTimeout: time.Second,
		Protocols:             w.protocols(),
	}
	if w.isBare() {
		return
	}
	w.throttle = &clarifaihttp.Throttle{Limit: w.limit, Window: w.window, Backoff: w.backoff, MaxBackoff: maxBackoff, Transit: w.transit}
	if w.tokens > 0 {
		w.pool = newTokenPool(w.tokens, w.window)
		w.throttle.Limiter = w.pool
	}
}

func (w *world) isBare() bool { return w.compare == nil }

func (p *plan) protocols() *http.Protocols {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!p.h2)
	protocols.SetUnencryptedHTTP2(p.h2)
	return protocols
}

// transports returns what the callers use in turn.
func (w *world) roundTrippers() []http.RoundTripper {
	if w.isBare() {
		return []http.RoundTripper{w.base}
	}
	var rts []http.RoundTripper
	for range w.transports {
		var rt http.RoundTripper = w.base
		for range map[bool]int{false: 1, true: 2}[w.nested] {
			rt = clarifaihttp.NewTransport(rt, clarifaihttp.WithThrottle(w.throttle), clarifaihttp.WithMaxRetries(w.retries),
				clarifaihttp.WithReplayBuffer(w.replay), clarifaihttp.WithLogger(slog.New(warnings{w})))
		}
		rts = append(rts, rt)
	}
	return rts
}

// serve runs the server until the world is over.
func (w *world) serve() {
	srv := &http.Server{
		Handler:     w,
		IdleTimeout: w.idle,
		Protocols:   w.protocols(),
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: w.streams},
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, linkKey{}, c.(serverConn).link)
		},
	}
	for _, at := range w.halts {
		w.at(at, func() { w.note("halt"); w.account.HaltFor(0) })
	}
	for _, at := range w.drops {
		if w.h2 && w.goaway {
			w.at(at-50*ms, func() { w.note("GOAWAY on all"); w.eachLink((*link).goaway) })
		}
		w.at(at, func() { w.note("all connections are reset"); w.eachLink((*link).reset) })
	}
	go srv.Serve(w)
	go func() {
		<-w.over
		srv.Close()
	}()
}

type linkKey struct{}

// at has f called at an instant of the plan, unless the world is over.
func (w *world) at(at time.Duration, f func()) {
	go func() {
		select {
		case <-time.After(at):
			f()
		case <-w.over:
		}
	}()
}

func (w *world) eachLink(f func(*link)) {
	w.mu.Lock()
	var links []*link
	for l := range w.links {
		links = append(links, l)
	}
	w.mu.Unlock()
	for _, l := range links {
		f(l)
	}
}

// ServeHTTP deals with one arrival as the plan says.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.Header.Get("X-Job"))
	j := w.jobs[n]
	a := w.arrive(j)
	f := w.fate(j, a.k)
	if !w.account.Allow(a.at) {
		f.what, f.after = throttlesIt, 0
		if j.poisoned {
			f.form = w.form
		}
	}
	a.fate = f.what
	l := r.Context().Value(linkKey{}).(*link)
	w.note("job %d arrives as %d on link %d: %s", n, a.k, l.n, f.what)
	defer func() {
		w.mu.Lock()
		a.over, a.end = true, time.Now()
		w.mu.Unlock()
	}()
	if !f.unread {
		got, err := io.ReadAll(r.Body)
		if err != nil {
			w.note("job %d, arrival %d: body ends after %d bytes, %v", n, a.k, len(got), err)
			panic(http.ErrAbortHandler)
		}
		if !bytes.Equal(got, j.data) {
			w.fail("job %d, arrival %d: a body came as whole that is not: %d bytes, want %d", n, a.k, len(got), len(j.data))
		}
		w.mu.Lock()
		w.ends = append(w.ends, time.Now())
		w.mu.Unlock()
	}
	if !w.pass(r, f.after) {
		panic(http.ErrAbortHandler)
	}

	status, text := http.StatusOK, strings.Repeat("r", f.size)
	switch f.what {
	case hangs:
		w.pass(r, 2*lateAt)
		panic(http.ErrAbortHandler)
	case aborts:
		w.broken()
		panic(http.ErrAbortHandler)
	case cuts:
		l.resetAfter(f.bytes)
	case throttlesIt:
		status, text = f.form.status, f.form.text(w.limit)
		if f.form.retryAfter != "" {
			rw.Header().Set("Retry-After", f.form.retryAfter)
		}
	}
	w.mu.Lock()
	a.status, a.throttled = status, f.what == throttlesIt
	if a.throttled && f.form.bare {
		w.bare++
	} else if a.throttled {
		w.throttled++
	}
	w.mu.Unlock()
	rw.Header().Set("X-Arrival", strconv.Itoa(a.k))
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Content-Length", strconv.Itoa(len(text)))
	rw.WriteHeader(status)
	if half := len(text) / 2; f.what == streams {
		io.WriteString(rw, text[:half])
		text = text[half:]
		http.NewResponseController(rw).Flush()
		if !w.pass(r, longestStream) {
			panic(http.ErrAbortHandler)
		}
	}
	if _, err := io.WriteString(rw, text); err == nil && f.what != cuts {
		w.mu.Lock()
		a.answered = true
		w.mu.Unlock()
	}
}

// text is the body of a throttled response.
func (f form) text(limit int) string {
	pad := ""
	if f.long {
		pad = strings.Repeat(" ", 100_000)
	}
	if f.bare {
		return "slow down" + pad
	}
	return fmt.Sprintf(`{"status":{"code":%s,"description":"Making too many requests","details":"exceeded limit of %d requests per second"}}`, f.code, limit) + pad
}

func (w *world) arrive(j *job) *arrival {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := &arrival{k: len(w.arrivals[j.n]), at: time.Now()}
	w.arrivals[j.n] = append(w.arrivals[j.n], a)
	since := time.Since(w.answers[j.n].start)
	if end := j.endsAfter(); end != 0 && since > end+w.delay+10*ms {
		w.lateArrivals = append(w.lateArrivals, fmt.Sprintf("job %d arrives %v after its caller has ended it", j.n, since-end))
	}
	return a
}

// pass lets d pass. It reports false if the request or the world ends before.
func (w *world) pass(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
	case <-w.over:
	}
	return false
}

// A tokenPool is a Limiter whose tokens come back a window after their request
// arrived.
type tokenPool struct {
	tokens chan struct{}
	window time.Duration
	excess atomic.Int64 // tokens given back that were not taken
}

func newTokenPool(n int, window time.Duration) *tokenPool {
	p := &tokenPool{tokens: make(chan struct{}, n), window: window}
	for range n {
		p.tokens <- struct{}{}
	}
	return p
}

func (p *tokenPool) Wait(ctx context.Context) error {
	select {
	case <-p.tokens:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *tokenPool) Arrived() {
	time.AfterFunc(p.window, func() {
		select {
		case p.tokens <- struct{}{}:
		default:
			p.excess.Add(1)
		}
	})
}

// warnings notes what a Transport logs.
type warnings struct{ w *world }

func (warnings) Enabled(context.Context, slog.Level) bool { return true }
func (h warnings) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h warnings) WithGroup(string) slog.Handler          { return h }

func (h warnings) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "wait" || a.Key == "limit" {
			text += " " + a.String()
		}
		return true
	})
	h.w.note("log: %s", text)
	h.w.look()
	return nil
}

// note records an event.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := time.Since(w.begin)
	if w.ended {
		at = w.events[len(w.events)-1].at
	}
	w.events = append(w.events, event{at, fmt.Sprintf(format, args...)})
}

// fail records what does not hold.
func (w *world) fail(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	w.note("FAILS: %s", s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures = append(w.failures, s)
}

// broken records that a connection or a dial broke.
func (w *world) broken() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.breaks = append(w.breaks, time.Now())
}
