package clarifaihttp

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

// Bodies as Clarifai documents and tests them.
const (
	bodyDocumented = `{"status":{"code":"CONN_THROTTLED","description":"Making too many requests","details":"exceeded limit of 15 requests per second","req_id":"..."}}`
	bodyMock       = `{"status":{"code":11005,"description":"Too Many Requests","details":"Making too many requests, error_details: exceeded limit of 10 requests per second"}}`
	bodyTypes      = `{"status":{"code":10000,"description":"Ok"},"model_types":[{"id":"visual-classifier","title":"Visual Classifier","description":"...","input_fields":[...],"output_fields":[...]}, ...]}`
)

var (
	statusDocumented = Status{11005, "Making too many requests", "exceeded limit of 15 requests per second", "..."}
	statusMock       = Status{11005, "Too Many Requests", "Making too many requests, error_details: exceeded limit of 10 requests per second", ""}
)

// answerOf returns an answer as the Transport of net/http would, with a
// Content-Length and of type JSON. The header is given as pairs.
func answerOf(code int, body string, header ...string) *http.Response {
	resp := &http.Response{
		StatusCode:    code,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       httptest.NewRequest("POST", "/v2/models", nil),
	}
	for i := 0; i < len(header); i += 2 {
		resp.Header.Set(header[i], header[i+1])
	}
	return resp
}

func zipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	w.Close()
	return b.String()
}

