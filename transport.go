package clarifaihttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"example.com/clarifaihttp/internal/replay"
)

const (
	defaultMaxRetries   = 10
	defaultReplayBuffer = 1 << 20

	// A request of at most so many bytes fits the buffers of a socket, so that
	// being written means being on its way.
	maxBuffered = 64 << 10

	// An answer that is replaced by a retry is read up to these bounds, so that
	// its connection is used again and it can be handed back after all.
	maxKept    = 64 << 10
	keepWithin = time.Second

	// An upload that goes on when its throttle has come is given so long to end.
	uploadEndsWithin = time.Second

	maxLoggedDetails = 256
)

// A Transport is an [http.RoundTripper] that keeps the requests sent through
// it within a rate limit, and sends those again that the server throttled. It
// is safe for concurrent use.
//
// An error is one of the base's, as it came; the cause of the request's
// context, if that ended a wait; a [*WaitError], if the deadline is too early;
// or one of the [Limiter]'s, wrapped.
type Transport struct {
	base        http.RoundTripper
	throttleFor func(*http.Request) *Throttle
	maxRetries  int
	maxReplay   int
	logger      *slog.Logger // nil: slog.Default()
	loop        retryablehttp.Client
}

var _ http.RoundTripper = (*Transport)(nil)

// An Option sets up a [Transport].
type Option func(*Transport)

// NewTransport returns a Transport over base: create one per account and share
// it; each Transport without [WithThrottle] counts for itself, every host that
// it is used for included, so that one made for each call limits nothing.
//
// A nil base is [http.DefaultTransport] as it is now, so that
// http.DefaultTransport = NewTransport(nil) does not recurse. An invalid option
// panics.
func NewTransport(base http.RoundTripper, opts ...Option) *Transport {
	if base == nil {
		base = http.DefaultTransport
	}
	t := &Transport{base: base, maxRetries: defaultMaxRetries, maxReplay: defaultReplayBuffer}
	for _, opt := range opts {
		if opt == nil {
			panic("clarifaihttp: NewTransport: nil Option")
		}
		opt(t)
	}
	if t.throttleFor == nil {
		WithThrottle(new(Throttle))(t)
	}
	t.loop = retryablehttp.Client{
		HTTPClient: &http.Client{Transport: shell{}},
		RetryMax:   t.maxRetries,
		CheckRetry: checkCall,
		// The Throttle alone waits.
		Backoff: func(_, _ time.Duration, _ int, _ *http.Response) time.Duration { return 0 },
	}
	return t
}

// WithThrottle has all requests kept within the limit of th, which several
// Transports may share. The default is a Throttle of the Transport's own. Nil,
// or a th with invalid fields, panics.
func WithThrottle(th *Throttle) Option {
	if th == nil {
		panic("clarifaihttp: WithThrottle: nil Throttle")
	}
	th.Stats() // panics if th is invalid
	return WithThrottleFunc(func(*http.Request) *Throttle { return th })
}

// WithThrottleFunc chooses the Throttle for each request, for several accounts
// or hosts. A request for which f returns nil passes untouched. f must be safe
// for concurrent use and must not change the request. Nil panics, and so does
// a Throttle with invalid fields when f first returns it. The last of
// WithThrottle and WithThrottleFunc counts.
func WithThrottleFunc(f func(*http.Request) *Throttle) Option {
	if f == nil {
		panic("clarifaihttp: WithThrottleFunc: nil function")
	}
	return func(t *Transport) { t.throttleFor = f }
}

// WithMaxRetries bounds how often one request is sent again after throttles.
// The default is 10; zero means never. A throttle after that is handed back. A
// negative n panics.
func WithMaxRetries(n int) Option {
	if n < 0 {
		panic(fmt.Sprintf("clarifaihttp: WithMaxRetries: %d is negative", n))
	}
	return func(t *Transport) { t.maxRetries = n }
}

// WithReplayBuffer bounds, in bytes, what is kept of a request body that has no
// GetBody, while it is sent, so that it can be sent again. The default is
// 1 MiB; zero means that nothing is kept. When a longer one is throttled, the
// throttle is handed back. A negative n panics.
func WithReplayBuffer(n int) Option {
	if n < 0 {
		panic(fmt.Sprintf("clarifaihttp: WithReplayBuffer: %d is negative", n))
	}
	return func(t *Transport) { t.maxReplay = n }
}

// WithLogger has pauses logged to l: one line at level Warn when a pause begins,
// with the attributes host, code, request_id, details (as the server words them)
// and wait, and one at level Info, with host, when the first request after it
// was answered otherwise. The default is [slog.Default] at that time. Nil
// panics; slog.DiscardHandler silences it.
func WithLogger(l *slog.Logger) Option {
	if l == nil {
		panic("clarifaihttp: WithLogger: nil Logger")
	}
	return func(t *Transport) { t.logger = l }
}

