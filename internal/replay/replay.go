// Package replay lets a request body that can be read only once be sent more
// than once, and knows how much of it was read.
package replay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// Patience is how long an attempt that is over gets to end its reading.
const Patience = time.Second

var (
	errClosed  = errors.New("http: invalid Read on closed Body")
	errNotKept = errors.New("clarifaihttp: net/http would send the request again, but its body was not kept")
)

// A Source is a request body and what is kept of it while it is sent. The body
// is closed once: when it was read to its end; or when the attempt that read it
// has ended and no other can follow; or when [Source.Finish] was called.
// Attempts follow one another; all methods are safe for concurrent use.
type Source struct {
	body io.ReadCloser
	max  int

	mu       sync.Mutex // guards all below; not held while body is read or closed
	touched  bool       // body was read
	kept     []byte     // what was read of it, unless that is too much
	tooLong  bool       // more than max was read: kept is gone
	total    int64      // bytes read of body
	first    [5]byte    // of body, as far as read
	end      error      // what body returned last, if an error; io.EOF above all
	last     *Attempt   // nil before the first
	anew     []*Source  // of bodies that net/http got to send the request again by itself
	finished bool       // no attempt will follow
	closed   bool
}

// New returns a Source that keeps at most max bytes of body.
func New(body io.ReadCloser, max int) *Source { return &Source{body: body, max: max} }

// An Attempt is the body as one attempt sends it, from the first byte on.
type Attempt struct {
	s      *Source
	length int64 // negative: unknown
	ender  Ender // nil: nobody

	off     int   // within s.kept
	sent    int64 // bytes read
	whole   bool  // all of them
	reading bool  // a Read of the Source's body is under way
	closed  bool
	over    chan struct{} // closed when the attempt will not read any more
	closing chan struct{} // closed when it is closed; nil: nobody asked
}

// An Ender is asked before the last Read of an attempt returns, the one that
// completes the body. It may hold it back until closed is closed; then, or where
// the body must not end, it returns an error.
type Ender interface {
	BodyEnds(closed func() <-chan struct{}) error
}

// nopClosers are the types of what io.NopCloser returns, as in the bodies of
// http.NewRequest for readers in memory.
var nopClosers = []reflect.Type{
	reflect.TypeOf(io.NopCloser(nil)),
	reflect.TypeOf(io.NopCloser(new(bytes.Reader))),
}

// getBodies are the code of the GetBody that http.NewRequest makes for readers in
// memory: each call of it returns a reader of its own.
var getBodies = sync.OnceValue(func() (code []uintptr) {
	for _, r := range []io.Reader{bytes.NewBufferString("body"), bytes.NewReader([]byte("body")), strings.NewReader("body")} {
		req, err := http.NewRequest(http.MethodPost, "http://server.invalid", r)
		if err == nil && req.GetBody != nil {
			code = append(code, reflect.ValueOf(req.GetBody).Pointer())
		}
	}
	return code
})

// InMemory returns the body itself, if closing it does nothing and getBody returns
// another one each time, as that of http.NewRequest does. net/http sends a reader in
// memory, which it knows by its type, in one write with the header. InMemory is nil
// for other bodies: how far they are read must be known before getBody is called.
func (s *Source) InMemory(getBody func() (io.ReadCloser, error)) io.ReadCloser {
	if slices.Contains(nopClosers, reflect.TypeOf(s.body)) && slices.Contains(getBodies(), reflect.ValueOf(getBody).Pointer()) {
		return s.body
	}
	return nil
}

// Attempt returns the body for the next attempt, of so many bytes (negative:
// unknown). There must be no other one that still reads.
func (s *Source) Attempt(length int64, e Ender) *Attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = &Attempt{s: s, length: length, ender: e, over: make(chan struct{})}
	return s.last
}

// Sent returns how many bytes of the body the latest attempt has read, the first
// of them (5 at most), and whether these are all. The body in memory counts as
// sent.
func (s *Source) Sent() (n int64, first []byte, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.last
	if a == nil {
		return 0, nil, true
	}
	return a.sent, s.first[:min(a.sent, int64(len(s.first)))], a.whole
}

// Resend returns the body for net/http to send it again by itself, or an error
// where Again would report false. It ends the latest attempt, which net/http
// leaves as it is where it has sent nothing of it.
func (s *Source) Resend(ctx context.Context, length int64, e Ender) (io.ReadCloser, error) {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if last != nil {
		last.Close()
	}
	if !s.Again(ctx) {
		return nil, errNotKept
	}
	return s.Attempt(length, e), nil
}

