package replay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// A body counts its closes.
type body struct {
	io.Reader // is closed, too, if it can be
	closes    atomic.Int32
	err       error // of Close
}

func (b *body) Close() error {
	b.closes.Add(1)
	if c, ok := b.Reader.(io.Closer); ok {
		c.Close()
	}
	return b.err
}

func (b *body) check(t *testing.T, when string, closes int32) {
	t.Helper()
	if got := b.closes.Load(); got != closes {
		t.Errorf("%s: closed %d times, want %d", when, got, closes)
	}
}

func read(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != want {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}

func TestWholeBodyAgain(t *testing.T) {
	b := &body{Reader: strings.NewReader("0123456789")}
	s := New(b, 10)
	for range 3 {
		a := s.Attempt(-1, nil)
		read(t, iotest.OneByteReader(a), "0123456789")
		a.Close()
		a.Close()
		if !s.Again(t.Context()) {
			t.Error("cannot be sent again")
		}
	}
	s.Finish()
	b.check(t, "in the end", 1)
}

func TestPrefixAndRest(t *testing.T) {
	b := &body{Reader: strings.NewReader("0123456789")}
	s := New(b, 10)
	for _, n := range []int{0, 4, 2, 7} {
		a := s.Attempt(-1, nil)
		got := make([]byte, n)
		if _, err := io.ReadFull(a, got); err != nil || string(got) != "0123456789"[:n] {
			t.Errorf("%q, %v", got, err)
		}
		a.Close()
		if _, err := a.Read(got); n > 0 && err == nil {
			t.Error("a closed attempt reads")
		}
		if !s.Again(t.Context()) {
			t.Error("cannot be sent again")
		}
	}
	b.check(t, "between attempts", 0)
	a := s.Attempt(-1, nil)
	read(t, a, "0123456789")
	s.Finish()
	b.check(t, "at its end", 1)
	a.Close()
	b.check(t, "in the end", 1)
}

func TestTooLong(t *testing.T) {
	b := &body{Reader: strings.NewReader("0123456789+")}
	s := New(b, 10)
	a := s.Attempt(-1, nil)
	read(t, a, "0123456789+")
	a.Close()
	if s.Again(t.Context()) {
		t.Error("sent again, but it is longer than what is kept")
	}
	s.Finish()
	b.check(t, "in the end", 1)
}

func TestKeepsWithinMax(t *testing.T) {
	const max = 100_000
	s := New(io.NopCloser(bytes.NewReader(make([]byte, max))), max)
	a := s.Attempt(-1, nil)
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{a}, make([]byte, 777)); err != nil {
		t.Fatal(err)
	}
	if len(s.kept) != max || cap(s.kept) > max {
		t.Errorf("keeps %d bytes in %d, want %d", len(s.kept), cap(s.kept), max)
	}
}

func TestNothingKept(t *testing.T) {
	b := &body{Reader: strings.NewReader("0123456789"), err: errors.New("own")}
	s := New(b, 0)
	a := s.Attempt(-1, nil)
	a.Read(make([]byte, 3))
	if err := a.Close(); err != b.err {
		t.Errorf("Close returned %v, want the body's error", err)
	}
	b.check(t, "closed by the only attempt", 1)
	a.Close()
	s.Finish()
	b.check(t, "in the end", 1)
	if s.Again(t.Context()) {
		t.Error("sent again")
	}
}

func TestNeverAttempted(t *testing.T) {
	for _, max := range []int{0, 10} {
		b := &body{Reader: strings.NewReader("x")}
		s := New(b, max)
		s.Finish()
		b.check(t, "finished before the first attempt", 1)
	}
}

func TestReadErrorAgain(t *testing.T) {
	own := errors.New("own")
	s := New(io.NopCloser(io.MultiReader(strings.NewReader("0123"), iotest.ErrReader(own))), 10)
	for range 2 {
		a := s.Attempt(-1, nil)
		if got, err := io.ReadAll(a); string(got) != "0123" || err != own {
			t.Errorf("%q, %v", got, err)
		}
		a.Close()
	}
}

