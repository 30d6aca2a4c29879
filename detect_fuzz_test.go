package clarifaihttp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

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
