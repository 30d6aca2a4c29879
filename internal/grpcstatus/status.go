// Package grpcstatus looks for Clarifai's status in a gRPC response. Clarifai
// throttles in-band: under grpc-status 0, by a code in the first message.
package grpcstatus

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
)

const (
	// A message that only refuses a request is short. A longer one is not
	// looked at, nor is one that is longer when decompressed.
	maxMessage = 1 << 10

	// Each message follows a flag, 1 if it is compressed, and its length.
	prefix = 1 + 4

	maxNumber = 1<<29 - 1 // of a field in protocol buffers
)

// A Status is a clarifai.api.status.Status, as far as it is of use here.
type Status struct {
	Code        int // five digits
	Description string
	Details     string
	RequestID   string
}

// In reports whether resp may hold a Status in a gRPC message.
func In(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK && resp.Body != nil && resp.Body != http.NoBody &&
		Type(resp.Header.Get("Content-Type"))
}

// Type reports whether a Content-Type is that of gRPC: application/grpc, alone
// or with +proto, say. The types of gRPC-Web are not.
func Type(contentType string) bool {
	const grpc = "application/grpc"
	if len(contentType) < len(grpc) || !strings.EqualFold(contentType[:len(grpc)], grpc) {
		return false
	}
	rest := contentType[len(grpc):]
	return rest == "" || strings.ContainsRune("+; ", rune(rest[0]))
}

// A message is the start of a response's body: its first message and nothing
// after it.
type message struct {
	gzip bool // grpc-encoding says so
	read []byte
}

// missing returns how many bytes must be read for the message to be whole: the
// prefix first, then the rest. It returns 0 if nothing more is of use.
func (m *message) missing() int {
	if len(m.read) < prefix {
		return prefix - len(m.read)
	}
	length := binary.BigEndian.Uint32(m.read[1:])
	switch flag := m.read[0]; {
	case length > maxMessage, flag > 1, flag == 1 && !m.gzip:
		return 0
	}
	return prefix + int(length) - len(m.read)
}

// add adds what was read, of which it takes no more than is missing.
func (m *message) add(b []byte) {
	for len(b) > 0 && m.missing() > 0 {
		n := min(len(b), m.missing())
		m.read = append(m.read, b[:n]...)
		b = b[n:]
	}
}

// status returns what the message says, as far as it was read; the zero Status
// if it says nothing.
func (m *message) status() Status {
	if len(m.read) <= prefix {
		return Status{}
	}
	payload := m.read[prefix:]
	if m.read[0] == 1 {
		z, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return Status{}
		}
		payload, err = io.ReadAll(io.LimitReader(z, maxMessage+1))
		if err != nil && err != io.ErrUnexpectedEOF || len(payload) > maxMessage {
			return Status{}
		}
	}
	return parse(payload)
}

// parse reads field 1 of a response, a Status. What comes before a break
// counts; a malformed message says nothing. As everywhere in protocol buffers,
// the last of several values counts.
func parse(response []byte) Status {
	var s Status
	outer := fields{b: response}
	for outer.next() {
		if outer.number != 1 || outer.data == nil {
			continue
		}
		inner := fields{b: outer.data}
		for inner.next() {
			switch {
			case inner.number == 1 && inner.data == nil:
				s.Code = int(int32(inner.value))
			case inner.data == nil:
			case inner.number == 2:
				s.Description = string(inner.data)
			case inner.number == 3:
				s.Details = string(inner.data)
			case inner.number == 7:
				s.RequestID = string(inner.data)
			}
		}
		outer.malformed = outer.malformed || inner.malformed
	}
	if outer.malformed || s.Code < 10000 || s.Code > 99999 {
		return Status{}
	}
	return s
}

// fields steps through a message in the wire format of protocol buffers.
type fields struct {
	b         []byte // not read yet
	malformed bool

	// The field that next found.
	number uint64
	value  uint64 // of a varint
	data   []byte // of a string, bytes or a message, cut short where b ends; else nil
}

// next reads a field. It reports whether there was one.
func (f *fields) next() bool {
	tag, ok := f.varint()
	if !ok {
		return false
	}
	f.number, f.value, f.data = tag>>3, 0, nil
	switch tag & 7 {
	case 0:
		f.value, ok = f.varint()
	case 1:
		f.take(8)
	case 2:
		var length uint64
		if length, ok = f.varint(); ok {
			f.data = f.take(length)
		}
	case 5:
		f.take(4)
	default: // groups, which Clarifai's messages do not have
		f.malformed = true
	}
	if f.number == 0 || f.number > maxNumber {
		f.malformed = true
	}
	return ok && !f.malformed
}

func (f *fields) varint() (v uint64, ok bool) {
	v, n := binary.Uvarint(f.b)
	f.malformed = f.malformed || n < 0
	f.take(uint64(max(n, 0)))
	return v, n > 0
}

// take returns the next n bytes, or those there are.
func (f *fields) take(n uint64) []byte {
	n = min(n, uint64(len(f.b)))
	taken := f.b[:n:n]
	f.b = f.b[n:]
	return taken
}
