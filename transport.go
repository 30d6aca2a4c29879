package clarifaihttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"example.com/clarifaihttp/internal/arrival"
	"example.com/clarifaihttp/internal/gate"
	"example.com/clarifaihttp/internal/priority"
	"example.com/clarifaihttp/internal/replay"
	"example.com/clarifaihttp/internal/wire"
)

const (
	defaultMaxRetries   = 10
	defaultReplayBuffer = 1 << 20

	// A body of at most so many bytes that is in memory is handed on as it is, so
	// that it leaves in one write with the header.
	maxInMemory = 64 << 10

	maxLoggedDetails = 256
)

// A Transport is an [http.RoundTripper] that keeps the requests sent through it
// within the rate limit of a [Throttle], and sends throttled requests again. Use
// [NewTransport] to create one. It is safe for concurrent use.
//
// Its errors are those of the base, as they come; the cause of the request's
// context, if that ends a wait; a [*WaitError], if the deadline is too early; and
// those of the [Limiter], wrapped.
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

// NewTransport returns a Transport over base. Create one per account and share
// it: each Transport without [WithThrottle] counts on its own, all hosts that it is
// used for together. Do not create one per call.
//
// A nil base means [http.DefaultTransport] as it is now, so that
// http.DefaultTransport = NewTransport(nil) does not recurse. A Transport over a
// Transport with the same Throttle counts a request once. An invalid option
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

// WithThrottle keeps all requests within the limit of th, which several Transports
// may share. The default is a Throttle of the Transport's own. A nil th panics, and
// one with an invalid field does.
func WithThrottle(th *Throttle) Option {
	if th == nil {
		panic("clarifaihttp: WithThrottle: nil Throttle")
	}
	th.Stats() // panics if th is invalid
	return WithThrottleFunc(func(*http.Request) *Throttle { return th })
}

// WithThrottleFunc calls f for each request, to choose among several accounts or
// hosts. A request for which f returns nil passes untouched. f must be safe for
// concurrent use and must not change the request. A nil f panics, and a Throttle
// with an invalid field does when f first returns it. The last of WithThrottle and
// WithThrottleFunc counts.
func WithThrottleFunc(f func(*http.Request) *Throttle) Option {
	if f == nil {
		panic("clarifaihttp: WithThrottleFunc: nil function")
	}
	return func(t *Transport) { t.throttleFor = f }
}

// WithMaxRetries bounds how often one request is sent again after throttled
// responses. The default is 10; zero means never. After that, the throttled
// response is handed back. A negative n panics.
func WithMaxRetries(n int) Option {
	if n < 0 {
		panic(fmt.Sprintf("clarifaihttp: WithMaxRetries: %d is negative", n))
	}
	return func(t *Transport) { t.maxRetries = n }
}

// WithReplayBuffer keeps up to n bytes of a request body without GetBody while it
// is sent, so that it can be sent again. The default is 1 MiB; zero means that
// nothing is kept. If a request with a longer body is throttled, the caller gets the
// throttled response. A negative n panics.
func WithReplayBuffer(n int) Option {
	if n < 0 {
		panic(fmt.Sprintf("clarifaihttp: WithReplayBuffer: %d is negative", n))
	}
	return func(t *Transport) { t.maxReplay = n }
}

// WithLogger logs to l what happens to the account. The default is
// [slog.Default] at that time. A slog.DiscardHandler silences it. A nil l panics. No
// line has a header, body, query or token.
//
// At level Warn: a pause begins (attributes host, code, request_id, details in the
// server's words, wait); the limit is lowered to what the server names (host,
// limit); a caller gets a throttled response (host, code, request_id, reason). At
// level Info: a pause is over (host); the limit is restored (host, limit).
//
// To tell several Throttles apart, add an attribute: l.With("account", "a").
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
	if throttle == nil {
		taken = true
		return t.base.RoundTrip(req)
	}
	g := throttle.ready()
	taken = true
	if outer := wire.Outer(req.Context(), g); outer != nil && outer.Enter() {
		return t.pass(req, g, outer)
	}
	c := &call{Context: wire.Beside(req.Context()), t: t, req: req, gate: g, watch: &throttle.watch}
	return c.do()
}

// pass hands on a request that a Transport around this one has let go, and has
// the Throttle told of a throttled response: a client in between may try again.
func (t *Transport) pass(req *http.Request, g *gate.Gate, outer *wire.Marker) (*http.Response, error) {
	inner := req.WithContext(outer.Inner(req.Context()))
	resp, err := (*http.Response)(nil), errPanic
	func() {
		defer func() { outer.Leave(err == nil) }()
		resp, err = t.base.RoundTrip(inner)
	}()
	if err != nil || resp == nil || resp.Body == nil {
		return resp, err
	}
	if resp.Request == inner {
		resp.Request = req
	}
	if status, throttled := Detect(resp); throttled {
		t.logs(req, status, g.Throttled(outer.Ticket(), verdictOf(resp, status)))
	}
	return resp, nil
}