// Anew returns the attempt for body, which GetBody returned for net/http to send the
// request again by itself. It may be the same object as s's.
func (s *Source) Anew(body io.ReadCloser, length int64, e Ender) *Attempt {
	other := New(body, 0)
	other.finished = true // net/http asks for another body, if it needs one
	s.mu.Lock()
	defer s.mu.Unlock()
	s.anew = append(s.anew, other)
	return other.Attempt(length, e)
}

// Untouched reports whether nothing of the body was read, nor of one that may be
// the same object.
func (s *Source) Untouched() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.touched && len(s.anew) == 0
}

// Again reports whether the body can be sent again from what is kept and its
// rest. It gives the latest attempt some time to end, if need be: not if all of
// the body is kept.
func (s *Source) Again(ctx context.Context) bool {
	s.mu.Lock()
	certain := s.tooLong || s.end != nil
	s.mu.Unlock()
	if !certain && !s.ended(ctx) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole()
}

// whole reports whether what is kept and the rest of the body make a whole. A
// body that failed would fail again. It requires mu.
func (s *Source) whole() bool { return !s.tooLong && (s.end == nil || s.end == io.EOF) }

// Quiet ends the reading of the latest attempt, and of those of [Source.Anew]. It
// gives each some time to end by itself, closes it, and gives a Read that is under way
// some time to end. It reports whether nobody reads any more.
func (s *Source) Quiet(ctx context.Context) bool {
	s.mu.Lock()
	last, anew := s.last, s.anew
	s.mu.Unlock()
	for _, other := range anew {
		if !other.Quiet(ctx) {
			return false
		}
	}
	if last == nil || s.ended(ctx) {
		return true
	}
	last.Close()
	return s.ended(ctx)
}

// ended waits for the latest attempt to end, and reports whether it did in time.
func (s *Source) ended(ctx context.Context) bool {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case <-last.over:
	case <-timer.C:
	case <-ctx.Done():
	}
	return last.isOver()
}

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
	left := s.last == nil || s.last.closed
	now := !s.closed && (s.end != nil || left && (s.finished || s.lost()))
	s.closed = s.closed || now
	s.mu.Unlock()
	if now {
		return s.body.Close()
	}
	return nil
}

// lost reports whether no other attempt can send the body. It requires mu.
func (s *Source) lost() bool { return s.touched && (s.max == 0 || !s.whole()) }

// Read reads what is kept, then the body.
func (a *Attempt) Read(p []byte) (int, error) {
	n, err := a.read(p)
	s := a.s
	s.mu.Lock()
	a.sent += int64(n)
	last := !a.whole && (err == io.EOF || err == nil && a.sent == a.length)
	a.whole = a.whole || last
	s.mu.Unlock()
	if last && a.ender != nil {
		if e := a.ender.BodyEnds(a.closes); e != nil {
			return 0, e
		}
	}
	return n, err
}

// read is Read without an end.
func (a *Attempt) read(p []byte) (int, error) {
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
	a.reading, s.touched = true, true
	s.mu.Unlock()

	n, err := s.body.Read(p)

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total < int64(len(s.first)) {
		copy(s.first[s.total:], p[:n])
	}
	s.total += int64(n)
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

// Sent returns how many bytes were read, and whether these are all.
func (a *Attempt) Sent() (n int64, whole bool) {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	return a.sent, a.whole
}

// Close ends the attempt. The body itself is closed only if no other attempt
// can follow; or if it is being read, which net/http may wait for: at once if no
// other can follow, else after some time.
func (a *Attempt) Close() error {
	s := a.s
	s.mu.Lock()
	if a.closed {
		s.mu.Unlock()
		return nil
	}
	a.closed = true
	if a.closing != nil {
		close(a.closing)
	}
	switch {
	case !a.reading:
		a.end()
	case !s.finished && !s.lost():
		time.AfterFunc(Patience, func() { a.interrupt() })
	case !s.closed:
		s.closed = true
		s.mu.Unlock()
		return s.body.Close()
	}
	return s.unlockAndClose()
}

// interrupt closes the body if a, which is closed, still reads it.
func (a *Attempt) interrupt() {
	s := a.s
	s.mu.Lock()
	now := a.reading && !s.closed
	s.closed = s.closed || now
	s.mu.Unlock()
	if now {
		s.body.Close()
	}
}

// closes returns a channel that is closed when a is.
func (a *Attempt) closes() <-chan struct{} {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if a.closing == nil {
		a.closing = make(chan struct{})
		if a.closed {
			close(a.closing)
		}
	}
	return a.closing
}

// end tells that a reads no more. It requires mu.
func (a *Attempt) end() {
	if !a.isOver() {
		close(a.over)
	}
}

func (a *Attempt) isOver() bool {
	select {
	case <-a.over:
		return true
	default:
		return false
	}
}
