package grpcstatus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func respond(body io.Reader) *http.Response {
	rc, ok := body.(io.ReadCloser)
	if !ok {
		rc = io.NopCloser(body)
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/grpc"}}, Body: rc}
}

func always() Progress { return Progress{Over: true} }
func never() Progress  { return Progress{} }
func within() Progress { return Progress{Sent: 1, First: []byte{0}} }

// told is a later function that must be called once at most.
type told struct {
	t     *testing.T
	s     Status
	calls int
}

func (l *told) later(s Status) {
	l.s = s
	if l.calls++; l.calls > 1 {
		l.t.Error("told twice")
	}
}

// TestPutsBack reads bodies to their end, in reads of every size, over bases
// that return every size.
func TestPutsBack(t *testing.T) {
	own := errors.New("own")
	contents := []string{"", "\x00\x00", framed(0, ""), framed(0, throttled), framed(0, throttled) + framed(0, "and more"),
		framed(0, throttled)[:40], framed(0, strings.Repeat("x", 3000)), framed(2, "?")}
	for _, content := range contents {
		for _, end := range []error{io.EOF, own} {
			for base, wrap := range map[string]func(io.Reader) io.Reader{
				"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "error with data": iotest.DataErrReader,
				"plain": func(r io.Reader) io.Reader { return r },
			} {
				for _, size := range []int{1, 2, 5, 6, 100, 4096} {
					for mode, over := range map[string]func() Progress{"over": always, "within": within} {
						raw := io.MultiReader(strings.NewReader(content), iotest.ErrReader(end))
						resp, _, known := Look(t.Context(), respond(wrap(raw)), over, func(Status) { t.Error("told, though it was known") })
						if !known {
							t.Errorf("%q, %s: not known", content, mode)
						}
						var got bytes.Buffer
						_, err := io.CopyBuffer(&got, struct{ io.Reader }{resp.Body}, make([]byte, size))
						if end == io.EOF {
							end = nil
						}
						if err != end || got.String() != content {
							t.Errorf("%q, %v by %s, reads of %d, %s: %q, %v", content, end, base, size, mode, got.String(), err)
						}
						if end == nil {
							end = io.EOF
						}
						if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || err != end {
							t.Errorf("after the end: %d, %v", n, err)
						}
					}
				}
			}
		}
	}
}

func TestReadsNoMoreThanTheMessage(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		asked   int
	}{
		"short message": {framed(0, throttled), prefix + len(throttled)},
		"long message":  {framed(0, strings.Repeat("x", 2000)), prefix},
		"empty message": {framed(0, ""), prefix},
	} {
		r := &counter{Reader: strings.NewReader(tt.content + "more")}
		Look(t.Context(), respond(r), always, nil)
		if r.asked != tt.asked {
			t.Errorf("%s: asked for %d bytes, want %d", name, r.asked, tt.asked)
		}
	}
}

type counter struct {
	io.Reader
	asked int
}

func (c *counter) Read(p []byte) (int, error) {
	c.asked += len(p)
	return c.Reader.Read(p)
}

