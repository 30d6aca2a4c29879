package grpcstatus

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"math"
	"net/http"
	"strings"
	"testing"
)

// varint and bytesField write one field in the wire format.
func varint(number, value uint64) string {
	return string(binary.AppendUvarint(binary.AppendUvarint(nil, number<<3), value))
}

func bytesField(number uint64, data string) string {
	return string(binary.AppendUvarint(binary.AppendUvarint(nil, number<<3|2), uint64(len(data)))) + data
}

// framed puts the prefix of gRPC before a message.
func framed(flag byte, message string) string {
	return string(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(message)))) + message
}

func zipped(message string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(message))
	z.Close()
	return b.String()
}

// throttled is the message of a throttled response, with what Clarifai sends
// beside the fields of interest.
var (
	throttledStatus = varint(1, 11005) + bytesField(2, "Making too many requests") + bytesField(3, "exceeded limit of 15 requests per second") +
		bytesField(4, "trace") + bytesField(7, "4d1f")
	throttled = bytesField(1, throttledStatus) + bytesField(2, "outputs")

	want = Status{Code: 11005, Description: "Making too many requests", Details: "exceeded limit of 15 requests per second", RequestID: "4d1f"}
)

func TestParse(t *testing.T) {
	fixed64, fixed32 := string([]byte{9<<3 | 1, 1, 2, 3, 4, 5, 6, 7, 8}), string([]byte{9<<3 | 5, 1, 2, 3, 4})
	for name, tt := range map[string]struct {
		message string
		want    Status
	}{
		"throttled":                  {throttled, want},
		"code alone":                 {bytesField(1, varint(1, 11005)), Status{Code: 11005}},
		"Ok":                         {bytesField(1, varint(1, 10000)+bytesField(2, "Ok")), Status{Code: 10000, Description: "Ok"}},
		"empty":                      {"", Status{}},
		"no status":                  {bytesField(2, throttledStatus), Status{}},
		"status of an item":          {bytesField(2, bytesField(1, varint(1, 11005))), Status{}},
		"no code":                    {bytesField(1, bytesField(2, "Ok")), Status{}},
		"code of another kind":       {bytesField(1, varint(1, 14)), Status{}},
		"negative code":              {bytesField(1, varint(1, math.MaxUint64-4)), Status{}},
		"not a message":              {varint(1, 11005), Status{}},
		"unknown fields":             {fixed64 + fixed32 + varint(9, 1) + bytesField(9, "x") + bytesField(1, fixed32+fixed64+varint(1, 11005)+fixed32) + fixed64, Status{Code: 11005}},
		"the last code counts":       {bytesField(1, varint(1, 10000)+varint(1, 11005)), Status{Code: 11005}},
		"two statuses are merged":    {bytesField(1, varint(1, 11005)) + bytesField(1, bytesField(3, "d")), Status{Code: 11005, Details: "d"}},
		"cut in the details":         {throttled[:60], Status{Code: 11005, Description: want.Description, Details: "exceeded limit of 15 reques"}},
		"cut in the code":            {throttled[:3], Status{}},
		"cut in a length":            {throttled[:1], Status{}},
		"group":                      {throttled + string([]byte{9<<3 | 3}), Status{}},
		"group in the status":        {bytesField(1, throttledStatus+string([]byte{9<<3 | 4})), Status{}},
		"field 0":                    {throttled + varint(0, 1), Status{}},
		"field number too large":     {throttled + varint(1<<29, 1), Status{}},
		"varint of eleven bytes":     {throttled + "\x08" + strings.Repeat("\xff", 10) + "\x01", Status{}},
		"length beyond all bounds":   {bytesField(1, varint(1, 11005)+"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01d"), Status{Code: 11005, Description: "d"}},
		"JSON":                       {`{"status":{"code":11005}}`, Status{}},
		"reserved wire type":         {throttled + "\x0f", Status{}},
		"truncated fixed64 at end":   {throttled + "\x09\x01", want},
		"code written in many bytes": {bytesField(1, "\x08\xfd\xd5\x80\x80\x00"), Status{Code: 11005}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := parse([]byte(tt.message)); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	long := bytesField(1, throttledStatus+bytesField(9, strings.Repeat("x", maxMessage)))
	whole := bytesField(1, throttledStatus+bytesField(9, strings.Repeat("x", maxMessage-len(throttledStatus)-6)))
	if len(whole) != maxMessage {
		t.Fatal(len(whole))
	}
	for name, tt := range map[string]struct {
		gzip bool
		body string
		read int // bytes of body
		want Status
	}{
		"plain":                     {false, framed(0, throttled) + "more", prefix + len(throttled), want},
		"plain though gzip is used": {true, framed(0, throttled) + "more", prefix + len(throttled), want},
		"gzip":                      {true, framed(1, zipped(throttled)) + "more", prefix + len(zipped(throttled)), want},
		"compressed otherwise":      {false, framed(1, zipped(throttled)), prefix, Status{}},
		"not gzip":                  {true, framed(1, throttled), prefix + len(throttled), Status{}},
		"gzip, its end damaged":     {true, framed(1, zipped(throttled)[:len(zipped(throttled))-4]+"abcd"), prefix + len(zipped(throttled)), Status{}},
		"reserved flag":             {true, framed(2, throttled), prefix, Status{}},
		"empty message":             {false, framed(0, "") + framed(0, throttled), prefix, Status{}},
		"no message":                {false, "", 0, Status{}},
		"prefix cut":                {false, framed(0, throttled)[:4], 4, Status{}},
		"message cut":               {false, framed(0, throttled)[:prefix+30], prefix + 30, Status{Code: 11005, Description: "Making too many requests"[:23]}},
		"gzip cut":                  {true, framed(1, zipped(throttled))[:prefix+12], prefix + 12, Status{}},
		"as long as may be":         {false, framed(0, whole), prefix + maxMessage, want},
		"longer":                    {false, framed(0, whole+"\x48"), prefix, Status{}},
		"much longer":               {false, framed(0, long), prefix, Status{}},
		"longer when decompressed":  {true, framed(1, zipped(long)), prefix + len(zipped(long)), Status{}},
		"absurdly long":             {false, "\x00\xff\xff\xff\xff" + throttled, prefix, Status{}},
	} {
		t.Run(name, func(t *testing.T) {
			for chunk := 1; chunk <= max(1, len(tt.body)); chunk++ {
				m := message{gzip: tt.gzip}
				for b := tt.body; b != ""; b = b[min(chunk, len(b)):] {
					m.add([]byte(b[:min(chunk, len(b))]))
				}
				if got := m.status(); got != tt.want || string(m.read) != tt.body[:tt.read] {
					t.Fatalf("%d bytes at a time: %+v, %d bytes read; want %+v, %d", chunk, got, len(m.read), tt.want, tt.read)
				}
			}
		})
	}
}

func TestType(t *testing.T) {
	for contentType, want := range map[string]bool{
		"application/grpc":               true,
		"application/grpc+proto":         true,
		"Application/GRPC+json":          true,
		"application/grpc; charset=utf8": true,
		"application/grpc-web":           false,
		"application/grpc-web+proto":     false,
		"application/grpcs":              false,
		"application/json":               false,
		"application/grp":                false,
		"":                               false,
	} {
		if got := Type(contentType); got != want {
			t.Errorf("%q: %t", contentType, got)
		}
	}
}

func TestIn(t *testing.T) {
	grpc := http.Header{"Content-Type": {"application/grpc"}}
	body := http.MaxBytesReader(nil, http.NoBody, 1)
	for name, tt := range map[string]struct {
		resp http.Response
		want bool
	}{
		"gRPC":          {http.Response{StatusCode: 200, Header: grpc, Body: body}, true},
		"trailers-only": {http.Response{StatusCode: 200, Header: grpc, Body: http.NoBody}, false},
		"no body":       {http.Response{StatusCode: 200, Header: grpc}, false},
		"HTTP 429":      {http.Response{StatusCode: 429, Header: grpc, Body: body}, false},
		"not gRPC":      {http.Response{StatusCode: 200, Header: http.Header{}, Body: body}, false},
	} {
		if got := In(&tt.resp); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(throttled))
	f.Add([]byte(throttled[:50]))
	f.Add([]byte(bytesField(1, varint(1, 10000))))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		s := parse(b)
		if !bytes.Equal(b, before) {
			t.Error("changed")
		}
		if s != (Status{}) && (s.Code < 10000 || s.Code > 99999 || len(s.Description)+len(s.Details)+len(s.RequestID) > len(b)) {
			t.Errorf("%+v", s)
		}
	})
}
