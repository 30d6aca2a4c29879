package clarifaihttp_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// A scene is played twice, each time with a server of its own: with the bare
// base and with a Transport over one like it. Both must give the same notes.
type scene struct {
	name  string
	only  string           // protocol, if not all
	serve http.HandlerFunc // nil: echo
	play  func(*stage)
	loose bool // makes no sense with throttles
	blind bool // what the server sees is up to chance
}

// A stage is one side of a comparison, and the notes of what happened there: of
// responses and errors as the caller sees them, requests as the server sees
// them, calls of the caller's hooks. What is not noted is not compared: dates,
// ports, and how often bodies are closed (the bare base may do so twice).
type stage struct {
	*testing.T
	url      string
	base     *http.Transport
	rt       http.RoundTripper
	client   *http.Client
	throttle *clarifaihttp.Throttle // nil: the bare base

	mu        sync.Mutex
	notes     []string
	hooks     map[string]int
	stalled   func()  // called when the server stalls
	seen      []*seen // by the server, throttled ones left out
	throttles int     // by the server
	bodies    []*requestBody
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

func (s *stage) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, s.same(fmt.Sprintf(format, args...)))
}

var local = regexp.MustCompile(`127\.0\.0\.1:\d+|stream ID \d+`)

// same takes out what differs from server to server.
func (s *stage) same(text string) string { return local.ReplaceAllString(text, "...") }

// over returns what the caller uses instead of base.
func (s *stage) over(base http.RoundTripper, opts ...clarifaihttp.Option) http.RoundTripper {
	if s.throttle == nil {
		return base
	}
	opts = append([]clarifaihttp.Option{clarifaihttp.WithThrottle(s.throttle), clarifaihttp.WithLogger(quiet)}, opts...)
	return clarifaihttp.NewTransport(base, opts...)
}

// request returns a request with the caller's hooks.
func (s *stage) request(method, path string, body io.Reader) *http.Request {
	s.Helper()
	if strings.HasPrefix(path, "/") {
		path = s.url + path
	}
	req, err := http.NewRequestWithContext(s.traced(s.Context()), method, path, body)
	if err != nil {
		s.Fatal(err)
	}
	return req
}

// do sends req through the client and takes notes.
func (s *stage) do(req *http.Request) { s.Helper(); s.response(s.client.Do(req)) }

// roundTrip sends req without a client and takes notes.
func (s *stage) roundTrip(req *http.Request) { s.Helper(); s.response(s.rt.RoundTrip(req)) }

// held holds rt, which is ours, to what a RoundTripper must do: give one of
// response and error, close each body once, change nothing of the request. An
// answer belongs to the caller's request; over HTTP/2, the bare base's belong to
// a copy of it.
func (s *stage) held(rt http.RoundTripper) http.RoundTripper {
	return checked{rt, func(req *http.Request) (*http.Response, error) {
		mine := req.WithContext(req.Context())
		if req.Body != nil && req.Body != http.NoBody {
			mine.Body = s.body(req.Body)
		}
		if req.GetBody != nil {
			mine.GetBody = func() (io.ReadCloser, error) {
				b, err := req.GetBody()
				if err != nil {
					return nil, err
				}
				return s.body(b), nil
			}
		}
		before, after := *mine, mine.Clone(req.Context())
		resp, err := rt.RoundTrip(mine)
		if (resp == nil) == (err == nil) {
			s.Errorf("got %v and %v", resp, err)
		}
		if resp != nil {
			if resp.Request != mine {
				s.Errorf("answer to %p, not to the caller's request %p", resp.Request, mine)
			}
			resp.Request = req
		}
		now := *mine
		now.Body, now.GetBody = nil, nil
		after.Body, after.GetBody, after.Trailer = nil, nil, req.Trailer
		if mine.Body != before.Body || (mine.GetBody == nil) != (before.GetBody == nil) || !reflect.DeepEqual(&now, after) {
			s.Errorf("the request has changed: %+v, was %+v", now, *after)
		}
		return resp, err
	}}
}

// body returns a request body that must be closed once.
func (s *stage) body(b io.ReadCloser) *requestBody {
	counted := &requestBody{Reader: b, t: s.T}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies = append(s.bodies, counted)
	return counted
}

// interrupt has send's call to a server that stalls canceled.
func (s *stage) interrupt(at string, cancel func(), send func() (*http.Response, error)) {
	cancel = sync.OnceFunc(cancel)
	defer cancel()
	s.mu.Lock()
	switch s.stalled = func() {}; at {
	case "/before":
		cancel()
	case "/headers":
		s.stalled = cancel
	case "/body/500": // when the client has what there is of the body, about
		s.stalled = func() { time.AfterFunc(100*ms, cancel) }
	}
	s.mu.Unlock()
	resp, err := send()
	if at == "/body" {
		time.AfterFunc(50*ms, cancel)
	}
	s.response(resp, err)
}