func TestDetectBody(t *testing.T) {
	const ( // verdicts: under 429, under 503 and small JSON under 200
		throttle = "throttle" // yes, yes: CONN_THROTTLED
		bare     = "bare"     // yes, no: no Clarifai status
		other    = "other"    // no, no: a Clarifai status of something else, or insufficient_quota
	)
	for _, tt := range []struct {
		name, body string
		verdict    string
		want       Status
	}{
		{"documented", bodyDocumented, throttle, statusDocumented},
		{"mock", bodyMock, throttle, statusMock},
		{"model types", bodyTypes, other, Status{10000, "Ok", "", ""}},
		{"streaming", `{"result":` + bodyDocumented + `}`, throttle, statusDocumented},

		{"numeric string", `{"status":{"code":"11005"}}`, throttle, Status{Code: 11005}},
		{"hourly", `{"status":{"code":11003}}`, other, Status{Code: 11003}},
		{"monthly", `{"status":{"code":"11004"}}`, other, Status{Code: 11004}},
		{"account", `{"status":{"code":11006}}`, other, Status{Code: 11006}},
		{"hourly by name", `{"status":{"code":"CONN_EXCEED_HOURLY_LIMIT"}}`, other, Status{Code: 11003}},
		{"monthly by name", `{"status":{"code":"CONN_EXCEED_MONTHLY_LIMIT"}}`, other, Status{Code: 11004}},
		{"account by name", `{"status":{"code":"CONN_EXCEEDS_LIMITS"}}`, other, Status{Code: 11006}},
		{"unlisted name", `{"status":{"code":"MODEL_BUSY_PLEASE_RETRY","description":"Busy"}}`, other, Status{0, "Busy", "", ""}},
		{"name of one word", `{"status":{"code":"FAILURE"}}`, other, Status{}},
		{"least", `{"status":{"code":10000}}`, other, Status{Code: 10000}},
		{"most", `{"status":{"code":99999}}`, other, Status{Code: 99999}},

		{"HTTP's code", `{"status":{"code":429,"description":"slow down"}}`, bare, Status{}},
		{"gRPC's code", `{"status":{"code":8}}`, bare, Status{}},
		{"gRPC's name", `{"status":{"code":"ResourceExhausted"}}`, bare, Status{}},
		{"code 0", `{"status":{"code":0}}`, bare, Status{}},
		{"four digits", `{"status":{"code":9999}}`, bare, Status{}},
		{"six digits", `{"status":{"code":110050}}`, bare, Status{}},
		{"negative", `{"status":{"code":-11005}}`, bare, Status{}},
		{"negative, five long", `{"status":{"code":-1100}}`, bare, Status{}},
		{"plus", `{"status":{"code":"+11005"}}`, bare, Status{}},
		{"leading zero", `{"status":{"code":"011005"}}`, bare, Status{}},
		{"leading zero, five long", `{"status":{"code":"01100"}}`, bare, Status{}},
		{"padded", `{"status":{"code":" 11005 "}}`, bare, Status{}},
		{"fraction", `{"status":{"code":11005.5}}`, bare, Status{}},
		{"whole fraction", `{"status":{"code":11005.0}}`, bare, Status{}},
		{"exponent", `{"status":{"code":1.1005e4}}`, bare, Status{}},
		{"exponent, five long", `{"status":{"code":11E03}}`, bare, Status{}},
		{"true", `{"status":{"code":true}}`, bare, Status{}},
		{"null", `{"status":{"code":null}}`, bare, Status{}},
		{"empty", `{"status":{"code":""}}`, bare, Status{}},
		{"object", `{"status":{"code":{"code":11005}}}`, bare, Status{}},
		{"array", `{"status":{"code":[11005]}}`, bare, Status{}},
		{"lower-case name", `{"status":{"code":"conn_throttled"}}`, bare, Status{}},
		{"words", `{"status":{"code":"CONN THROTTLED"}}`, bare, Status{}},

		{"code last", `{"status":{"req_id":"r","details":"de","x":[{"code":1}],"description":"d","code":11005}}`, throttle, Status{11005, "d", "de", "r"}},
		{"texts of other types", `{"status":{"description":1,"details":{"details":"x"},"req_id":null,"code":11005}}`, throttle, Status{Code: 11005}},
		{"escaped key", `{"\u0073tatus":{"code":11005}}`, throttle, Status{Code: 11005}},
		{"white space", " \r\n\t{ \"status\" : { \"code\" : 11005 } }", throttle, Status{Code: 11005}},
		{"status last", `{"outputs":[{"status":{"code":10000}},[[]],{}],"a":null,"b":{"status":{"code":10000}},"status":{"code":11005}}`, throttle, Status{Code: 11005}},

		{"of an output", `{"outputs":[{"status":{"code":11005}}]}`, bare, Status{}},
		{"of an input", `{"inputs":[{"status":{"code":11005}}]}`, bare, Status{}},
		{"mixed", `{"status":{"code":10010},"outputs":[{"status":{"code":11005}}]}`, other, Status{Code: 10010}},
		{"of another object", `{"data":{"status":{"code":11005}}}`, bare, Status{}},
		{"too deep", `{"result":{"result":{"status":{"code":11005}}}}`, bare, Status{}},
		{"in the status", `{"status":{"status":{"code":11005}}}`, bare, Status{}},
		{"array of results", `{"result":[{"status":{"code":11005}}]}`, bare, Status{}},
		{"array of statuses", `{"status":[{"code":11005}]}`, bare, Status{}},
		{"array of answers", `[{"status":{"code":11005}}]`, bare, Status{}},
		{"code alone", `{"code":11005}`, bare, Status{}},
		{"error's code", `{"error":{"code":11005}}`, bare, Status{}},
		{"upper-case status", `{"Status":{"code":11005}}`, bare, Status{}},
		{"upper-case code", `{"status":{"Code":11005}}`, bare, Status{}},
		{"text only", `{"status":{"description":"Making too many requests","details":"exceeded limit of 15 requests per second"}}`, bare, Status{}},

		{"first code", `{"status":{"code":11005,"code":11003}}`, throttle, Status{Code: 11005}},
		{"second code", `{"status":{"code":11003,"code":11005}}`, other, Status{Code: 11003}},
		{"second code, first none", `{"status":{"code":429,"code":11005}}`, bare, Status{}},
		{"second status", `{"status":{"code":11003},"status":{"code":11005}}`, other, Status{Code: 11003}},
		{"second status, first none", `{"status":"error","status":{"code":11005}}`, bare, Status{}},
		{"second result", `{"result":{},"result":{"status":{"code":11005}}}`, bare, Status{}},
		{"first text", `{"status":{"details":"a","details":"b","code":11005}}`, throttle, Status{Code: 11005, Details: "a"}},
		{"status before result", `{"status":{"code":11005},"result":{"status":{"code":11003}}}`, throttle, Status{Code: 11005}},
		{"result before status", `{"result":{"status":{"code":11003}},"status":{"code":11005}}`, other, Status{Code: 11003}},
		{"result after none", `{"status":"error","result":{"status":{"code":11005}}}`, throttle, Status{Code: 11005}},
		{"status after none", `{"result":{"status":{"code":8,"details":"x"}},"status":{"code":11005}}`, throttle, Status{Code: 11005}},

		{"insufficient_quota", `{"error":{"message":"m","type":"t","code":"insufficient_quota"}}`, other, Status{}},
		{"another error", `{"error":{"message":"m","type":"insufficient_quota","code":"rate_limit_exceeded"}}`, bare, Status{}},
		{"quota elsewhere", `{"code":"insufficient_quota","error":"insufficient_quota"}`, bare, Status{}},
		{"quota too deep", `{"error":{"error":{"code":"insufficient_quota"}}}`, bare, Status{}},
		{"quota second", `{"error":{"code":null,"code":"insufficient_quota"}}`, bare, Status{}},
		{"quota, then 11005", `{"error":{"code":"insufficient_quota"},"status":{"code":11005}}`, throttle, Status{Code: 11005}},
		{"11005, then quota", `{"status":{"code":11005},"error":{"code":"insufficient_quota"}}`, throttle, Status{Code: 11005}},

		{"no body", "", bare, Status{}},
		{"HTML", "<html><h1>429 Too Many Requests</h1></html>", bare, Status{}},
		{"plain text", "slow down", bare, Status{}},
		{"JSON text", `"CONN_THROTTLED"`, bare, Status{}},
		{"JSON number", `11005`, bare, Status{}},
		{"JSON null", `null`, bare, Status{}},
		{"byte order mark", "\ufeff" + bodyMock, bare, Status{}},
		{"broken before", `{"a":,"status":{"code":11005}}`, bare, Status{}},
		{"broken after", `{"status":{"code":11005}, oops`, throttle, Status{Code: 11005}},
		{"broken within", `{"status":{"code":11005,"details":"de" oops`, throttle, Status{Code: 11005, Details: "de"}},
		{"cut after the code", `{"status":{"code":11005,`, throttle, Status{Code: 11005}},
		{"cut in a text", `{"status":{"description":"d","code":11005,"details":"exceeded li`, throttle, Status{Code: 11005, Description: "d"}},
		{"cut in the code", `{"status":{"code":110`, bare, Status{}},
		{"cut in the name", `{"status":{"code":"CONN_THROTTLED`, bare, Status{}},
		{"cut before the code", `{"status":{"description":"Making too many requests"`, bare, Status{}},
		{"bad UTF-8", "{\"status\":{\"code\":11005,\"details\":\"a\xff\"}}", throttle, Status{Code: 11005, Details: "a\ufffd"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check := func(resp *http.Response, body string, throttled bool) {
				t.Helper()
				for range 2 { // the same verdict when asked again
					if got, ok := Detect(resp); got != tt.want || ok != throttled {
						t.Errorf("HTTP %d: Detect = %+v, %v; want %+v, %v", resp.StatusCode, got, ok, tt.want, throttled)
					}
				}
				if got, err := io.ReadAll(resp.Body); err != nil || string(got) != body {
					t.Errorf("HTTP %d: body after Detect = %q, %v; want %q", resp.StatusCode, got, err, body)
				}
			}
			check(answerOf(429, tt.body), tt.body, tt.verdict != other)
			for _, code := range []int{200, 202, 299, 400, 403, 500, 503, 599} {
				check(answerOf(code, tt.body), tt.body, tt.verdict == throttle)
			}
			for _, coding := range []string{"gzip", "GZIP", " x-gzip "} {
				z := zipped(tt.body)
				check(answerOf(429, z, "Content-Encoding", coding), z, tt.verdict != other)
				check(answerOf(200, z, "Content-Encoding", coding), z, tt.verdict == throttle)
			}
		})
	}
}

