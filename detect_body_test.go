package clarifaihttp

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

// untouchable fails the test when it is read.
type untouchable struct{ t *testing.T }

func (b *untouchable) Read([]byte) (int, error)    { b.t.Error("body was read"); return 0, io.EOF }
func (b *untouchable) Write(p []byte) (int, error) { return len(p), nil }
func (b *untouchable) Close() error                { b.t.Error("body was closed"); return nil }

func TestDetectTouchesNot(t *testing.T) {
	for _, tt := range []struct {
		name      string
		code      int
		length    int64
		ctype     string
		edit      func(*http.Response)
		throttled bool
	}{
		{name: "stream", code: 200, length: -1, ctype: "text/event-stream"},
		{name: "JSON of unknown length", code: 200, length: -1, ctype: "application/json"},
		{name: "JSON of length 0", code: 200, length: 0, ctype: "application/json"},
		{name: "larger JSON", code: 200, length: maxSmall + 1, ctype: "application/json"},
		{name: "decompressed", code: 200, length: 100, ctype: "application/json", edit: func(r *http.Response) { r.Uncompressed = true }},
		{name: "no type", code: 200, length: 100},
		{name: "text", code: 200, length: 100, ctype: "text/plain"},
		{name: "text/json", code: 200, length: 100, ctype: "text/json"},
		{name: "JSON lines", code: 200, length: 100, ctype: "application/jsonl"},
		{name: "another +json", code: 200, length: 100, ctype: "model/gltf+json"},
		{name: "JSON in a parameter", code: 200, length: 100, ctype: "text/plain; a=application/json"},
		{name: "101", code: 101, length: 100, ctype: "application/json"},
		{name: "103", code: 103, length: 100, ctype: "application/json"},
		{name: "301", code: 301, length: 100, ctype: "application/json"},
		{name: "399", code: 399, length: 100, ctype: "application/json"},
		{name: "no status code", code: 0, length: 100, ctype: "application/json"},
		{name: "HEAD", code: 200, length: 100, ctype: "application/json", edit: func(r *http.Response) { r.Request.Method = "HEAD" }},
		{name: "HEAD 503", code: 503, length: 100, ctype: "application/json", edit: func(r *http.Response) { r.Request.Method = "HEAD" }},
		{name: "HEAD 429", code: 429, length: 100, edit: func(r *http.Response) { r.Request.Method = "HEAD" }, throttled: true},
		{name: "brotli 429", code: 429, length: 100, edit: func(r *http.Response) { r.Header.Set("Content-Encoding", "br") }, throttled: true},
		{name: "twice gzip 429", code: 429, length: 100, edit: func(r *http.Response) { r.Header.Set("Content-Encoding", "gzip, gzip") }, throttled: true},
		{name: "brotli 503", code: 503, length: 100, edit: func(r *http.Response) { r.Header.Set("Content-Encoding", "br") }},
		{name: "brotli 200", code: 200, length: 100, ctype: "application/json", edit: func(r *http.Response) { r.Header.Set("Content-Encoding", "br") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp := answerOf(tt.code, "", "Content-Type", tt.ctype)
			body := &untouchable{t}
			resp.Body, resp.ContentLength = body, tt.length
			if tt.edit != nil {
				tt.edit(resp)
			}
			if s, ok := Detect(resp); s != (Status{}) || ok != tt.throttled {
				t.Errorf("Detect = %+v, %v; want none, %v", s, ok, tt.throttled)
			}
			if resp.Body != io.ReadCloser(body) {
				t.Errorf("Body became a %T", resp.Body)
			}
		})
	}

	for _, body := range []io.ReadCloser{nil, http.NoBody} {
		for _, code := range []int{200, 429, 503} {
			resp := answerOf(code, "")
			resp.Body, resp.ContentLength = body, 100
			if _, ok := Detect(resp); ok != (code == 429) || resp.Body != body {
				t.Errorf("HTTP %d with body %v: %v, body %v", code, body, ok, resp.Body)
			}
		}
	}
	if s, ok := Detect(nil); s != (Status{}) || ok {
		t.Errorf("Detect(nil) = %+v, %v", s, ok)
	}
	if _, ok := Detect(&http.Response{StatusCode: 429}); !ok {
		t.Error("429 without anything is no throttle")
	}
}