// CloseIdleConnections closes the base's idle connections, if it can.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// RoundTrip sends req when its Throttle lets it go, and again if it was
// throttled and can be sent again. It implements [http.RoundTripper].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	taken := false
	defer func() {
		if !taken && req.Body != nil {
			req.Body.Close()
		}
	}()
	if req.URL == nil {
		return nil, errors.New("clarifaihttp: nil Request.URL")
	}
	throttle := t.throttleFor(req)
	taken = true
	if throttle == nil {
		return t.base.RoundTrip(req)
	}
	c := &call{Context: req.Context(), t: t, req: req, throttle: throttle}
	return c.do()
}

// A call is one RoundTrip. It is the context of what retryablehttp's loop sees
// instead of the caller's request: a shell, in which there is nothing to
// redirect, wrap, fill, close or drain.
type call struct {
	context.Context // the caller's

	t        *Transport
	req      *http.Request // the caller's: never changed
	throttle *Throttle
	source   *replay.Source // of the next attempt's body; nil: no body

	attempts int
	over     bool // no attempt will follow
	ticket   *ticket
	resp     *http.Response // outcome of the latest attempt
	err      error

	first wire
}

// The shell; nobody writes to it.
var (
	shellRequest = &http.Request{
		Method: http.MethodGet,
		URL:    &url.URL{Scheme: "http", Host: "shell.invalid"},
		Header: http.Header{},
	}
	shellResponse = &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}
)

// shell is the transport of the loop's client. It is no
// CloseIdleConnections-er: the client would close other calls' connections.
type shell struct{}

func (shell) RoundTrip(req *http.Request) (*http.Response, error) {
	req.Context().(*call).attempt()
	return shellResponse, nil
}

// checkCall is the loop's CheckRetry.
func checkCall(ctx context.Context, _ *http.Response, _ error) (bool, error) {
	return ctx.(*call).again(), nil
}

// do runs the loop and returns the outcome of the last attempt.
func (c *call) do() (*http.Response, error) {
	if c.hasBody() {
		c.source = replay.New(c.req.Body, c.replayable())
		defer func() { c.source.Finish() }() // the latest
	}
	returned := false
	defer func() {
		if !returned && c.resp != nil { // a logger or GetBody panicked
			c.resp.Body.Close()
		}
	}()
	_, err := c.t.loop.Do(&retryablehttp.Request{Request: shellRequest.WithContext(c)})
	returned = true
	if err != nil { // the context ended between two attempts
		return nil, context.Cause(c.Context)
	}
	return c.resp, c.err
}

// replayable returns how much of the body is to be kept while it is sent.
func (c *call) replayable() int {
	if c.req.GetBody != nil || c.req.ContentLength > int64(c.t.maxReplay) || c.t.maxRetries == 0 {
		return 0
	}
	return c.t.maxReplay
}

// errPanic stands for the outcome of an attempt until there is one.
var errPanic = errors.New("clarifaihttp: base panicked")

// canceled returns Request.Cancel, which http.Client still sets for its Timeout.
func (c *call) canceled() <-chan struct{} {
	//lint:ignore SA1019 it works as long as net/http has it
	return c.req.Cancel
}

// small reports whether the request fits the buffers of a socket.
func (c *call) small() bool {
	return !c.hasBody() || 0 < c.req.ContentLength && c.req.ContentLength <= maxBuffered
}

func (c *call) hasBody() bool { return c.req.Body != nil && c.req.Body != http.NoBody }

// attempt waits for its turn and sends the request once.
func (c *call) attempt() {
	tk := &ticket{rank: newcomers}
	if c.attempts > 0 {
		tk.rank = retries
	}
	tk.deadline, _ = c.Deadline()
	if err := c.throttle.start(c.Context, c.canceled(), tk); err != nil {
		c.over = true
		if _, late := errors.AsType[WaitError](err); !late || c.attempts == 0 {
			c.resp, c.err = nil, err
		}
		return
	}
	c.attempts++

	w := &c.first
	if c.attempts > 1 {
		w = new(wire) // the hooks of the one before may still be running
	}
	ctx := w.trace(c, tk)
	req := c.req.WithContext(ctx)
	var body io.Closer = http.NoBody
	if c.source != nil {
		attempt := c.source.Attempt()
		req.Body, body = attempt, attempt
	}

	var resp *http.Response
	err := errPanic
	defer func() {
		c.ticket = w.end()
		if err == nil {
			c.throttle.answered(c.ticket)
			return
		}
		c.throttle.failed(c.ticket, w.sent())
		body.Close()
		if resp != nil && resp.Body != nil {
			resp.Body.Close()
		}
	}()
	resp, err = c.t.base.RoundTrip(req)
	if err == nil {
		err = c.check(resp)
	}
	if err != nil {
		c.resp, c.err = nil, err
		return
	}
	// A base that sent something else, as one that follows redirects does, says
	// so here.
	if r := resp.Request; r == nil || r.URL == req.URL {
		resp.Request = c.req
	}
	c.resp, c.err = resp, nil
}