// response takes notes of an outcome.
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

// failure takes notes of an error.
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

// traced returns ctx with the caller's hooks. Those that depend on whether a
// connection is used again are not among them.
func (s *stage) traced(ctx context.Context) context.Context {
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

// settle waits for the hooks that run late, and takes notes of all of them as
// if there had been no throttles.
func (s *stage) settle(blind, throttling bool) {
	s.Helper()
	done := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.hooks["WroteRequest"] >= s.hooks["GotConn"]
	}
	for begin := time.Now(); !done(); time.Sleep(ms) {
		if time.Since(begin) > 5*time.Second {
			s.Errorf("hooks: %v", s.hooks)
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.throttle != nil {
		st := s.throttle.Stats()
		if asked := len(s.seen) + s.throttles; st.Waiting != 0 || st.Attempts < asked || st.Throttled < s.throttles {
			s.Errorf("%d requests arrived, %d of them throttled, but %+v", asked, s.throttles, st)
		}
		if throttling && s.throttles == 0 && len(s.seen) > 0 {
			s.Error("nothing was throttled")
		}
	}
	if blind {
		return
	}
	if strings.HasPrefix(s.url, "https:") {
		delete(s.hooks, "GetConn") // net/http asks once or twice, as it happens
	}
	for _, name := range []string{"GetConn", "GotConn", "WroteHeaders", "WroteRequest", "GotFirstResponseByte", "Wait100Continue"} {
		if n := s.hooks[name]; n > 0 {
			s.hooks[name] = n - s.throttles
		}
	}
	s.notes = append(s.notes, fmt.Sprintf("hooks %v", s.hooks))
	for _, r := range s.seen {
		s.notes = append(s.notes, fmt.Sprintf("server saw %s, body %d %.16x, trailer=%v", r.head, r.length, r.body.Sum(nil), r.trailer))
	}
}

type checked struct {
	http.RoundTripper
	check func(*http.Request) (*http.Response, error)
}

func (c checked) RoundTrip(req *http.Request) (*http.Response, error) { return c.check(req) }

func (c checked) CloseIdleConnections() {
	c.RoundTripper.(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

type teeBody struct {
	io.Reader
	io.Closer
}

// observe has h serve, and notes what it was asked and what it read. If
// throttling, each request is throttled when it comes for the first time.
func (s *stage) observe(h http.Handler, throttling bool) http.Handler {
	first := map[string]int{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		key := r.Method + r.URL.String() + r.Referer()
		first[key]++
		if throttling && first[key]%2 == 1 {
			s.throttles++
			s.mu.Unlock()
			if len(r.Trailer) > 0 {
				// Go's HTTP/2 server ends the connection for trailers that come
				// after its answer.
				io.Copy(io.Discard, r.Body)
			}
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprintf(w, throttledBody, 15)
			return
		}
		it := &seen{body: sha256.New(), head: s.same(fmt.Sprintf("%s %s %s %s %v length=%d coding=%v close=%v",
			r.Method, r.RequestURI, r.Proto, r.Host, r.Header, r.ContentLength, r.TransferEncoding, r.Close))}
		s.seen = append(s.seen, it)
		s.mu.Unlock()
		read := *r // the server knows its own Body
		read.Body = teeBody{io.TeeReader(r.Body, it), r.Body}
		defer func() { it.trailer = r.Trailer }()
		h.ServeHTTP(w, &read)
	})
}

func echo(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	w.Write(b)
}

// perform plays sc and returns the notes.
func (sc *scene) perform(t *testing.T, proto string, throttle *clarifaihttp.Throttle, throttling bool) []string {
	s := &stage{T: t, throttle: throttle, hooks: map[string]int{}, stalled: func() {}}
	h := sc.serve
	if h == nil {
		h = echo
	}
	var serving atomic.Int32 // Close does not wait for hijacked connections, nor for all of HTTP/2
	observed := s.observe(h, throttling)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Add(-1)
		observed.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Config.BaseContext = func(net.Listener) context.Context {
		return context.WithValue(t.Context(), stalled{}, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.stalled()
		})
	}
	if proto == "HTTP/2.0" {
		srv.EnableHTTP2 = true
		srv.StartTLS()
	} else {
		srv.Start()
	}
	s.url = srv.URL
	s.base = srv.Client().Transport.(*http.Transport)
	s.rt = s.over(s.base)
	if throttle != nil {
		s.rt = s.held(s.rt)
	}
	s.client = &http.Client{Transport: s.rt}
	func() {
		defer srv.Close()
		sc.play(s)
	}()
	for serving.Load() > 0 {
		time.Sleep(ms)
	}
	s.settle(sc.blind, throttling)
	for _, b := range s.bodies {
		b.checkSoon(t)
	}
	return s.notes
}

// checkSoon is check for a body that net/http may close a little after RoundTrip.
func (b *requestBody) checkSoon(t *testing.T) {
	t.Helper()
	for begin := time.Now(); b.closes.Load() == 0 && time.Since(begin) < 5*time.Second; {
		time.Sleep(ms)
	}
	b.check(t)
}

// TestNobodyCanTell plays all scenes over HTTP/1.1 and HTTP/2, without and with
// a throttle before each answer.
func TestNobodyCanTell(t *testing.T) {
	for _, sc := range scenes {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			if sc.only != "" && sc.only != proto {
				continue
			}
			t.Run(sc.name+" "+proto, func(t *testing.T) {
				t.Parallel()
				bare := sc.perform(t, proto, nil, false)
				if len(bare) < 2 {
					t.Fatalf("nothing to compare: %v", bare)
				}
				for _, throttling := range []bool{false, true} {
					if throttling && sc.loose {
						continue
					}
					ours := sc.perform(t, proto, quick(), throttling)
					if d := difference(bare, ours); d != "" {
						t.Errorf("with throttles: %v\n%s", throttling, d)
					}
				}
			})
		}
	}
}

// difference tells the notes that only one of the two has.
func difference(bare, ours []string) string {
	if slices.Equal(bare, ours) {
		return ""
	}
	var d strings.Builder
	for i := range max(len(bare), len(ours)) {
		var a, b string
		if i < len(bare) {
			a = bare[i]
		}
		if i < len(ours) {
			b = ours[i]
		}
		if a != b {
			fmt.Fprintf(&d, "bare: %s\nours: %s\n", a, b)
		}
	}
	return d.String()
}

const content = "What is told three times is true."

var errOwn = errors.New("own")

// redirects answers as the request's query says, and echoes without one.
func redirects(w http.ResponseWriter, r *http.Request) {
	if r.URL.RawQuery == "" {
		echo(w, r)
		return
	}
	var code int
	fmt.Sscan(r.FormValue("code"), &code)
	io.Copy(io.Discard, r.Body)
	http.SetCookie(w, &http.Cookie{Name: "seen" + r.URL.Path[1:], Value: r.FormValue("code")})
	w.Header()["Location"] = r.URL.Query()["to"]
	w.WriteHeader(code)
	io.WriteString(w, "elsewhere")
}

// stalls answers /body with a part of a body, and nothing else.
func stalls(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	if strings.HasPrefix(r.URL.Path, "/body") {
		w.Header().Set("Content-Length", "10")
		if r.URL.Path == "/body/500" {
			w.WriteHeader(500)
		}
		io.WriteString(w, "begin")
		http.NewResponseController(w).Flush()
	}
	r.Context().Value(stalled{}).(func())()
	<-r.Context().Done()
}

// stalled is the key of the function that the server calls when it stalls.
type stalled struct{}

var scenes = []scene{
	{name: "redirects", serve: redirects, play: func(s *stage) {
		jar, _ := cookiejar.New(nil)
		for _, s.client.Jar = range []http.CookieJar{nil, jar} {
			for _, code := range []int{301, 302, 303, 307, 308} {
				for i, body := range []func() io.Reader{
					func() io.Reader { return nil },
					func() io.Reader { return strings.NewReader(content) }, // has GetBody
					func() io.Reader { return opaque(strings.NewReader(content)) },
				} {
					method := []string{"GET", "POST", "PUT"}[i]
					req := s.request(method, fmt.Sprintf("/a?code=%d&to=/b%%3Fcode=%d%%26to=c%d", code, code, i), body())
					req.Header.Set("X-Own", "kept")
					s.do(req)
				}
			}
		}
		at, _ := url.Parse(s.url)
		s.note("jar %v", jar.Cookies(at))
	}},
	{name: "bad redirects", serve: redirects, play: func(s *stage) {
		_, host, _ := strings.Cut(s.url, "//")
		for _, query := range []string{
			"code=302", "code=302&to=http://[::1", "code=307&to=%25zz", "code=308&to=ftp://nowhere.invalid/",
			"code=302&to=%3Fcode=302", "code=302&to=//me:pw@" + host,
		} {
			s.do(s.request("GET", "/a?"+query, nil))
			s.do(s.request("POST", "/b?"+query, strings.NewReader(content)))
		}
	}},
	{name: "endless redirects", loose: true, serve: func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
	}, play: func(s *stage) { s.do(s.request("GET", "/x", nil)) }},
	{name: "CheckRedirect", serve: redirects, play: func(s *stage) {
		for _, err := range []error{nil, http.ErrUseLastResponse, errOwn} {
			s.client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
				s.note("check %s %s %v after %d, got %s", req.Method, req.URL, req.Header, len(via), req.Response.Status)
				return err
			}
			s.do(s.request("GET", "/a?code=302&to=/c", nil))
			s.do(s.request("POST", "/b?code=307&to=/c", strings.NewReader(content)))
		}
	}},
	{name: "1xx", serve: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusProcessing)
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		echo(w, r)
	}, play: func(s *stage) {
		s.do(s.request("GET", "/", nil))
		s.do(s.request("POST", "/", strings.NewReader(content)))
		req := s.request("GET", "/refused", nil)
		ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(int, textproto.MIMEHeader) error { return errOwn },
		})
		s.do(req.WithContext(ctx))
	}},
	{name: "Expect", serve: func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/wanted":
			echo(w, r)
		case "/refused":
			w.Header().Set("Connection", "close") // or HTTP/1.1's server waits for the body
			http.Error(w, "no", http.StatusExpectationFailed)
		case "/taken":
			w.WriteHeader(http.StatusNoContent)
		}
	}, play: func(s *stage) {
		s.base.ExpectContinueTimeout = time.Minute
		for _, path := range []string{"/wanted", "/refused", "/taken"} {
			for i, body := range []io.Reader{strings.NewReader(content), opaque(strings.NewReader(content)), opaque(strings.NewReader(content))} {
				req := s.request("POST", path, body)
				req.Header.Set("Expect", "100-continue")
				if i == 2 {
					req.ContentLength = int64(len(content))
				}
				s.do(req)
			}
		}
	}},
	{name: "Upgrade", only: "HTTP/1.1", serve: upgrade, play: func(s *stage) {
		req := s.request("GET", "/", nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		s.do(req)
		s.roundTrip(req.Clone(s.traced(s.Context())))
		s.do(s.request("GET", "/not", nil))
	}},
	{name: "trailers", serve: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum, X-Unset")
		if r.URL.Path == "/500" {
			w.WriteHeader(500)
		}
		echo(w, r)
		w.Header().Set("X-Sum", "33")
		w.Header().Set(http.TrailerPrefix+"X-Unannounced", "1")
	}, play: func(s *stage) {
		for _, path := range []string{"/", "/500"} {
			for _, getBody := range []bool{true, false} {
				req := s.request("POST", path, nil)
				req.Trailer = http.Header{"X-Early": {"1"}, "X-Late": nil}
				req.ContentLength = -1
				open := func() (io.ReadCloser, error) {
					return opaque(&atEOF{strings.NewReader(content), func() { req.Trailer.Set("X-Late", "2") }}), nil
				}
				req.Body, _ = open()
				if getBody {
					req.GetBody = open
				}
				s.roundTrip(req)
			}
		}
	}},
	{name: "HEAD", serve: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1234")
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/404" {
			w.WriteHeader(404)
		}
	}, play: func(s *stage) {
		s.do(s.request("HEAD", "/", nil))
		s.do(s.request("HEAD", "/404", nil))
	}},
	{name: "status", serve: func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		var code, n int
		fmt.Sscanf(r.URL.Path, "/%d/%d", &code, &n)
		w.Header().Set("Content-Type", r.FormValue("type"))
		if r.FormValue("sized") != "" {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		}
		w.WriteHeader(code)
		io.WriteString(w, strings.Repeat("x", n))
	}, play: func(s *stage) {
		for _, path := range []string{
			"/204/0", "/205/0", "/304/0", "/200/0", "/404/0", "/500/0?sized=1", "/503/9", "/400/20000", "/500/300000", "/500/300000?sized=1",
			"/401/16384", "/401/16385?sized=1", "/200/2?type=application/json&sized=1", "/201/1024?type=application/json&sized=1",
			"/599/1", "/200/70000?type=text/event-stream",
		} {
			s.do(s.request("GET", path, nil))
			s.do(s.request("POST", path, strings.NewReader(content)))
		}
	}},
	{name: "JSON", serve: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", fmt.Sprint(len(r.FormValue("body"))))
		io.WriteString(w, r.FormValue("body"))
	}, play: func(s *stage) {
		for _, body := range []string{okBody, `{"status":{"code":10010}}`, "[", "{", `"x"`, "{}", `{"outputs":[{"status":{"code":11005}}]}`} {
			s.do(s.request("GET", "/?body="+url.QueryEscape(body), nil))
		}
	}},
	{name: "gzip", serve: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/404" {
			defer w.WriteHeader(404)
		}
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			io.WriteString(z, strings.Repeat(okBody, 100))
			z.Close()
			if r.URL.Path == "/404" {
				w.WriteHeader(404)
			}
			w.Write(b.Bytes()[:b.Len()-len(r.FormValue("cut"))])
			return
		}
		io.WriteString(w, okBody)
	}, play: func(s *stage) {
		for _, path := range []string{"/", "/404", "/?cut=xxx", "/404?cut=xxx"} {
			s.do(s.request("GET", path, nil))
			for _, coding := range []string{"gzip", "identity"} {
				req := s.request("GET", path, nil)
				req.Header.Set("Accept-Encoding", coding)
				s.do(req)
			}
		}
	}},
	{name: "settings of the base", play: func(s *stage) {
		s.base.DisableCompression = true
		s.base.DisableKeepAlives = true
		s.base.MaxIdleConns = 1
		s.do(s.request("GET", "/", nil))
		s.do(s.request("POST", "/", strings.NewReader(content)))
	}},
	{name: "lengths", play: func(s *stage) {
		for _, method := range []string{"POST", "GET", "DELETE"} {
			for _, n := range []int{0, 1, len(content), 5000, 70000, 1 << 20} {
				if n > 100000 && method != "POST" {
					continue
				}
				text := strings.Repeat("x", n)
				for _, length := range []int64{-1, 0, int64(n)} {
					req := s.request(method, "/", opaque(strings.NewReader(text)))
					req.ContentLength = length
					s.do(req)
				}
				s.do(s.request(method, "/", strings.NewReader(text)))
			}
			req := s.request(method, "/", nil)
			req.Body = http.NoBody
			s.do(req)
			req = s.request(method, "/", opaque(strings.NewReader(content)))
			req.TransferEncoding = []string{"chunked"}
			s.do(req)
		}
	}},
	{name: "bad bodies", loose: true, blind: true, play: func(s *stage) {
		// The error is that of writing or of reading, whichever is seen first.
		failing := io.MultiReader(strings.NewReader(content), iotest.ErrReader(errOwn))
		for _, body := range []io.Reader{nil, opaque(strings.NewReader(content)), opaque(failing)} {
			req := s.request("POST", "/", body)
			req.ContentLength = 100
			_, err := s.client.Do(req)
			s.note("fails: %v", err != nil)
			_, err = s.rt.RoundTrip(s.request("POST", "/", opaque(failing)))
			s.note("fails: %v", err != nil)
		}
	}},
	{name: "Request.Close", play: func(s *stage) {
		for range 2 {
			req := s.request("POST", "/", strings.NewReader(content))
			req.Close = true
			s.do(req)
		}
		req := s.request("GET", "/", nil)
		req.Header.Set("Connection", "close")
		s.do(req)
	}},
	{name: "Request.Cancel", serve: stalls, play: func(s *stage) {
		for _, at := range []string{"/headers", "/body", "/body/500"} {
			req := s.request("POST", at, opaque(strings.NewReader(content)))
			cancel := make(chan struct{})
			//lint:ignore SA1019 it works as long as net/http has it
			req.Cancel = cancel
			s.interrupt(at, func() { close(cancel) }, func() (*http.Response, error) { return s.rt.RoundTrip(req) })
		}
	}},
	{name: "canceled context", serve: stalls, play: func(s *stage) {
		for i, send := range []func(*http.Request) (*http.Response, error){s.rt.RoundTrip, s.client.Do} {
			for _, at := range []string{"/before", "/headers", "/body", "/body/500"}[i:] {
				// Over an HTTP/2 connection that there is already, the bare base
				// does not give the cause of a context that is done before.
				ctx, cancel := context.WithCancelCause(s.traced(s.Context()))
				req := s.request("POST", at, opaque(strings.NewReader(content))).WithContext(ctx)
				s.interrupt(at, func() { cancel(errOwn) }, func() (*http.Response, error) { return send(req) })
			}
		}
	}},
	{name: "deadlines", serve: stalls, play: func(s *stage) {
		for _, at := range []string{"/before", "/headers", "/body", "/body/500"} {
			ctx := &expires{Context: s.traced(s.Context()), done: make(chan struct{})}
			req := s.request("POST", at, opaque(strings.NewReader(content))).WithContext(ctx)
			s.interrupt(at, func() { close(ctx.done) }, func() (*http.Response, error) { return s.rt.RoundTrip(req) })
		}
	}},
	{name: "hooks of all kinds", play: func(s *stage) {
		for range 3 {
			s.do(s.request("POST", "/", strings.NewReader(content)))
		}
		s.roundTrip(s.request("POST", "/", opaque(strings.NewReader(strings.Repeat("x", 100000)))))
	}},
	{name: "userinfo", play: func(s *stage) {
		at := strings.Replace(s.url, "//", "//me:secret@", 1)
		s.do(s.request("GET", at+"/x", nil))
		s.roundTrip(s.request("GET", at+"/x", nil))
	}},
	{name: "no proxy", play: func(s *stage) {
		s.base.Proxy = func(*http.Request) (*url.URL, error) { return nil, errOwn }
		s.do(s.request("GET", strings.Replace(s.url, "//", "//me:secret@", 1), nil))
	}},
	{name: "URLs", play: func(s *stage) {
		for _, path := range []string{"", "?", "/a%2fb//c/../d", "/?q=a+b&q=%zz;x", "/#fragment", "/%E2%9C%93?✓"} {
			s.do(s.request("GET", s.url+path, nil))
		}
		req := s.request("GET", "/", nil)
		req.URL.Opaque = "//" + req.URL.Host + "/opaque%2f"
		s.do(req)
		req = s.request("OPTIONS", "/", nil)
		req.URL.Path = "*"
		s.do(req)
		req = s.request("GET", "/", nil)
		req.Host = "other.invalid"
		s.do(req)
	}},
	{name: "RequestURI", play: func(s *stage) {
		req := s.request("POST", "/", strings.NewReader(content))
		req.RequestURI = "/other"
		s.roundTrip(req)
		s.do(req)
	}},
	{name: "by hand", loose: true, blind: true, play: func(s *stage) {
		at, _ := url.Parse(s.url)
		for _, req := range []*http.Request{
			{URL: at},
			{URL: at, Header: http.Header{}},
			{URL: at, Header: http.Header{}, Method: "bad method"},
			{URL: at, Header: http.Header{"Bad Key": {"x"}}},
			{URL: at, Header: http.Header{"X-Bad": {"x\ny"}}},
			{URL: &url.URL{}, Header: http.Header{}},
			{URL: &url.URL{Scheme: "http"}, Header: http.Header{}},
			{URL: &url.URL{Scheme: "gopher", Host: "x.invalid"}, Header: http.Header{}},
		} {
			req.Body = opaque(strings.NewReader(content))
			s.roundTrip(req)
			req.Body = opaque(strings.NewReader(content))
			s.do(req)
		}
	}},
	{name: "errors of the base", loose: true, play: func(s *stage) {
		dial := &url.Error{Op: "Own", URL: "http://server/", Err: &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}}
		for _, err := range []error{errOwn, dial, context.Canceled, io.EOF, http.ErrUseLastResponse, http.ErrSkipAltProtocol, fmt.Errorf("own: %w", errOwn)} {
			rt := s.over(roundTripperFunc(func(req *http.Request) (*http.Response, error) {
				if req.Body != nil {
					req.Body.Close()
				}
				return nil, err
			}))
			_, got := rt.RoundTrip(s.request("POST", "/", opaque(strings.NewReader(content))))
			s.note("as it is: %v", got == err)
			_, got = (&http.Client{Transport: rt}).Do(s.request("GET", "/", nil))
			s.failure("client", got)
		}
	}},
	{name: "base that sends another request", play: func(s *stage) {
		// As oauth2 does, or a client that follows redirects by itself.
		rt := s.over(roundTripperFunc(func(req *http.Request) (*http.Response, error) {
			req = req.Clone(req.Context())
			req.Header.Set("Authorization", "Key x")
			req.URL.Path = "/other/place"
			return s.base.RoundTrip(req)
		}))
		s.response(rt.RoundTrip(s.request("GET", "/", nil)))
	}},
	{name: "connections", loose: true, play: func(s *stage) {
		// Which are used again: unread bodies, a failing call, CloseIdleConnections.
		var reused []bool
		ctx := httptrace.WithClientTrace(s.Context(), &httptrace.ClientTrace{
			GotConn: func(i httptrace.GotConnInfo) { reused = append(reused, i.Reused) },
		})
		get := func() {
			resp, err := s.client.Do(s.request("GET", "/", nil).WithContext(ctx))
			s.response(resp, err)
		}
		get()
		get()
		_, err := s.client.Do(s.request("GET", "http://127.0.0.1:1/", nil))
		s.failure("refused", err)
		get()
		s.client.CloseIdleConnections()
		get()
		get()
		s.note("reused %v", reused)
	}},
	{name: "a reverse proxy", serve: func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upgrade":
			upgrade(w, r)
		case "/hints":
			w.Header().Set("Link", "</x>")
			w.WriteHeader(http.StatusEarlyHints)
			echo(w, r)
		case "/trailer":
			w.Header().Set("Trailer", "X-Sum")
			echo(w, r)
			w.Header().Set("X-Sum", "33")
		case "/404":
			io.Copy(io.Discard, r.Body)
			http.NotFound(w, r)
		default:
			echo(w, r)
		}
	}, play: func(s *stage) {
		to, _ := url.Parse(s.url)
		proxy := httptest.NewServer(&httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host },
			Transport: s.rt,
		})
		defer proxy.Close()
		client := &http.Client{Transport: proxy.Client().Transport}
		do := func(req *http.Request) { s.response(client.Do(req)) }
		request := func(method, path string, body io.Reader) *http.Request {
			return s.request(method, proxy.URL+path, body).WithContext(s.Context()) // no hooks
		}
		for _, path := range []string{"/", "/hints", "/trailer", "/404", "/x?a;b"} {
			do(request("GET", path, nil))
			for _, n := range []int{1, 100000} {
				do(request("POST", path, strings.NewReader(strings.Repeat("x", n))))
				do(request("POST", path, opaque(strings.NewReader(strings.Repeat("x", n)))))
			}
		}
		if strings.HasPrefix(s.url, "http:") {
			req := request("GET", "/upgrade", nil)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "echo")
			do(req)
		}
	}},
	{name: "events", serve: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			if r.URL.Path == "/held" {
				<-r.Context().Done()
			}
		}
	}, play: func(s *stage) {
		s.do(s.request("GET", "/", nil))
		resp, err := s.client.Do(s.request("GET", "/held", nil))
		if err != nil {
			s.Fatal(err)
		}
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		s.note("%q %v", line, err)
		resp.Body.Close()
	}},
	{name: "both ways at once", only: "HTTP/2.0", loose: true, serve: func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		in := bufio.NewScanner(r.Body)
		for in.Scan() {
			fmt.Fprintf(w, "you said %s\n", in.Text())
			http.NewResponseController(w).Flush()
		}
	}, play: func(s *stage) {
		pr, pw := io.Pipe()
		resp, err := s.client.Do(s.request("POST", "/", pr))
		if err != nil {
			s.Fatal(err)
		}
		out := bufio.NewReader(resp.Body)
		for i := range 3 {
			fmt.Fprintln(pw, i)
			line, err := out.ReadString('\n')
			s.note("%q %v", line, err)
		}
		pw.Close()
		s.response(resp, nil)
	}},
	{name: "answered before the upload ends", loose: true, serve: func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close")
		}
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		io.WriteString(w, "too large")
	}, play: func(s *stage) {
		pr, pw := io.Pipe()
		go func() {
			defer pw.Close()
			for {
				if _, err := pw.Write(make([]byte, 1<<10)); err != nil {
					return // the body was closed
				}
			}
		}()
		s.roundTrip(s.request("POST", "/", pr))
	}},
	{name: "throttles handed back", loose: true, serve: func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", r.URL.Path[1:])
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprintf(w, throttledBody, 15)
		io.WriteString(w, strings.Repeat(" ", 100000))
		w.Header().Set("X-Sum", "33")
	}, play: func(s *stage) {
		s.client.Transport = s.over(s.base, clarifaihttp.WithMaxRetries(0))
		s.do(s.request("GET", "/0", nil))
		s.do(s.request("POST", "/0", opaque(strings.NewReader(content))))
		s.client.Transport = s.over(s.base, clarifaihttp.WithReplayBuffer(len(content)-1))
		s.do(s.request("POST", "/0", opaque(strings.NewReader(content))))
		s.client.Transport = s.over(s.base)
		s.do(s.request("POST", "/100000", strings.NewReader(content))) // nobody sits that out
	}},
	{name: "broken off", serve: func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		var code int
		fmt.Sscanf(r.URL.Path, "/%d", &code)
		if code == 0 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", "application/json")
		if r.FormValue("sized") != "" {
			w.Header().Set("Content-Length", "900")
		}
		w.WriteHeader(code)
		io.WriteString(w, strings.Repeat(" ", 800))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}, play: func(s *stage) {
		for _, path := range []string{"/", "/200", "/500", "/200?sized=1", "/503?sized=1"} {
			s.do(s.request("POST", path, opaque(strings.NewReader(content))))
		}
	}},
}