// TestAttemptThatGoesOn has net/http read or hold the body when a throttle has
// come already.
func TestAttemptThatGoesOn(t *testing.T) {
	t.Run("closed in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := New(io.NopCloser(strings.NewReader("0123")), 10)
			a := s.Attempt(-1, nil)
			time.AfterFunc(999*time.Millisecond, func() { a.Close() })
			if !s.Again(t.Context()) {
				t.Error("cannot be sent again")
			}
			read(t, s.Attempt(-1, nil), "0123")
		})
	})
	t.Run("not closed in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &body{Reader: strings.NewReader("0123")}
			s := New(b, 10)
			a := s.Attempt(-1, nil)
			begin := time.Now()
			if s.Again(t.Context()) {
				t.Error("sent again beside an attempt that still reads")
			}
			if waited := time.Since(begin); waited != Patience {
				t.Errorf("waited %v for it, want %v", waited, Patience)
			}
			s.Finish()
			b.check(t, "while the attempt is open", 0)
			read(t, a, "0123")
			a.Close()
			b.check(t, "after it", 1)
		})
	})
	t.Run("context done", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			s := New(io.NopCloser(strings.NewReader("0123")), 10)
			s.Attempt(-1, nil)
			if s.Again(ctx) {
				t.Error("sent again")
			}
		})
	})
	t.Run("closed in the middle of a Read that ends in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, w := io.Pipe()
			s := New(r, 10)
			a := s.Attempt(-1, nil)
			go a.Read(make([]byte, 4))
			synctest.Wait()
			a.Close()
			go func() {
				time.Sleep(Patience - time.Millisecond)
				w.Write([]byte("0123"))
				w.Write([]byte("4567"))
				w.Close()
			}()
			if !s.Again(t.Context()) {
				t.Error("cannot be sent again")
			}
			read(t, s.Attempt(-1, nil), "01234567")
		})
	})
	for _, tt := range []struct {
		name  string
		sent  string // before
		after time.Duration
	}{
		{"that does not end in time", "01", Patience},
		{"and what was read is not kept", "0123456789a", 0},
	} {
		t.Run("closed in the middle of a Read "+tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, w := io.Pipe()
				b := &body{Reader: r}
				s := New(b, 10)
				a := s.Attempt(-1, nil)
				go w.Write([]byte(tt.sent))
				if _, err := io.ReadFull(a, make([]byte, len(tt.sent))); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error)
				go func() {
					_, err := a.Read(make([]byte, 4))
					ended <- err
				}()
				synctest.Wait()
				begin := time.Now()
				a.Close()
				if err := <-ended; err == nil || time.Since(begin) != tt.after {
					t.Errorf("the Read ended after %v, %v; want an error after %v", time.Since(begin), err, tt.after)
				}
				if s.Again(t.Context()) {
					t.Error("sent again, but the body is closed")
				}
				s.Finish()
				b.check(t, "in the end", 1)
			})
		})
	}
}

func TestQuiet(t *testing.T) {
	for _, tt := range []struct {
		name  string
		read  func(*Attempt) // on another goroutine
		want  bool
		after time.Duration
	}{
		{"it was closed", func(a *Attempt) { a.Close() }, true, 0},
		{"it was read to its end", func(a *Attempt) { io.ReadAll(a) }, true, 0},
		{"it ends in time", func(a *Attempt) { time.Sleep(Patience / 2); a.Close() }, true, Patience / 2},
		{"it is open, but is not being read: it is closed", func(a *Attempt) { a.Read(make([]byte, 1)) }, true, Patience},
		{"it is being read", func(a *Attempt) { a.s.body = blocks{}; a.Read(make([]byte, 1)) }, false, 2 * Patience},
		{"it is being read, and that ends when it is closed", func(a *Attempt) {
			r, _ := io.Pipe()
			a.s.body = r
			a.Read(make([]byte, 1))
		}, true, Patience},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(io.NopCloser(strings.NewReader("0123")), 0)
				a := s.Attempt(-1, nil)
				go tt.read(a)
				synctest.Wait()
				begin := time.Now()
				if got := s.Quiet(t.Context()); got != tt.want || time.Since(begin) != tt.after {
					t.Errorf("%v after %v, want %v after %v", got, time.Since(begin), tt.want, tt.after)
				}
				if _, err := a.Read(make([]byte, 1)); tt.want && tt.after == Patience && err == nil {
					t.Error("it reads on")
				}
				time.Sleep(time.Hour)
			})
		})
	}
}

// A body that blocks for an hour.
type blocks struct{}

func (blocks) Read([]byte) (int, error) { time.Sleep(time.Hour); return 0, io.EOF }
func (blocks) Close() error             { return nil }