func TestDetectRequestID(t *testing.T) {
	const withID = `{"status":{"code":11005,"req_id":"body"}}`
	for _, tt := range []struct {
		name string
		resp *http.Response
		want string
	}{
		{"body alone", answerOf(429, withID), "body"},
		{"body first", answerOf(429, withID, "X-Clarifai-Request-Id", "header"), "body"},
		{"header", answerOf(429, bodyMock, "x-clarifai-request-id", "header"), "header"},
		{"no status", answerOf(429, "", "X-Clarifai-Request-Id", "header"), "header"},
		{"no Clarifai status", answerOf(429, `{"status":{"code":8,"req_id":"foreign"}}`, "X-Clarifai-Request-Id", "header"), "header"},
		{"not looked at", answerOf(304, "", "X-Clarifai-Request-Id", "header"), "header"},
	} {
		if got, _ := Detect(tt.resp); got.RequestID != tt.want {
			t.Errorf("%s: RequestID = %q, want %q", tt.name, got.RequestID, tt.want)
		}
	}
}

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

func TestCheckRetry(t *testing.T) {
	boom, why := errors.New("boom"), errors.New("why")
	done, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	late, cancelLate := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancelLate()
	for _, tt := range []struct {
		name  string
		ctx   context.Context
		resp  *http.Response
		err   error
		retry bool
		want  error
	}{
		{"throttle", t.Context(), answerOf(429, bodyMock), nil, true, nil},
		{"small throttle", t.Context(), answerOf(200, bodyMock), nil, true, nil},
		{"gateway", t.Context(), answerOf(429, ""), nil, true, nil},
		{"quota", t.Context(), answerOf(429, `{"status":{"code":11004}}`), nil, false, nil},
		{"success", t.Context(), answerOf(200, bodyTypes), nil, false, nil},
		{"503", t.Context(), answerOf(503, ""), nil, false, nil},
		{"error", t.Context(), nil, boom, false, nil},
		{"neither", t.Context(), nil, nil, false, nil},
		{"cancelled", done, answerOf(429, bodyMock), nil, false, why},
		{"cancelled, error", done, nil, boom, false, why},
		{"late", late, answerOf(429, bodyMock), nil, false, context.DeadlineExceeded},
	} {
		if retry, err := CheckRetry(tt.ctx, tt.resp, tt.err); retry != tt.retry || err != tt.want {
			t.Errorf("%s: CheckRetry = %v, %v; want %v, %v", tt.name, retry, err, tt.retry, tt.want)
		}
	}
}

