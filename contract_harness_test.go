package clarifaihttp_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"example.com/clarifaihttp"
)

// The contract of a Transport: nobody can tell it from its base.
//
// A scene is a server and its caller. It is played over HTTP/1.1 and HTTP/2,
// with the bare base, with a Transport over it, and with one whose server
// throttles what comes for the first time. Each play takes notes of all that the
// caller and the server see, and the three must have the same. In a scene:
//
//	s.serve = handler              what the server does; an echo, if it is not set
//	s.request(method, path, body)  makes a request to it, with hooks of httptrace
//	s.do(req), s.roundTrip(req)    send it, with and without an http.Client, and note all that comes of it
//	s.response, s.failure, s.note  note what comes of requests that are sent otherwise
//	s.over(base)                   is another base, or a Transport over it
//
// Dates and ports are not compared, nor how often the base closes a body. Ours
// must close it once, obey the other rules of http.RoundTripper
// (contract_rules_test.go), and leave no slot and no goroutine behind.
type scene struct {
	proto       string // the only one; empty: both
	unthrottled bool   // makes no sense if the server throttles
	blind       bool   // what the server sees is up to chance
	virtual     bool   // in virtual time, over pipes: a moment matters
}

// play plays a scene and compares the notes.
func play(t *testing.T, sc scene, act func(*stage)) {
	t.Parallel()
	for _, proto := range []string{plainHTTP1, http2} {
		if sc.proto != "" && sc.proto != proto {
			continue
		}
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			if sc.virtual {
				synctest.Test(t, func(t *testing.T) { sc.playOver(t, proto, act) })
			} else {
				labeled(t, func() { sc.playOver(t, proto, act) })
			}
		})
	}
}

func (sc scene) playOver(t *testing.T, proto string, act func(*stage)) {
	bare := sc.notes(act, &stage{T: t, proto: proto})
	if len(bare) < 2 {
		t.Fatalf("nothing to compare: %v", bare)
	}
	ours := sc.notes(act, &stage{T: t, proto: proto, throttle: quick()})
	compare(t, "not throttled", bare, ours)
	if !sc.unthrottled {
		ours = sc.notes(act, &stage{T: t, proto: proto, throttle: quick(), throttling: true})
		compare(t, "throttled", bare, ours)
	}
}

// compare tells the notes that only one of the two has.
func compare(t *testing.T, when string, bare, ours []string) {
	t.Helper()
	note := func(notes []string, i int) string {
		if i < len(notes) {
			return notes[i]
		}
		return "(no more)"
	}
	for i := range max(len(bare), len(ours)) {
		if a, b := note(bare, i), note(ours, i); a != b {
			t.Errorf("%s:\nbare: %s\nours: %s", when, a, b)
		}
	}
}

// A stage is where a scene is played once.
type stage struct {
	*testing.T
	proto      string
	throttle   *clarifaihttp.Throttle // nil: the bare base
	throttling bool                   // the server throttles what comes for the first time

	serve  http.HandlerFunc
	url    string // of the server
	base   *http.Transport
	rt     http.RoundTripper // base, or a Transport over it
	client *http.Client      // with rt

	mu        sync.Mutex
	written   []string       // notes
	hooks     map[string]int // calls
	seen      []*seen        // by the server, what it throttled left out
	throttled int            // by the server
	bodies    registry
}

// notes plays the scene on s and returns what was noted.
func (sc scene) notes(act func(*stage), s *stage) []string {
	s.serve, s.hooks, s.bodies.t = echo, map[string]int{}, s.T
	var serving atomic.Int32 // Close does not wait for hijacked connections, nor for all of HTTP/2
	arrived := map[string]int{}
	srv := newServer(s.proto, sc.virtual, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Add(-1)
		s.receive(w, r, arrived)
	}))
	s.url = srv.URL
	s.base = srv.Client().Transport.(*http.Transport)
	s.rt = s.over(s.base)
	if rt, ok := s.rt.(*clarifaihttp.Transport); ok {
		s.rt = obedient{rt, s}
	}
	s.client = &http.Client{Transport: s.rt}
	func() {
		defer srv.Close()
		act(s)
	}()
	eventually(s.T, func() string {
		if n := serving.Load(); n > 0 {
			return fmt.Sprintf("the server still serves %d requests", n)
		}
		return ""
	})
	s.finish(sc.blind)
	return s.written
}