func TestDetectLooks(t *testing.T) {
	for _, tt := range []struct {
		code   int
		ctype  string
		length int64
	}{
		{200, "application/json", 1},
		{200, "application/json", maxSmall},
		{200, "application/json; charset=utf-8", 100},
		{200, " Application/JSON ;odata", 100},
		{200, "application/problem+json", 100},
		{206, "application/vnd.api+json;a=b", 100},
		{429, "", -1},
		{400, "text/html", 0},
		{500, "text/event-stream", 1 << 40},
		{999, "image/png", 100},
	} {
		resp := answerOf(tt.code, bodyMock, "Content-Type", tt.ctype)
		resp.ContentLength = tt.length
		if s, ok := Detect(resp); s != statusMock || !ok {
			t.Errorf("%+v: Detect = %+v, %v", tt, s, ok)
		}
	}
	resp := answerOf(429, `{"status":{"code":11003}}`, "Content-Encoding", "identity")
	resp.Request = nil
	if s, ok := Detect(resp); s.Code != 11003 || ok {
		t.Errorf("identity: Detect = %+v, %v", s, ok)
	}
}

// transcript reads all that r gives: its bytes, with its errors in between.
func transcript(r io.Reader) string {
	var b strings.Builder
	buf := make([]byte, 100)
	for errs := 0; errs < 3; {
		n, err := r.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			errs++
			fmt.Fprintf(&b, "<%v>", err)
		}
	}
	return b.String()
}

func TestDetectRestores(t *testing.T) {
	boom := errors.New("boom")
	long := `{"a":"` + strings.Repeat("x", 3*maxLook) + `"}`
	for name, reader := range map[string]func(body string) io.Reader{
		"plain":         func(body string) io.Reader { return strings.NewReader(body) },
		"OneByteReader": func(body string) io.Reader { return iotest.OneByteReader(strings.NewReader(body)) },
		"HalfReader":    func(body string) io.Reader { return iotest.HalfReader(strings.NewReader(body)) },
		"DataErrReader": func(body string) io.Reader { return iotest.DataErrReader(strings.NewReader(body)) },
		"TimeoutReader": func(body string) io.Reader { // by bytes, lest the place depend on the buffer's size
			return iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(body)))
		},
		"ErrReader": func(string) io.Reader { return iotest.ErrReader(boom) },
		"error in the middle": func(body string) io.Reader {
			n := len(body) / 2
			return io.MultiReader(strings.NewReader(body[:n]), iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(body[n:]))), iotest.ErrReader(boom))
		},
		"error with data": func(body string) io.Reader {
			return iotest.DataErrReader(io.MultiReader(strings.NewReader(body), iotest.ErrReader(boom)))
		},
		"error at the bound": func(body string) io.Reader {
			return io.MultiReader(strings.NewReader(body[:min(len(body), maxLook)]), iotest.ErrReader(boom))
		},
	} {
		for _, body := range []string{"", "{", bodyMock, bodyTypes, long, long[:maxLook], "\x00" + long, zipped(bodyMock), zipped(long)} {
			for _, coding := range []string{"", "gzip", "br"} {
				want := transcript(reader(body))
				resp := answerOf(429, "", "Content-Encoding", coding)
				resp.Body = io.NopCloser(reader(body))
				Detect(resp)
				Detect(resp)
				if got := transcript(resp.Body); got != want {
					t.Errorf("%s of %.20q..., coding %q: reads %.200q, want %.200q", name, body, coding, got, want)
				}
			}
		}
	}

	t.Run("iotest", func(t *testing.T) {
		for _, body := range []string{bodyMock, long} {
			resp := answerOf(503, body)
			Detect(resp)
			if err := iotest.TestReader(resp.Body, []byte(body)); err != nil {
				t.Error(err)
			}
		}
	})
}

// What was seen before the connection broke counts, and the error stays.
func TestDetectBrokenConnection(t *testing.T) {
	boom := errors.New("boom")
	resp := answerOf(503, "")
	resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(bodyMock[:40]), iotest.ErrReader(boom)))
	if s, ok := Detect(resp); s.Code != 11005 || !ok {
		t.Errorf("Detect = %+v, %v", s, ok)
	}
	if got, err := io.ReadAll(resp.Body); string(got) != bodyMock[:40] || err != boom {
		t.Errorf("body = %q, %v", got, err)
	}
}