func TestCheckRetryInClient(t *testing.T) {
	answers := []struct {
		code int
		body string
	}{{429, bodyDocumented}, {200, bodyMock}, {429, ""}, {503, `{"status":{"code":98004}}`}}
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(answers[calls].code)
		io.WriteString(w, answers[calls].body)
		calls++
	}))
	defer server.Close()
	client := &retryablehttp.Client{
		HTTPClient: server.Client(),
		RetryMax:   10,
		CheckRetry: CheckRetry,
		Backoff:    func(time.Duration, time.Duration, int, *http.Response) time.Duration { return 0 },
	}
	resp, err := client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); calls != 4 || resp.StatusCode != 503 || err != nil || string(body) != answers[3].body {
		t.Errorf("%d calls; HTTP %d %q, %v", calls, resp.StatusCode, body, err)
	}
	boom := errors.New("boom")
	client.HTTPClient = &http.Client{Transport: failingBase{boom}}
	if _, err := client.Get(server.URL); !errors.Is(err, boom) {
		t.Errorf("error %v, want %v", err, boom)
	}
}

type failingBase struct{ err error }

func (f failingBase) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 500e6, time.UTC)
	const date = "Fri, 01 May 2026 12:01:00 GMT" // the server's clock is a minute ahead
	for _, tt := range []struct {
		value, date string
		want        time.Duration
		ok          bool
	}{
		{"15", "", 15 * time.Second, true},
		{" \t15 ", "", 15 * time.Second, true},
		{"0", "", 0, true},
		{"007", "", 7 * time.Second, true},
		{"15", date, 15 * time.Second, true},
		{"-1", "", 0, true},
		{"-0", "", 0, true},
		{"-" + strings.Repeat("9", 100), "", 0, true},
		{"9223372036", "", 9223372036 * time.Second, true},
		{"9223372037", "", math.MaxInt64, true},
		{"9223372036854775807", "", math.MaxInt64, true},
		{"9223372036854775808", "", math.MaxInt64, true},
		{strings.Repeat("9", 1<<16), "", math.MaxInt64, true},
		{strings.Repeat("0", 1<<16) + "2", "", 2 * time.Second, true},

		{"Fri, 01 May 2026 12:01:15 GMT", date, 15 * time.Second, true},
		{"Friday, 01-May-26 12:01:15 GMT", date, 15 * time.Second, true},
		{"Fri May  1 12:01:15 2026", date, 15 * time.Second, true},
		{" Fri, 01 May 2026 12:01:15 GMT ", " " + date + " ", 15 * time.Second, true},
		{"Fri, 01 May 2026 12:01:15 GMT", "", 74500 * time.Millisecond, true},
		{"Fri, 01 May 2026 12:01:15 GMT", "yesterday", 74500 * time.Millisecond, true},
		{"Fri, 01 May 2026 12:00:59 GMT", date, 0, true},
		{date, date, 0, true},
		{"Thu, 01 Jan 1970 00:00:00 GMT", "", 0, true},
		{"Fri, 31 Dec 9999 23:59:59 GMT", "", math.MaxInt64, true},
		{"Sat, 01 Jan 0000 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", 0, true},

		{"", "", 0, false},
		{" ", "", 0, false},
		{"soon", "", 0, false},
		{"-", "", 0, false},
		{"--1", "", 0, false},
		{"+5", "", 0, false},
		{"1.5", "", 0, false},
		{"1e3", "", 0, false},
		{"0x10", "", 0, false},
		{"1_000", "", 0, false},
		{"15s", "", 0, false},
		{"15, 20", "", 0, false},
		{"٣", "", 0, false},
		{strings.Repeat("9", 100) + "x", "", 0, false},
		{"2026-05-01T12:01:15Z", "", 0, false},
	} {
		h := http.Header{"Retry-After": {tt.value, "99"}, "Date": {tt.date}}
		if got, ok := retryAfter(h, now); got != tt.want || ok != tt.ok {
			t.Errorf("retryAfter(%.40q, date %q) = %v, %v; want %v, %v", tt.value, tt.date, got, ok, tt.want, tt.ok)
		}
	}
	for _, h := range []http.Header{nil, {}, {"Retry-After": nil}, {"Date": {date}}} {
		if got, ok := retryAfter(h, now); got != 0 || ok {
			t.Errorf("retryAfter(%v) = %v, %v; want none", h, got, ok)
		}
	}
}