func (s *stage) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written = append(s.written, anonymous(fmt.Sprintf(format, args...)))
}

var local = regexp.MustCompile(`127\.0\.0\.1:\d+|stream ID \d+`)

// anonymous takes out what differs from server to server.
func anonymous(text string) string { return local.ReplaceAllString(text, "...") }

// over returns base, or a Transport over it.
func (s *stage) over(base http.RoundTripper, opts ...clarifaihttp.Option) http.RoundTripper {
	if s.throttle == nil {
		return base
	}
	return over(base, s.throttle, opts...)
}

// request returns a request to a path of the server, or to another URL.
func (s *stage) request(method, path string, body io.Reader) *http.Request {
	s.Helper()
	if strings.HasPrefix(path, "/") {
		path = s.url + path
	}
	req, err := http.NewRequestWithContext(s.hooked(s.Context()), method, path, body)
	if err != nil {
		s.Fatal(err)
	}
	return req
}

func (s *stage) do(req *http.Request) { s.Helper(); s.response(s.client.Do(req)) }

func (s *stage) roundTrip(req *http.Request) { s.Helper(); s.response(s.rt.RoundTrip(req)) }

// response notes an outcome.
func (s *stage) response(resp *http.Response, err error) {
	s.Helper()
	s.failure("error", err)
	if resp == nil {
		return
	}
	h := resp.Header.Clone()
	h.Del("Date")
	s.note("%s %s %v length=%d coding=%v close=%v uncompressed=%v", resp.Proto, resp.Status, h,
		resp.ContentLength, resp.TransferEncoding, resp.Close, resp.Uncompressed)
	if resp.StatusCode < 400 { // or the trailer is there early: the body was looked at
		s.note("trailer=%v", resp.Trailer)
	}
	if resp.TLS != nil {
		s.note("tls %x %q %s", resp.TLS.Version, resp.TLS.NegotiatedProtocol, resp.TLS.PeerCertificates[0].Subject)
	}
	for r := resp.Request; r != nil; r = r.Response.Request {
		s.note("from %s %s %v", r.Method, r.URL, r.Header)
		if r.Response == nil {
			break
		}
	}
	if resp.Body == nil {
		s.note("no body")
		return
	}
	if w, ok := resp.Body.(io.ReadWriter); ok {
		fmt.Fprintln(w, "knock")
		line, err := bufio.NewReader(w).ReadString('\n')
		s.note("writable body: %q %v", line, err)
	} else {
		b, err := io.ReadAll(resp.Body)
		s.note("body %d %.16x trailer=%v", len(b), sha256.Sum256(b), resp.Trailer)
		s.failure("reading", err)
		if err != nil { // what comes now is up to chance
			resp.Body.Close()
			return
		}
	}
	s.failure("close", resp.Body.Close())
	_, err = resp.Body.Read(make([]byte, 1))
	s.failure("reading after close", err)
	s.failure("second close", resp.Body.Close())
}

// failure notes an error, if it is one.
func (s *stage) failure(what string, err error) {
	for e := err; e != nil; e = errors.Unwrap(e) {
		s.note("%s: %T %s", what, e, e)
	}
	if err != nil {
		var timeout interface{ Timeout() bool }
		s.note("%s: timeout=%v deadline=%v canceled=%v", what, errors.As(err, &timeout) && timeout.Timeout(),
			errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled))
	}
}

