package replay

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"time"
)

// A response's body is kept up to these bounds.
const (
	maxKept    = 64 << 10
	keepWithin = time.Second
)

// Keep reads the body of a response into memory and closes it, and replaces it
// by what it read. A body that is too long or stalls is closed; what was read
// stands for it, and ends with an error. Trailers come at its end, as they would
// have.
func Keep(resp *http.Response) {
	body, announced := resp.Body, maps.Clone(resp.Trailer)
	stalled := time.AfterFunc(keepWithin, func() { body.Close() })
	b, err := io.ReadAll(io.LimitReader(body, maxKept+1))
	if stalled.Stop() {
		body.Close()
	}
	switch {
	case len(b) > maxKept:
		b, err = b[:maxKept], io.ErrUnexpectedEOF
	case err == nil:
		err = io.EOF
	}
	end := &ending{resp, resp.Trailer, err}
	resp.Trailer = announced
	resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(b), end))
}

// An ending is what comes after the last byte of a response's body.
type ending struct {
	resp    *http.Response
	trailer http.Header
	err     error
}

func (e *ending) Read([]byte) (int, error) {
	e.resp.Trailer = e.trailer
	return 0, e.err
}