func TestLimitOf(t *testing.T) {
	for _, tt := range []struct {
		details string
		want    int
		ok      bool
	}{
		{statusDocumented.Details, 15, true},
		{statusMock.Details, 10, true},
		{"exceeded limit of 1 request per second", 1, true},
		{"Limit of 100 Requests per second.", 100, true},
		{"limit of 999999999 requests per second", 999999999, true},
		{"limit of 0010 requests per second", 10, true},
		{"limit of 5 requests per second, limit of 7 requests per second", 5, true},
		{"limit of 600 requests per minute, limit of 10 requests per second", 10, true},

		{"", 0, false},
		{"limit of requests per second", 0, false},
		{"limit of 0 requests per second", 0, false},
		{"limit of -5 requests per second", 0, false},
		{"limit of 0.5 requests per second", 0, false},
		{"limit of 1,000 requests per second", 0, false},
		{"limit of ten requests per second", 0, false},
		{"limit of 10 requests per minute", 0, false},
		{"limit of 10 requests", 0, false},
		{"limit of 10 tokens per second", 0, false},
		{"10 requests per second", 0, false},
		{"delimit of 10 requests per second", 0, false},
		{"limit of " + strings.Repeat("9", 1000) + " requests per second", 0, false},
	} {
		got, ok := limitOf(tt.details)
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("limitOf(%.60q) = %d, %v; want %d, %v", tt.details, got, ok, tt.want, tt.ok)
		}
	}
}

