package throttletest

import (
	"encoding/binary"
	"net/http"

	"example.com/clarifaihttp/internal/grpcstatus"
)

// A status is Clarifai's, clarifai.api.status.Status.
type status struct {
	code                            uint64
	description, details, requestID string
}

func isGRPC(r *http.Request) bool { return grpcstatus.Type(r.Header.Get("Content-Type")) }

// writeGRPC answers with one message, in which s is field 1 as it is in all of
// Clarifai's responses.
func writeGRPC(w http.ResponseWriter, r *http.Request, s status) {
	message := appendField(nil, 1, s.encode())
	h := w.Header()
	h.Set("Content-Type", r.Header.Get("Content-Type"))
	h.Set(http.TrailerPrefix+"Grpc-Status", "0")
	w.WriteHeader(http.StatusOK)
	w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...))
}

// encode returns s in the wire format of protocol buffers.
func (s status) encode() []byte {
	b := binary.AppendUvarint([]byte{1 << 3}, s.code)
	b = appendField(b, 2, []byte(s.description))
	if s.details != "" {
		b = appendField(b, 3, []byte(s.details))
	}
	if s.requestID != "" {
		b = appendField(b, 7, []byte(s.requestID))
	}
	return b
}

// appendField appends a field that holds bytes.
func appendField(b []byte, number uint64, data []byte) []byte {
	b = binary.AppendUvarint(b, number<<3|2)
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}