// check holds a response against what http.Client wants of a RoundTripper.
func (c *call) check(resp *http.Response) error {
	switch {
	case resp == nil:
		return fmt.Errorf("clarifaihttp: base %T returned a nil *Response with a nil error", c.t.base)
	case resp.Body != nil:
	case resp.ContentLength > 0 && c.req.Method != http.MethodHead:
		return fmt.Errorf("clarifaihttp: base %T returned a *Response with content length %d but a nil Body", c.t.base, resp.ContentLength)
	default:
		resp.Body = http.NoBody
	}
	return nil
}

// again decides whether the attempt is followed by another one, while the
// response is whole. If so, it gets what that one needs.
func (c *call) again() bool {
	if c.over || c.err != nil {
		return false
	}
	status, throttled := Detect(c.resp)
	if !throttled {
		if c.throttle.served(c.ticket) {
			c.log().InfoContext(c.Context, "clarifaihttp: throttle is over", "host", c.req.URL.Host)
		}
		return false
	}

	var v verdict
	v.retryAfter, v.asked = retryAfter(c.resp.Header, time.Now())
	v.limit, _ = limitOf(status.Details)
	until, began := c.throttle.throttled(c.ticket, v)
	if began {
		c.log().WarnContext(c.Context, "clarifaihttp: throttled, pausing all requests",
			"host", c.req.URL.Host, "code", status.Code, "request_id", status.RequestID,
			"details", status.Details[:min(len(status.Details), maxLoggedDetails)], "wait", time.Until(until).Round(time.Millisecond))
	}
	if c.attempts > c.t.maxRetries || c.throttle.absurd(v) || c.throttle.tooLate(c.Context) || !c.rewind() {
		return false
	}
	c.keep()
	return true
}

func (c *call) log() *slog.Logger {
	if c.t.logger == nil {
		return slog.Default()
	}
	return c.t.logger
}

// rewind gets the body for the next attempt, and reports whether it could.
func (c *call) rewind() bool {
	switch {
	case c.source == nil:
		return true
	case c.req.GetBody == nil:
		return c.source.Again(c.Context, uploadEndsWithin)
	}
	body, err := c.req.GetBody()
	if err != nil || body == nil {
		return false
	}
	c.source.Finish()
	c.source = replay.New(body, 0)
	return true
}

// keep reads the response into memory, which frees its connection for others,
// and leaves it to be handed back, should the retry be refused.
func (c *call) keep() {
	body := c.resp.Body
	stalled := time.AfterFunc(keepWithin, func() { body.Close() })
	b, err := io.ReadAll(io.LimitReader(body, maxKept+1))
	if stalled.Stop() {
		body.Close()
	}
	switch {
	case len(b) > maxKept:
		b, err = b[:maxKept], io.ErrUnexpectedEOF
	case err == nil:
		err = io.EOF
	}
	c.resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(b), endsWith{err}))
}

type endsWith struct{ err error }

func (f endsWith) Read([]byte) (int, error) { return 0, f.err }

// A wire follows one attempt by its httptrace hooks: these say when its bytes
// can be on their way, and when net/http sends it again by itself, each time
// as a wire request of its own. Hooks run on other goroutines, and even after
// the attempt has ended.
type wire struct {
	call  *call
	hooks httptrace.ClientTrace

	ticket atomic.Pointer[ticket] // of the latest wire request
	asked  atomic.Bool            // for a connection
	got    atomic.Bool            // a connection
	resent atomic.Bool            // on another one
	ended  atomic.Bool
}

// trace returns the context for c's attempt.
func (w *wire) trace(c *call, tk *ticket) context.Context {
	w.call = c
	w.ticket.Store(tk)
	w.hooks = httptrace.ClientTrace{GetConn: w.getConn, GotConn: w.gotConn, WroteRequest: w.wroteRequest}
	return httptrace.WithClientTrace(c.Context, &w.hooks)
}

func (w *wire) getConn(string) { w.asked.Store(true) }

// gotConn comes before each wire request. Its first is the one that was waited
// for; the next ones wait here.
func (w *wire) gotConn(httptrace.GotConnInfo) {
	if !w.got.Swap(true) {
		return
	}
	w.resent.Store(true)
	earlier := w.ticket.Load()
	c := w.call
	tk := c.throttle.resent(c.Context, c.canceled(), earlier)
	if other := w.ticket.Swap(tk); other != earlier {
		c.throttle.failed(other, true) // two at once
	}
	if w.ended.Load() {
		c.throttle.failed(tk, true)
	}
}

// wroteRequest counts for the only wire request. Once there is another one,
// it cannot be told which of them was written.
func (w *wire) wroteRequest(info httptrace.WroteRequestInfo) {
	tk := w.ticket.Load()
	if info.Err == nil && !w.resent.Load() {
		w.call.throttle.written(tk, w.call.small())
	}
}

// sent reports whether bytes may have left. A base that has no hooks says
// nothing.
func (w *wire) sent() bool { return w.got.Load() || !w.asked.Load() }

// end ends the attempt and returns its latest ticket.
func (w *wire) end() *ticket {
	w.ended.Store(true)
	return w.ticket.Load()
}