// firstValues returns the values of names at their first occurrence in the object
// that raw is, and their order.
func firstValues(raw []byte, names ...string) (order []string, values map[string]json.RawMessage) {
	values = make(map[string]json.RawMessage)
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, _ := dec.Token(); tok != json.Delim('{') {
		return nil, values
	}
	for dec.More() {
		key, _ := dec.Token()
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			panic(err) // raw is valid
		}
		for _, name := range names {
			if _, dup := values[name]; key == name && !dup {
				order, values[name] = append(order, name), value
			}
		}
	}
	return order, values
}

var (
	plainCode = regexp.MustCompile(`^"?([1-9][0-9]{4})"?$`)
	plainName = regexp.MustCompile(`^[A-Z][0-9A-Z_]*$`)
)

// plainStatus is what [tokens.status] finds, by decoding the whole.
func plainStatus(raw []byte) (s Status, ok bool) {
	_, values := firstValues(raw, "code", "description", "details", "req_id")
	text := func(key string) (text string) {
		if json.Unmarshal(values[key], &text) != nil {
			return ""
		}
		return text
	}
	code := text("code")
	if code == "" {
		code = string(values["code"])
	}
	switch m := plainCode.FindStringSubmatch(code); {
	case m != nil:
		s.Code, _ = strconv.Atoi(m[1])
	case !plainName.MatchString(code):
		return s, false
	case code == "CONN_EXCEED_HOURLY_LIMIT":
		s.Code = 11003
	case code == "CONN_EXCEED_MONTHLY_LIMIT":
		s.Code = 11004
	case code == "CONN_THROTTLED":
		s.Code = 11005
	case code == "CONN_EXCEEDS_LIMITS":
		s.Code = 11006
	}
	s.Description, s.Details, s.RequestID = text("description"), text("details"), text("req_id")
	return s, true
}

// plainDetect is what Detect finds in a looked-at body.
func plainDetect(httpCode int, raw []byte) (Status, bool) {
	quota := false
	order, values := firstValues(raw, "status", "result", "error")
	for _, key := range order {
		value := values[key]
		switch key {
		case "error":
			_, inner := firstValues(value, "code")
			var code any
			json.Unmarshal(inner["code"], &code)
			quota = code == "insufficient_quota"
			continue
		case "result":
			_, inner := firstValues(value, "status")
			value = inner["status"]
		}
		if s, ok := plainStatus(value); ok {
			return s, s.Code == 11005
		}
	}
	return Status{}, httpCode == 429 && !quota
}