// A call is one RoundTrip. It is the context of what retryablehttp's loop sees
// instead of the caller's request: a shell, in which there is nothing to
// redirect, wrap, fill, close or drain.
type call struct {
	context.Context // the caller's

	t      *Transport
	req    *http.Request // the caller's: never changed
	gate   *gate.Gate
	watch  *arrival.Watch
	source *replay.Source // of the next attempt's body; nil: no body

	attempts int
	bare     int  // 429s without a Clarifai status
	over     bool // no attempt will follow
	ticket   *gate.Ticket
	resp     *http.Response // outcome of the latest attempt
	err      error
	status   Status // of resp, if that is a throttled response

	shell http.Request
}

// An attempt is one sending of a call's request. Each has one of its own: the
// hooks of the one before may still be running.
type attempt struct {
	wire wire.Wire
	req  http.Request
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
	deadline, _ := c.Deadline()
	c.ticket = gate.NewTicket(priority.Urgency(c.req.Header["Priority"]), deadline)
	c.shell = *shellRequest.WithContext(c)
	_, err := c.t.loop.Do(&retryablehttp.Request{Request: &c.shell})
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

func (c *call) hasBody() bool { return c.req.Body != nil && c.req.Body != http.NoBody }

// attempt waits for its turn and sends the request once. It does so anew where
// it was let go, but found a pause or no slot any more when it had a connection,
// and could not wait there.
func (c *call) attempt() {
	for {
		if err := c.gate.Start(c.Context, c.canceled(), c.ticket); err != nil {
			c.refused(err)
			return
		}
		if !c.send() {
			return
		}
		c.ticket = c.ticket.Requeued()
	}
}

// refused notes why the gate refused an attempt. A retry that is too late hands
// back the throttled response.
func (c *call) refused(err error) {
	c.over = true
	if late, ok := errors.AsType[*gate.Refusal](err); ok {
		err = &WaitError{late.Wait}
	}
	if _, ok := errors.AsType[WaitError](err); ok { // perhaps the Limiter's
		if c.attempts > 0 {
			c.handsBack(tooLate)
			return
		}
		c.gate.Refused()
	}
	c.resp, c.err = nil, err
}

// send sends the request once. It reports whether it must be sent anew, for
// nothing of it was sent.
func (c *call) send() (anew bool) {
	a := new(attempt)
	w := &a.wire
	w.Context, w.Gate, w.Watch, w.Cancel = c.Context, c.gate, c.watch, c.canceled()
	w.Length = c.req.ContentLength
	w.Dials, w.PlainIsHTTP1 = c.t.connections()
	w.MayResend = !c.hasBody()
	a.req = *c.req.WithContext(w.Trace(c.ticket))
	var body io.Closer = http.NoBody
	if c.hasBody() {
		body = c.body(a)
	} else {
		w.Length = 0
	}

	var resp *http.Response
	err := errPanic
	defer func() {
		var refused error
		c.ticket, refused = w.End(err == nil)
		if err == nil {
			return
		}
		body.Close()
		if resp != nil && resp.Body != nil {
			resp.Body.Close()
		}
		anew = errors.Is(refused, gate.ErrHeldTooLong) && c.whole(a)
		switch {
		case anew: // an earlier throttled response may have to be handed back
		case refused != nil:
			c.resp, c.err = nil, refused
		default:
			c.resp, c.err = nil, err
		}
	}()
	resp, err = c.t.base.RoundTrip(&a.req)
	if err == nil {
		err = c.check(resp)
	}
	if err != nil {
		return
	}
	// A base that sent something else, as one that follows redirects does, says
	// so here.
	if r := resp.Request; r == nil || r.URL == a.req.URL {
		resp.Request = c.req
	}
	c.resp, c.err = resp, nil
	return false
}

// whole reports whether the body is there from its first byte on, after a failed.
func (c *call) whole(a *attempt) bool {
	return c.source == nil || a.wire.Body != nil && c.source.Untouched() || c.rewind()
}

// body gives a its body, which is to be closed if it fails.
func (c *call) body(a *attempt) io.Closer {
	w := &a.wire
	if c.req.ContentLength == 0 {
		w.Length = -1 // unknown
	}
	if c.req.GetBody != nil && w.Length > 0 && w.Length <= maxInMemory {
		if body := c.source.InMemory(c.req.GetBody); body != nil {
			a.req.Body, a.req.GetBody = body, w.GetBody(c.req.GetBody)
			return body
		}
	}
	source := c.source
	w.Body = source.Attempt(w.Length, w)
	a.req.Body = w.Body
	if c.req.GetBody != nil {
		// For what net/http sends again by itself.
		a.req.GetBody = w.GetBody(func() (io.ReadCloser, error) {
			body, err := c.req.GetBody()
			if err != nil || body == nil {
				return body, err
			}
			return source.Anew(body, w.Length, w), nil
		})
	} else if c.replayable() > 0 {
		// An HTTP/2 server that leaves ignores the streams it has not processed.
		a.req.GetBody = w.GetBody(func() (io.ReadCloser, error) { return source.Resend(c.Context, w.Length, w) })
	}
	return w.Body
}

// connections tells what is known of the base's: whether a request that waits
// for one waits for a dial, and whether one without TLS is for HTTP/1 alone.
func (t *Transport) connections() (dials, plainIsHTTP1 bool) {
	base := t.base
	for {
		inner, ok := base.(*Transport)
		if !ok {
			break
		}
		base = inner.base
	}
	h, ok := base.(*http.Transport)
	if !ok {
		return false, false
	}
	return h.MaxConnsPerHost == 0, h.Protocols == nil || !h.Protocols.UnencryptedHTTP2()
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
	c.attempts++
	status, throttled, known := c.detect()
	if !known {
		return false
	}
	v := c.judge(status, throttled)
	if !throttled {
		return false
	}
	if why := c.handBack(v); why != "" {
		c.handsBack(why)
		return false
	}
	replay.Keep(c.resp) // this frees its connection for others
	return true
}

// judge tells the gate, and logs, whether the response is throttled. It returns
// what a throttled response says.
func (c *call) judge(status Status, throttled bool) (v gate.Verdict) {
	if !throttled {
		c.t.logs(c.req, status, c.gate.Served(c.ticket))
		return v
	}
	c.status = status
	v = verdictOf(c.resp, status)
	c.t.logs(c.req, status, c.gate.Throttled(c.ticket, v))
	return v
}

// handBack returns why a throttled response is the caller's; if it is not, the
// next attempt has what it needs.
func (c *call) handBack(v gate.Verdict) (why string) {
	var rest time.Duration
	if v.Bare {
		c.bare++
		rest = c.gate.Rest(v, c.bare)
	}
	next := c.ticket.Retry(rest)
	switch {
	case c.attempts > c.t.maxRetries:
		return "retries spent"
	case c.gate.Absurd(v):
		return "Retry-After too long"
	case c.Err() != nil, c.gate.TooLate(next):
		return tooLate
	case !c.rewind():
		return "body cannot be sent again"
	}
	c.ticket = next
	return ""
}

const tooLate = "deadline"

// handsBack counts and logs that the caller gets a throttled response.
func (c *call) handsBack(why string) {
	c.gate.HandedBack()
	c.t.log().WarnContext(c.Context, "clarifaihttp: throttled response handed back",
		"host", c.req.URL.Host, "code", c.status.Code, "request_id", c.status.RequestID, "reason", why)
}

// logs logs what has happened to the account.
func (t *Transport) logs(req *http.Request, status Status, e gate.Events) {
	if e == (gate.Events{Until: e.Until}) {
		return
	}
	log, ctx, host := t.log(), req.Context(), slog.String("host", req.URL.Host)
	if e.Restored > 0 {
		log.InfoContext(ctx, "clarifaihttp: limit restored", host, "limit", e.Restored)
	}
	if e.Lowered > 0 {
		log.WarnContext(ctx, "clarifaihttp: limit lowered to what the server names", host, "limit", e.Lowered)
	}
	if e.Recovered {
		log.InfoContext(ctx, "clarifaihttp: pause is over", host)
	}
	if e.Began {
		log.WarnContext(ctx, "clarifaihttp: throttled, pausing all requests",
			host, "code", status.Code, "request_id", status.RequestID,
			"details", status.Details[:min(len(status.Details), maxLoggedDetails)], "wait", time.Until(e.Until).Round(time.Millisecond))
	}
}

func (t *Transport) log() *slog.Logger {
	if t.logger == nil {
		return slog.Default()
	}
	return t.logger
}

// rewind gets the body for the next attempt, and reports whether it could.
func (c *call) rewind() bool {
	switch {
	case c.source == nil:
		return true
	case c.req.GetBody == nil:
		return c.source.Again(c.Context)
	case !c.source.Quiet(c.Context): // GetBody may return the same object again
		return false
	}
	body, err := c.req.GetBody()
	if err != nil || body == nil {
		return false
	}
	c.source.Finish()
	c.source = replay.New(body, 0)
	return true
}