type closeCounter struct {
	io.Reader
	closed int
	err    error
}

func (c *closeCounter) Read(p []byte) (int, error) {
	if c.closed > 0 {
		return 0, http.ErrBodyReadAfterClose
	}
	return c.Reader.Read(p)
}

func (c *closeCounter) Close() error { c.closed++; return c.err }

func TestDetectClose(t *testing.T) {
	body := &closeCounter{Reader: strings.NewReader(bodyMock), err: errors.New("boom")}
	resp := answerOf(429, "")
	resp.Body = body
	Detect(resp)
	if body.closed != 0 {
		t.Error("Detect closed the body")
	}
	for n := 1; n < 3; n++ {
		if err := resp.Body.Close(); err != body.err || body.closed != n {
			t.Errorf("Close %d = %v, which reached the original %d times", n, err, body.closed)
		}
	}
	if n, err := resp.Body.Read(make([]byte, 10)); n != 0 || err != http.ErrBodyReadAfterClose {
		t.Errorf("Read after Close = %d, %v", n, err)
	}
}

func TestDetectCloseDuringRead(t *testing.T) {
	r, w := io.Pipe()
	resp := answerOf(429, "")
	resp.Body = r
	var wg sync.WaitGroup
	wg.Go(func() { io.WriteString(w, bodyMock) })
	Detect(resp)
	wg.Go(func() { io.Copy(io.Discard, resp.Body) })
	resp.Body.Close()
	wg.Wait()
}

// staller gives its chunks, one for each Read. A further Read, which would
// block on a connection, fails the test.
type staller struct {
	t      *testing.T
	chunks []string
}

func (s *staller) Read(p []byte) (int, error) {
	if len(s.chunks) == 0 {
		s.t.Error("read on although it was settled")
		return 0, io.EOF
	}
	n := copy(p, s.chunks[0])
	if s.chunks[0] = s.chunks[0][n:]; s.chunks[0] == "" {
		s.chunks = s.chunks[1:]
	}
	return n, nil
}

func TestDetectStalls(t *testing.T) {
	bytewise := strings.Split(bodyMock[:len(bodyMock)-1], "")
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, bodyMock[:len(bodyMock)-1])
	z.Flush()
	for _, tt := range []struct {
		name   string
		chunks []string
		coding string
		known  bool
	}{
		{"after the status", []string{`{"status":{"code":11005}`}, "", true},
		{"code last", []string{`{"status":{"details":"x",`, `"code":110`, `05`, `}`}, "", true},
		{"bytewise", bytewise, "", true},
		{"after result.status", []string{`{"result":{"status":{"code":11005}`}, "", true},
		{"after error and status", []string{`{"error":{},`, `"status":{"code":11005}`}, "", true},
		{"in the outputs", []string{`{"status":{"code":11005},"outputs":[{`}, "", true},
		{"gzip, flushed", []string{b.String()}, "gzip", true},
		{"after the object", []string{`{"error":{"code":"x"}}`}, "", false},
		{"after no JSON", []string{"<"}, "", false},
		{"after an event", []string{"data: {}\n\n"}, "", false},
		{"in an array", []string{"["}, "", false},
		{"after no gzip", []string{"not gzip at all"}, "gzip", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := strings.Join(tt.chunks, "")
			resp := answerOf(429, "", "Content-Encoding", tt.coding)
			src := &staller{t, tt.chunks}
			resp.Body = io.NopCloser(src)
			if s, ok := Detect(resp); !ok || s.Code == codeThrottled != tt.known {
				t.Errorf("Detect = %+v, %v", s, ok)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want || len(src.chunks) > 0 {
				t.Errorf("body = %q, %v; want %q", got, err, want)
			}
		})
	}
}

// endless gives head, then tail again and again, and counts.
type endless struct {
	head, tail string
	n          int
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		if k := e.n + i; k < len(e.head) {
			p[i] = e.head[k]
		} else {
			p[i] = e.tail[(k-len(e.head))%len(e.tail)]
		}
	}
	e.n += len(p)
	return len(p), nil
}