func TestIdleBody(t *testing.T) {
	nothing := readerFunc(func([]byte) (int, error) { return 0, nil })
	if _, s, known := Look(t.Context(), respond(nothing), always, nil); s != (Status{}) || !known {
		t.Error(s, known)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestOpen has the request go on while the response comes.
func TestOpen(t *testing.T) {
	for _, tt := range []struct {
		name  string
		at    time.Duration // when the server writes the message
		sent  time.Duration // when the request's first message is sent; 0: before
		over  time.Duration // when the request is over; 0: never
		known time.Duration // when Look returns
		later bool
	}{
		{name: "message at once", at: 0, known: 0},
		{name: "message soon", at: patience - 1, known: patience - 1},
		{name: "message later", at: patience + 1, known: patience, later: true},
		{name: "message much later", at: time.Hour, known: patience, later: true},
		{name: "request over meanwhile", at: time.Second, over: patience / 2, known: time.Second},
		{name: "request within a message", at: time.Minute, sent: time.Hour, known: time.Minute},
		{name: "request within a message for a while", at: time.Minute, sent: time.Second, known: time.Second + patience, later: true},
		{name: "request over after a message", at: time.Minute, sent: time.Second, over: time.Second + patience/2, known: time.Minute},
		{name: "request over too late", at: time.Second, over: patience + 1, known: patience, later: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				r, w := io.Pipe()
				content := framed(0, throttled) + framed(0, "more")
				time.AfterFunc(tt.at, func() {
					io.Copy(w, iotest.OneByteReader(strings.NewReader(content)))
					w.Close()
				})
				l := &told{t: t}
				resp, s, known := Look(t.Context(), respond(r), func() Progress {
					p := Progress{Sent: 8, First: []byte("\x00\x00\x00\x00\x03"), Over: tt.over > 0 && time.Since(begin) >= tt.over}
					if time.Since(begin) < tt.sent {
						p.Sent = 7
					}
					return p
				}, l.later)
				if got := time.Since(begin); got != tt.known || known == tt.later || known && s != want {
					t.Errorf("known %t, %+v, after %v", known, s, got)
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || string(got) != content || time.Since(begin) != tt.at {
					t.Errorf("%q, %v, after %v", got, err, time.Since(begin))
				}
				if (l.calls == 1) != tt.later || l.calls == 1 && l.s != want {
					t.Errorf("told %d times, %+v", l.calls, l.s)
				}
			})
		})
	}
}

// TestBytesAsTheyCome has the message come slowly: the caller of an open
// request gets what there is, and the Status before the last of it.
func TestBytesAsTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l := &told{t: t}
		resp, _, known := Look(t.Context(), respond(r), never, l.later)
		if known {
			t.Error("known")
		}
		content := framed(0, throttled)
		go func() {
			for i := range len(content) {
				time.Sleep(time.Second)
				w.Write([]byte{content[i]})
			}
			time.Sleep(time.Second)
			w.Close()
		}()
		begin := time.Now()
		for i := range len(content) {
			p := make([]byte, 100)
			n, err := resp.Body.Read(p)
			if n != 1 || err != nil || p[0] != content[i] || time.Since(begin) != time.Duration(i+1)*time.Second {
				t.Fatalf("byte %d: %q, %v, after %v", i, p[:n], err, time.Since(begin))
			}
			if told := l.calls == 1; told != (i == len(content)-1) {
				t.Errorf("byte %d: told %t", i, told)
			}
		}
		if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", n, err)
		}
	})
}

func TestProgress(t *testing.T) {
	first := func(s string) []byte { return []byte(s) }
	for _, tt := range []struct {
		p    Progress
		want bool
	}{
		{Progress{}, false},
		{Progress{Sent: 1, First: first("\x00")}, true},
		{Progress{Sent: 4, First: first("\x00\x00\x00\x00")}, true},
		{Progress{Sent: 5, First: first("\x00\x00\x00\x00\x00")}, false},
		{Progress{Sent: 5, First: first("\x00\x00\x00\x00\x01")}, true},
		{Progress{Sent: 6, First: first("\x00\x00\x00\x00\x01")}, false},
		{Progress{Sent: 1 << 32, First: first("\x01\xff\xff\xff\xff")}, true},
		{Progress{Sent: 1 << 33, First: first("\x01\xff\xff\xff\xff")}, false},
	} {
		if got := tt.p.within(); got != tt.want {
			t.Errorf("%+v: %t", tt.p, got)
		}
	}
}

