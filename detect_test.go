package clarifaihttp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
			z := zipped(tt.body)
			for _, coding := range []string{"gzip", "GZIP", " x-gzip "} {
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