// hooked returns ctx with the caller's hooks. Those that depend on whether a
// connection is used again are not among them.
func (s *stage) hooked(ctx context.Context) context.Context {
	hook := func(name string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hooks[name]++
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:              func(string) { hook("GetConn") },
		GotConn:              func(httptrace.GotConnInfo) { hook("GotConn") },
		WroteHeaders:         func() { hook("WroteHeaders") },
		WroteRequest:         func(httptrace.WroteRequestInfo) { hook("WroteRequest") },
		GotFirstResponseByte: func() { hook("GotFirstResponseByte") },
		Wait100Continue:      func() { hook("Wait100Continue") },
		Got100Continue:       func() { hook("Got100Continue") },
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hook(fmt.Sprintf("Got1xxResponse %d %v", code, h))
			return nil
		},
	})
}

// seen is a request as the server saw it.
type seen struct {
	head    string
	length  int
	body    hash.Hash
	trailer http.Header
}

func (r *seen) Write(p []byte) (int, error) {
	r.length += len(p)
	return r.body.Write(p)
}

// receive has s.serve serve a request, and notes what that reads. If the server
// throttles, it does so for every other request of a kind, the first included.
func (s *stage) receive(w http.ResponseWriter, r *http.Request, arrived map[string]int) {
	s.mu.Lock()
	key := r.Method + r.URL.String() + r.Referer()
	arrived[key]++
	if s.throttling && arrived[key]%2 == 1 {
		s.throttled++
		s.mu.Unlock()
		if len(r.Trailer) > 0 {
			// Go's HTTP/2 server ends the connection for trailers that come
			// after its answer.
			io.Copy(io.Discard, r.Body)
		}
		writeThrottled(w)
		return
	}
	it := &seen{body: sha256.New(), head: anonymous(fmt.Sprintf("%s %s %s %s %v length=%d coding=%v close=%v",
		r.Method, r.RequestURI, r.Proto, r.Host, r.Header, r.ContentLength, r.TransferEncoding, r.Close))}
	s.seen = append(s.seen, it)
	s.mu.Unlock()
	read := *r // the server knows its own Body
	read.Body = teeBody{io.TeeReader(r.Body, it), r.Body}
	defer func() { it.trailer = r.Trailer }()
	s.serve(w, &read)
}

// finish waits for the hooks that run late, checks what is over, and notes hooks
// and requests as if none had been throttled.
func (s *stage) finish(blind bool) {
	s.Helper()
	eventually(s.T, func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.hooks["WroteRequest"] < s.hooks["GotConn"] {
			return fmt.Sprintf("hooks %v", s.hooks)
		}
		if s.throttle != nil && s.throttle.Stats().Held > 0 {
			return fmt.Sprintf("slots are held: %+v", s.throttle.Stats())
		}
		return ""
	})
	s.bodies.checkSoon()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.throttle != nil {
		st := s.throttle.Stats()
		if asked := len(s.seen) + s.throttled; st.Waiting != 0 || st.Attempts < asked || st.Throttled < s.throttled {
			s.Errorf("%d requests arrived, %d of them throttled, but %+v", asked, s.throttled, st)
		}
	}
	if s.throttling && s.throttled == 0 && len(s.seen) > 0 {
		s.Error("nothing was throttled")
	}
	if blind {
		return
	}
	if s.proto == http2 {
		delete(s.hooks, "GetConn") // net/http asks once or twice, as it happens
	}
	for _, name := range []string{"GetConn", "GotConn", "WroteHeaders", "WroteRequest", "GotFirstResponseByte", "Wait100Continue"} {
		if n := s.hooks[name]; n > 0 {
			s.hooks[name] = n - s.throttled
		}
	}
	s.written = append(s.written, fmt.Sprintf("hooks %v", s.hooks))
	for _, r := range s.seen {
		s.written = append(s.written, fmt.Sprintf("server saw %s, body %d %.16x, trailer=%v", r.head, r.length, r.body.Sum(nil), r.trailer))
	}
}