func TestContextEnds(t *testing.T) {
	for name, over := range map[string]func() func() Progress{
		"request goes on": func() func() Progress { return never },
		"request is over meanwhile": func() func() Progress {
			asked := 0
			return func() Progress { asked++; return Progress{Over: asked > 1} }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, d := range []time.Duration{patience / 2, time.Second} {
					ctx, cancel := context.WithTimeout(t.Context(), d)
					defer cancel()
					r, w := io.Pipe()
					resp, _, known := Look(ctx, respond(r), over(), func(Status) {})
					if known {
						t.Error("known")
					}
					w.CloseWithError(context.DeadlineExceeded)
					if _, err := resp.Body.Read(make([]byte, 1)); err != context.DeadlineExceeded {
						t.Error(err)
					}
				}
			})
		})
	}
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l := &told{t: t}
		resp, _, _ := Look(t.Context(), respond(r), never, l.later)
		time.AfterFunc(time.Second, func() { resp.Body.Close() })
		if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || err != io.ErrClosedPipe {
			t.Errorf("a Read under way: %d, %v", n, err)
		}
		if _, err := w.Write([]byte("x")); err != io.ErrClosedPipe {
			t.Errorf("the base's body is not closed: %v", err)
		}

		resp, _, _ = Look(t.Context(), respond(strings.NewReader(framed(0, throttled))), always, nil)
		resp.Body.Close()
		if _, err := resp.Body.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("bytes that were looked at come after Close: %v", err)
		}
	})
}

// A trailing body sets the trailers of its response at its end, as net/http's.
type trailing struct {
	io.Reader
	resp *http.Response
}

func (b *trailing) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		if b.resp.Trailer == nil {
			b.resp.Trailer = make(http.Header)
		}
		b.resp.Trailer.Set("Grpc-Status", "0")
	}
	return n, err
}

func (b *trailing) Close() error { return nil }

func TestTrailersComeAtTheEnd(t *testing.T) {
	for _, content := range []string{"", framed(0, "")[:3], framed(0, ""), framed(0, throttled)} {
		for _, announced := range []http.Header{nil, {"Grpc-Status": nil}} {
			for _, over := range []func() Progress{always, within} {
				base := respond(nil)
				base.Trailer = announced.Clone()
				base.Body = &trailing{iotest.DataErrReader(strings.NewReader(content)), base}
				resp, _, _ := Look(t.Context(), base, over, nil)
				if len(resp.Trailer) != len(announced) || resp.Trailer.Get("Grpc-Status") != "" {
					t.Errorf("%q: before: %v, announced %v", content, resp.Trailer, announced)
				}
				io.Copy(io.Discard, resp.Body)
				if resp.Trailer.Get("Grpc-Status") != "0" {
					t.Errorf("%q: after: %v", content, resp.Trailer)
				}
			}
		}
	}
}

// FuzzBody looks at bodies of any content, cut into reads of any size.
func FuzzBody(f *testing.F) {
	f.Add([]byte(framed(0, throttled)+"more"), uint8(3), uint8(7), false, true)
	f.Add([]byte(framed(1, zipped(throttled))), uint8(100), uint8(1), true, false)
	f.Fuzz(func(t *testing.T, content []byte, base, reads uint8, zip, over bool) {
		resp := respond(readerFunc(func() func(p []byte) (int, error) {
			rest := bytes.NewReader(content)
			return func(p []byte) (int, error) { return rest.Read(p[:min(len(p), int(base)+1)]) }
		}()))
		if zip {
			resp.Header.Set("Grpc-Encoding", "gzip")
		}
		looked, s, _ := Look(t.Context(), resp, map[bool]func() Progress{true: always, false: within}[over], nil)
		var got bytes.Buffer
		if _, err := io.CopyBuffer(&got, struct{ io.Reader }{looked.Body}, make([]byte, int(reads)+1)); err != nil || !bytes.Equal(got.Bytes(), content) {
			t.Errorf("%q, %v", got.Bytes(), err)
		}
		m := message{gzip: zip}
		m.add(content)
		if want := m.status(); s != want {
			t.Errorf("%+v, want %+v", s, want)
		}
	})
}