func FuzzDetect(f *testing.F) {
	for _, body := range []string{
		"", "[", "null", "<html>", bodyDocumented, bodyMock, bodyTypes,
		`{"result":` + bodyMock + `}`,
		`{"status":{"code":"11005"},"error":{"code":"insufficient_quota"}}`,
		`{"error":{"code":"insufficient_quota"}}`,
		`{"status":"error","result":{"status":{"code":"CONN_EXCEEDS_LIMITS","details":null}}}`,
		`{"outputs":[{"status":{"code":11005}}],"status":{"code":1.1005e4,"code":11005}}`,
		`{"\u0073tatus":{"code":11005,"req_id":"\ud800"}}`,
		zipped(bodyMock), zipped(""), zipped(strings.Repeat("[", 20000)),
	} {
		for mode := range uint8(8) {
			f.Add(body, 429, mode)
		}
		f.Add(body, 200, uint8(0))
		f.Add(body, 503, uint8(1))
	}
	boom := errors.New("boom")
	f.Fuzz(func(t *testing.T, body string, code int, mode uint8) {
		plain, header := body, []string{}
		switch mode >> 3 % 3 {
		case 1: // arbitrary bytes, called gzip
			plain, header = "<", []string{"Content-Encoding", "gzip"}
		case 2:
			body, header = zipped(body), []string{"Content-Encoding", "gzip"}
		}
		reader := func() io.Reader {
			r := io.Reader(strings.NewReader(body))
			if mode&1 != 0 {
				r = iotest.OneByteReader(r)
			}
			if mode&2 != 0 {
				r = io.MultiReader(r, iotest.ErrReader(boom))
			}
			if mode&4 != 0 {
				r = iotest.DataErrReader(r)
			}
			return r
		}
		resp := answerOf(code, body, header...)
		resp.Body = io.NopCloser(reader())
		s, ok := Detect(resp)
		if got, want := transcript(resp.Body), transcript(reader()); got != want {
			t.Errorf("body reads %q after Detect, was %q", got, want)
		}

		looked := code >= 400 || 200 <= code && code < 300 && 0 < len(body) && len(body) <= 1024
		var want Status
		var wantOK bool
		switch {
		case !looked:
		case mode>>3%3 == 1 || len(plain) > maxLook || len(body) > maxLook || !json.Valid([]byte(plain)):
			if s.Code == codeThrottled != ok && code != 429 {
				t.Errorf("HTTP %d: Detect = %+v, %v", code, s, ok)
			}
			return
		default:
			want, wantOK = plainDetect(code, []byte(plain))
		}
		if s != want || ok != wantOK {
			t.Errorf("HTTP %d: Detect = %+v, %v; want %+v, %v", code, s, ok, want, wantOK)
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{
		"", "0", "15", " 15 ", "-1", "+5", "1.5", "9223372036", "9223372037", strings.Repeat("9", 30), strings.Repeat("9", 30) + "x",
		"Fri, 01 May 2026 12:01:15 GMT", "Friday, 01-May-26 12:01:15 GMT", "Fri May  1 12:01:15 2026", "Fri, 31 Dec 9999 23:59:59 GMT",
	} {
		f.Add(v, "", int64(0))
		f.Add(v, "Fri, 01 May 2026 12:01:00 GMT", int64(1777636800))
	}
	number := regexp.MustCompile(`^-?[0-9]+$`)
	f.Fuzz(func(t *testing.T, value, date string, unix int64) {
		now := time.Unix(unix, 0)
		got, ok := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, now)

		wait, wantOK := new(big.Int), true
		value, date = strings.TrimSpace(value), strings.TrimSpace(date)
		if number.MatchString(value) {
			wait.SetString(value, 10)
			wait.Mul(wait, big.NewInt(1e9))
		} else if until, err := http.ParseTime(value); err == nil {
			if d, err := http.ParseTime(date); err == nil {
				now = d
			}
			wait.Sub(big.NewInt(until.Unix()), big.NewInt(now.Unix()))
			wait.Mul(wait, big.NewInt(1e9)) // dates and now have no fraction here
			if now.Year() > 1<<20 || now.Year() < -1<<20 {
				return // beyond the range of Time.Sub
			}
		} else {
			wantOK = false
		}
		if wait.Sign() < 0 {
			wait.SetInt64(0)
		}
		if limit := big.NewInt(math.MaxInt64); wait.Cmp(limit) > 0 {
			wait = limit
		}
		if int64(got) != wait.Int64() || ok != wantOK {
			t.Errorf("retryAfter(%q, date %q, now %v) = %v, %v; want %v, %v", value, date, now, got, ok, wait, wantOK)
		}
	})
}

func BenchmarkDetect(b *testing.B) {
	run := func(name string, resp *http.Response, body string) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			src := strings.NewReader("")
			original := resp.Body
			if body != "" {
				original = io.NopCloser(src)
			}
			for b.Loop() {
				src.Reset(body)
				resp.Body = original
				Detect(resp)
			}
		})
	}
	stream := answerOf(200, "", "Content-Type", "text/event-stream")
	stream.ContentLength = -1
	run("stream", stream, "")
	run("throttle", answerOf(429, bodyDocumented), bodyDocumented)
	run("gzip", answerOf(429, zipped(bodyDocumented), "Content-Encoding", "gzip"), zipped(bodyDocumented))
	run("bare", answerOf(429, "<html>"), "<html>")
	run("small", answerOf(200, bodyTypes), bodyTypes)
}

func TestDetectStreamAllocatesNothing(t *testing.T) {
	resp := answerOf(200, "data: {}\n\n", "Content-Type", "text/event-stream")
	resp.ContentLength = -1
	if n := testing.AllocsPerRun(100, func() { Detect(resp) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