// An ender records when it is asked, and answers err.
type ender struct {
	t     *testing.T
	a     *Attempt
	asked []int64 // bytes sent by then
	err   error
}

func (e *ender) BodyEnds(func() <-chan struct{}) error {
	n, whole := e.a.Sent()
	if !whole {
		e.t.Error("not the end")
	}
	e.asked = append(e.asked, n)
	return e.err
}

func TestBodyEnds(t *testing.T) {
	own := errors.New("own")
	for _, tt := range []struct {
		name   string
		length int64
		body   string
		err    error
		read   int // in all, before its error
	}{
		{"length known", 4, "0123", nil, 4},
		{"length unknown", -1, "0123", nil, 4},
		{"empty", -1, "", nil, 0},
		{"must not end", 4, "0123", own, 3},
		{"must not end, length unknown", -1, "0123", own, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(io.NopCloser(strings.NewReader(tt.body)), 10)
			for range 2 { // from the body, then from what is kept
				e := &ender{t: t, err: tt.err}
				e.a = s.Attempt(tt.length, e)
				got, err := io.ReadAll(iotest.OneByteReader(e.a))
				if string(got) != tt.body[:tt.read] || err != tt.err {
					t.Errorf("read %q, %v; want %q, %v", got, err, tt.body[:tt.read], tt.err)
				}
				if len(e.asked) != 1 || e.asked[0] != int64(len(tt.body)) {
					t.Errorf("asked at %v, want once, after %d bytes", e.asked, len(tt.body))
				}
				e.a.Close()
			}
		})
	}
	t.Run("Close ends its wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := New(io.NopCloser(strings.NewReader("0123")), 10)
			a := s.Attempt(-1, waits{})
			time.AfterFunc(time.Second, func() { a.Close() })
			begin := time.Now()
			if _, err := io.ReadAll(a); err != errClosed || time.Since(begin) != time.Second {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
		})
	})
}

type waits struct{}

func (waits) BodyEnds(closed func() <-chan struct{}) error {
	<-closed()
	return errClosed
}

func TestSent(t *testing.T) {
	check := func(s *Source, when string, want int64, wantFirst string, wantAll bool) {
		t.Helper()
		if n, first, all := s.Sent(); n != want || string(first) != wantFirst || all != wantAll {
			t.Errorf("%s: %d, %q, %t", when, n, first, all)
		}
	}
	for _, max := range []int{0, 3, 10} {
		s := New(&body{Reader: iotest.OneByteReader(strings.NewReader("01234567"))}, max)
		a := s.Attempt(-1, nil)
		check(s, "unread", 0, "", false)
		io.ReadFull(a, make([]byte, 4))
		check(s, "read in part", 4, "0123", false)
		io.ReadFull(a, make([]byte, 4))
		check(s, "read but for the end", 8, "01234", false)
		read(t, a, "")
		check(s, "read", 8, "01234", true)
		a.Close()
		check(s, "closed", 8, "01234", true)
		if max < 8 {
			continue
		}
		a = s.Attempt(-1, nil)
		check(s, "to be sent again", 0, "", false)
		io.ReadFull(a, make([]byte, 7))
		check(s, "sent again in part", 7, "01234", false)
		read(t, a, "7")
		check(s, "sent again", 8, "01234", true)
	}
	s := New(io.NopCloser(iotest.ErrReader(errors.New("own"))), 10)
	io.ReadAll(s.Attempt(-1, nil))
	check(s, "failed", 0, "", false)
	s = New(io.NopCloser(bytes.NewReader([]byte("0123"))), 0)
	s.InMemory(nil)
	check(s, "in memory", 0, "", true)
}

func TestResend(t *testing.T) {
	s := New(io.NopCloser(strings.NewReader("0123")), 10)
	a := s.Attempt(-1, nil)
	io.ReadFull(a, make([]byte, 2))
	b, err := s.Resend(t.Context(), -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); err != errClosed {
		t.Errorf("the earlier attempt reads on: %v", err)
	}
	read(t, b, "0123")

	s = New(io.NopCloser(strings.NewReader("0123")), 3)
	a = s.Attempt(-1, nil)
	read(t, a, "0123")
	a.Close()
	if _, err := s.Resend(t.Context(), -1, nil); err != errNotKept {
		t.Errorf("error %v", err)
	}
}