func TestDetectBounds(t *testing.T) {
	bomb := zipped(`{"a":"` + strings.Repeat("x", 10<<20))
	for _, tt := range []struct{ name, head, tail, coding string }{
		{"brackets", "", "[", ""},
		{"brackets in an object", `{"a":`, "[", ""},
		{"objects", "", `{"a":`, ""},
		{"results", "", `{"result":`, ""},
		{"statuses", "", `{"status":`, ""},
		{"string", `{"status":{"code":"`, "1", ""},
		{"key", `{"`, "x", ""},
		{"number", `{"status":{"code":`, "1", ""},
		{"space", "", " ", ""},
		{"members", `{`, `"status":0,`, ""},
		{"escapes", `{"a":"`, `\u0000`, ""},
		{"no gzip", "", "x", "gzip"},
		{"gzip name", "\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x00", "x", "gzip"},
		{"gzip extra", "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\x00\xff\xff", "x", "gzip"},
		{"gzip of nothing", "", zipped(""), "gzip"},
		{"gzip bomb", "", bomb, "gzip"},
		{"gzip of spaces", zipped(strings.Repeat(" ", 10<<20)), "x", "gzip"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp := answerOf(429, "", "Content-Encoding", tt.coding)
			src := &endless{head: tt.head, tail: tt.tail}
			resp.Body = io.NopCloser(src)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s, ok := Detect(resp)
			runtime.ReadMemStats(&after)
			if s != (Status{}) || !ok {
				t.Errorf("Detect = %+v, %v", s, ok)
			}
			if src.n > maxLook {
				t.Errorf("%d bytes read", src.n)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
				t.Errorf("%d bytes allocated", n)
			}
			want := make([]byte, 2*maxLook)
			(&endless{head: tt.head, tail: tt.tail}).Read(want)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("body differs: %v", err)
			}
		})
	}

	t.Run("over-long", func(t *testing.T) {
		for _, tt := range []struct {
			body string
			want Status
		}{
			{`{"status":{"code":11005,"details":"de","x":"` + strings.Repeat("x", maxLook) + `"}}`, Status{Code: 11005, Details: "de"}},
			{`{"status":{"code":11005,"details":"` + strings.Repeat("x", maxLook) + `"}}`, Status{Code: 11005}},
			{`{"x":"` + strings.Repeat("x", maxLook) + `","status":{"code":11005}}`, Status{}},
		} {
			for _, z := range []bool{false, true} {
				resp := answerOf(503, tt.body)
				if z {
					resp = answerOf(503, zipped(tt.body), "Content-Encoding", "gzip")
				}
				if s, ok := Detect(resp); s != tt.want || ok != (tt.want.Code != 0) {
					t.Errorf("gzip %v: Detect = %.200v, %v; want %v", z, s, ok, tt.want)
				}
			}
		}
	})
}

// lazyReader gives nothing n times before each byte.
type lazyReader struct {
	io.Reader
	n, i int
}

func (l *lazyReader) Read(p []byte) (int, error) {
	if l.i++; l.i%(l.n+1) != 0 {
		return 0, nil
	}
	return iotest.OneByteReader(l.Reader).Read(p)
}

func TestDetectLazyBody(t *testing.T) {
	for _, coding := range []string{"", "gzip"} {
		src := &lazyReader{strings.NewReader(bodyMock), math.MaxInt - 1, 0}
		resp := answerOf(429, "", "Content-Encoding", coding)
		resp.Body = io.NopCloser(src)
		if s, ok := Detect(resp); s != (Status{}) || !ok || src.i > 200 {
			t.Errorf("Detect = %+v, %v after %d reads", s, ok, src.i)
		}
	}
	resp := answerOf(503, "")
	resp.Body = io.NopCloser(&lazyReader{strings.NewReader(bodyMock), 99, 0})
	if s, ok := Detect(resp); s != statusMock || !ok {
		t.Errorf("Detect = %+v, %v", s, ok)
	}
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != bodyMock {
		t.Errorf("body = %q, %v", got, err)
	}
}

func TestDetectStreamAllocatesNothing(t *testing.T) {
	resp := answerOf(200, "data: {}\n\n", "Content-Type", "text/event-stream")
	resp.ContentLength = -1
	if n := testing.AllocsPerRun(100, func() { Detect(resp) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