// upgrade switches to a protocol of two lines.
func upgrade(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		http.Error(w, "what for?", http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	rw.Flush()
	line, _ := rw.ReadString('\n')
	fmt.Fprintf(rw, "who is there? %s", line)
	rw.Flush()
}

// expires is a context whose deadline passes when done is closed.
type expires struct {
	context.Context
	done chan struct{}
}

func (e *expires) Deadline() (time.Time, bool) { return time.Now().Add(time.Hour), true }
func (e *expires) Done() <-chan struct{}       { return e.done }

func (e *expires) Err() error {
	select {
	case <-e.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// atEOF calls f before it returns the error of r.
type atEOF struct {
	r io.Reader
	f func()
}

func (a *atEOF) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if err != nil {
		a.f()
	}
	return n, err
}

// opaque is a body that net/http knows nothing about.
func opaque(r io.Reader) io.ReadCloser { return teeBody{r, http.NoBody} }

// TestClientTimeout has a Client time out at a server that stalls. The text of
// the error is not compared: a Client ends the context of a request alone if it
// knows the Transport, else it closes Request.Cancel, too, and the text depends
// on what is seen first.
func TestClientTimeout(t *testing.T) {
	play := func(t *testing.T, wrap func(http.RoundTripper) http.RoundTripper, throttles int32) (notes []string) {
		var requests atomic.Int32
		synctest.Test(t, func(t *testing.T) {
			srv := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if requests.Add(1) <= throttles {
					w.Header().Set("Retry-After", "0")
					w.WriteHeader(http.StatusTooManyRequests)
					fmt.Fprintf(w, throttledBody, 15)
					return
				}
				stalls(w, r.WithContext(context.WithValue(r.Context(), stalled{}, func() {})))
			}))
			defer srv.Close()
			client := &http.Client{Transport: wrap(srv.Client().Transport), Timeout: time.Minute}
			failure := func(err error) {
				timeout, ok := err.(net.Error)
				notes = append(notes, fmt.Sprint(ok && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded)))
			}
			for _, at := range []string{"/headers", "/body", "/body/500"} {
				begin := time.Now()
				resp, err := client.Get("http://server" + at)
				notes = append(notes, fmt.Sprintf("%T", err))
				failure(err)
				if err == nil {
					b, err := io.ReadAll(resp.Body)
					notes = append(notes, fmt.Sprintf("%s %q", resp.Status, b))
					failure(err)
					resp.Body.Close()
				}
				notes = append(notes, time.Since(begin).String())
			}
		})
		return notes
	}
	bare := play(t, func(base http.RoundTripper) http.RoundTripper { return base }, 0)
	for throttles := range int32(2) {
		ours := play(t, func(base http.RoundTripper) http.RoundTripper {
			return clarifaihttp.NewTransport(base, clarifaihttp.WithLogger(quiet))
		}, throttles)
		if d := difference(bare, ours); d != "" {
			t.Errorf("%d throttles\n%s", throttles, d)
		}
	}
}

