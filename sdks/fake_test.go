package sdks

import (
	"encoding/binary"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"example.com/clarifaihttp/throttletest"
)

// A fake is Clarifai's V2 service, as far as the tests call it, on an account
// that is throttled as Clarifai's are.
type fake struct {
	account throttletest.Handler
	delay   time.Duration // of each answer
	goAway  int32         // the server ends the connection at each so many-th call; 0: never
	haltAt  int           // somebody else is over the limit just before the so many-th arrival; 0: never
	halt    time.Duration // so long is the account halted then
	transit time.Duration // what ours know of the way to the server; 0: the default

	tls, h2c *httptest.Server // the same service

	calls atomic.Int32
	gone  chan struct{} // gets one for each client that left before its answer

	mu       sync.Mutex
	arrivals []time.Time
}

// start starts f, until the test ends.
func (f *fake) start(t *testing.T) *fake {
	f.gone = make(chan struct{}, 100)
	f.account.Next = http.HandlerFunc(f.serve)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.arrivals = append(f.arrivals, time.Now())
		if len(f.arrivals) == f.haltAt {
			f.account.HaltFor(f.halt)
		}
		f.mu.Unlock()
		f.account.ServeHTTP(w, r)
	})
	f.tls, f.h2c = httptest.NewUnstartedServer(h), httptest.NewUnstartedServer(h)
	f.tls.EnableHTTP2 = true
	f.tls.StartTLS()
	f.h2c.Config.Protocols = new(http.Protocols)
	f.h2c.Config.Protocols.SetUnencryptedHTTP2(true)
	f.h2c.Start()
	t.Cleanup(func() { f.tls.Close(); f.h2c.Close() })
	return f
}

// arrived returns when requests arrived, throttled ones included.
func (f *fake) arrived() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.arrivals)
}

// certificate writes the certificate that clients must trust to a file.
func (f *fake) certificate(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "cert.pem")
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.tls.Certificate().Raw})
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set(http.TrailerPrefix+"Grpc-Status", "0")
	if n := f.calls.Add(1); f.goAway > 0 && n%f.goAway == 0 {
		h.Set("Connection", "close") // net/http sends GOAWAY
	}
	method := path.Base(r.URL.Path)
	if method == "StreamModelOutputs" { // the client waits for the header
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
	}
	request, err := readMessage(r.Body)
	if err != nil {
		return
	}
	select {
	case <-time.After(f.delay):
	case <-r.Context().Done():
		f.gone <- struct{}{}
		return
	}
	switch method {
	case "ListModelTypes":
		modelType := field(1, []byte("visual-classifier"))
		writeMessage(w, field(1, statusOk), field(2, modelType))
	case "PostModelOutputs", "StreamModelOutputs":
		writeMessage(w, field(1, statusOk), field(2, field(6, field(13, field(1, text(request))))))
	case "GenerateModelOutputs":
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		for range streamed {
			time.Sleep(streamPace)
			writeMessage(w, field(1, statusOk), field(2, field(6, field(13, field(1, text(request))))))
			http.NewResponseController(w).Flush()
		}
	default:
		h.Set(http.TrailerPrefix+"Grpc-Status", "12") // UNIMPLEMENTED
	}
}

// GenerateModelOutputs sends so many messages, at this pace.
const (
	streamed   = 3
	streamPace = 100 * time.Millisecond
)

// readMessage reads a gRPC message.
func readMessage(r io.Reader) ([]byte, error) {
	var prefix [5]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(prefix[1:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// writeMessage writes a gRPC message of these fields.
func writeMessage(w io.Writer, fields ...[]byte) {
	message := slices.Concat(fields...)
	w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...))
}

// statusOk is a clarifai.api.status.Status.
var statusOk = slices.Concat(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 10000), field(2, []byte("Ok")))

// field is one field of a message that holds bytes.
func field(number protowire.Number, data []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), data)
}

// get follows numbers into nested messages and returns the first field there,
// nil if there is none.
func get(b []byte, numbers ...protowire.Number) []byte {
	for _, number := range numbers {
		for {
			n, kind, tag := protowire.ConsumeTag(b)
			if tag < 0 {
				return nil
			}
			b = b[tag:]
			if n == number && kind == protowire.BytesType {
				b, _ = protowire.ConsumeBytes(b)
				break
			}
			skip := protowire.ConsumeFieldValue(n, kind, b)
			if skip < 0 {
				return nil
			}
			b = b[skip:]
		}
	}
	return b
}

// code returns the code of a response's status.
func code(response []byte) uint64 {
	status := get(response, 1)
	if n, kind, tag := protowire.ConsumeTag(status); n == 1 && kind == protowire.VarintType {
		v, _ := protowire.ConsumeVarint(status[tag:])
		return v
	}
	return 0
}

// modelOutputs is a PostModelOutputsRequest with one input, which is a text of
// size bytes.
func modelOutputs(size int) []byte {
	return slices.Concat(field(2, []byte("model")), field(4, field(2, field(13, field(1, []byte(strings.Repeat("x", size)))))))
}

// text returns the text of a PostModelOutputsRequest.
func text(request []byte) []byte { return get(request, 4, 2, 13, 1) }
