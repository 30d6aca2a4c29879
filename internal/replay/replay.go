// Package replay lets a request body that can be read only once be sent more
// than once.
package replay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"reflect"
	"slices"
	"sync"
	"time"
)

var errClosed = errors.New("http: invalid Read on closed Body")

// A Source is a request body and what is kept of it while it is sent. The body
// is closed once: when it was read to its end, or when no further attempt is to
// come and the last one has ended. Attempts follow one another; all methods are
// safe for concurrent use.
type Source struct {
	body io.ReadCloser
	max  int

	mu       sync.Mutex // guards all below; not held while body is read or closed
	kept     []byte     // what was read of body, unless that is too much
	tooLong  bool       // more than max was read: kept is gone
	end      error      // what body returned last, if an error; io.EOF above all
	last     *attempt   // nil before the first
	finished bool       // no attempt will follow
	closed   bool
}

// New returns a Source that keeps at most max bytes of body. If max is 0, there
// can be one attempt only.
func New(body io.ReadCloser, max int) *Source {
	return &Source{body: body, max: max, tooLong: max == 0, finished: max == 0}
}

// An attempt is the body as one attempt sends it, from the first byte on.
type attempt struct {
	s       *Source
	off     int  // within s.kept
	reading bool // a Read is under way
	closed  bool
	over    chan struct{} // closed when the attempt will not read any more
}

// nopClosers are the types of what io.NopCloser returns, as in the bodies of
// http.NewRequest for readers in memory.
var nopClosers = []reflect.Type{
	reflect.TypeOf(io.NopCloser(nil)),
	reflect.TypeOf(io.NopCloser(new(bytes.Reader))),
}

// Attempt returns the body for the next attempt. There must be no other one
// that still reads: see Again. Where nothing is kept and Close does nothing, it
// is the body itself: net/http sends a reader in memory, which it knows by its
// type, in one write with the header.
func (s *Source) Attempt() io.ReadCloser {
	if s.max == 0 && slices.Contains(nopClosers, reflect.TypeOf(s.body)) {
		return s.body
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = &attempt{s: s, over: make(chan struct{})}
	return s.last
}

// Again reports whether the body can be sent again. It gives the latest
// attempt some time to end, if need be: not if all of the body is kept.
func (s *Source) Again(ctx context.Context, patience time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tooLong || s.end != nil {
		return s.again()
	}
	over := s.last.over
	s.mu.Unlock()
	timer := time.NewTimer(patience)
	select {
	case <-over:
	case <-timer.C:
	case <-ctx.Done():
	}
	timer.Stop()
	s.mu.Lock()
	select {
	case <-over:
		return s.again()
	default:
		return false
	}
}

// again reports whether what is kept and the rest of the body make a whole. A
// body that failed would fail again. It requires mu.
func (s *Source) again() bool { return !s.tooLong && (s.end == nil || s.end == io.EOF) }

// Finish tells that no attempt will follow. The body is closed now or when the
// latest attempt ends.
func (s *Source) Finish() {
	s.mu.Lock()
	s.finished = true
	s.unlockAndClose()
}

// unlockAndClose closes the body once nobody will read it. It requires mu and
// releases it.
func (s *Source) unlockAndClose() error {
	now := !s.closed && (s.end != nil || s.finished && (s.last == nil || s.last.closed))
	s.closed = s.closed || now
	s.mu.Unlock()
	if now {
		return s.body.Close()
	}
	return nil
}

// Read reads what is kept, then the body.
func (a *attempt) Read(p []byte) (int, error) {
	s := a.s
	s.mu.Lock()
	switch {
	case a.closed:
		s.mu.Unlock()
		return 0, errClosed
	case a.off < len(s.kept):
		n := copy(p, s.kept[a.off:])
		a.off += n
		s.mu.Unlock()
		return n, nil
	case s.end != nil:
		defer s.mu.Unlock()
		return 0, s.end
	}
	a.reading = true
	s.mu.Unlock()

	n, err := s.body.Read(p)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(p[:n])
	a.off = len(s.kept)
	a.reading = false
	s.end = err
	if a.closed || err != nil {
		a.end()
	}
	return n, err
}

// keep adds b to what is kept, in room for max bytes at most. It requires mu.
func (s *Source) keep(b []byte) {
	need := len(s.kept) + len(b)
	switch {
	case s.tooLong:
		return
	case need > s.max:
		s.kept, s.tooLong = nil, true
		return
	case need > cap(s.kept):
		room := min(s.max, max(need, 2*cap(s.kept), 512))
		s.kept = append(make([]byte, 0, room), s.kept...)
	}
	s.kept = append(s.kept, b...)
}

// Close ends the attempt. The body itself is closed only if no other attempt
// is to follow.
func (a *attempt) Close() error {
	a.s.mu.Lock()
	a.closed = true
	if !a.reading {
		a.end()
	}
	return a.s.unlockAndClose()
}

// end tells Again that a reads no more. It requires mu.
func (a *attempt) end() {
	select {
	case <-a.over:
	default:
		close(a.over)
	}
}