// TestTimeoutInLine has what ends a wait look as it does where the bare base
// waits.
func TestTimeoutInLine(t *testing.T) {
	for _, tt := range []struct {
		name     string
		timeout  time.Duration // the client's
		deadline time.Duration // the context's
		cancel   time.Duration
		slow     bool // the slot is not free before its answer, nobody knows when
		want     time.Duration
		err      error
	}{
		{name: "too early", timeout: 500 * ms, want: 0, err: context.DeadlineExceeded},
		{name: "passes", timeout: 3 * time.Second, slow: true, want: 3 * time.Second, err: context.DeadlineExceeded},
		{name: "deadline", deadline: 3 * time.Second, slow: true, want: 3 * time.Second, err: context.DeadlineExceeded},
		{name: "cancel", cancel: 3 * time.Second, timeout: time.Hour, slow: true, want: 3 * time.Second, err: errOwn},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				th := &clarifaihttp.Throttle{Limit: 1, Transit: -1}
				client := &http.Client{Transport: newTransport(th, func(req *http.Request) (*http.Response, error) {
					if tt.slow {
						time.Sleep(time.Minute)
					}
					return ok(), nil
				})}
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() {
					resp, err := client.Transport.RoundTrip(get(t.Context(), t))
					if err != nil {
						t.Error(err)
						return
					}
					resp.Body.Close()
				})
				synctest.Wait()

				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if tt.cancel != 0 {
					time.AfterFunc(tt.cancel, func() { cancel(errOwn) })
				}
				if tt.deadline != 0 {
					var stop context.CancelFunc
					ctx, stop = context.WithTimeout(ctx, tt.deadline)
					defer stop()
				}
				client.Timeout = tt.timeout
				begin := time.Now()
				_, err := client.Do(get(ctx, t))
				failure, isURL := err.(*url.Error)
				if d := time.Since(begin); !isURL || d != tt.want || !errors.Is(err, tt.err) ||
					failure.Timeout() != (tt.err == context.DeadlineExceeded) {
					t.Errorf("%v after %v, want %v after %v", err, d, tt.err, tt.want)
				}
				if s := th.Stats(); s.Waiting != 0 || s.Attempts != 1 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}
