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
	io.Reader
	closes atomic.Int32
	err    error // of Close
}

func (b *body) Close() error {
	b.closes.Add(1)
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
		a := s.Attempt()
		read(t, iotest.OneByteReader(a), "0123456789")
		a.Close()
		a.Close()
		if !s.Again(t.Context(), 0) {
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
		a := s.Attempt()
		got := make([]byte, n)
		if _, err := io.ReadFull(a, got); err != nil || string(got) != "0123456789"[:n] {
			t.Errorf("%q, %v", got, err)
		}
		a.Close()
		if _, err := a.Read(got); n > 0 && err == nil {
			t.Error("a closed attempt reads")
		}
		if !s.Again(t.Context(), 0) {
			t.Error("cannot be sent again")
		}
	}
	b.check(t, "between attempts", 0)
	a := s.Attempt()
	read(t, a, "0123456789")
	s.Finish()
	b.check(t, "at its end", 1)
	a.Close()
	b.check(t, "in the end", 1)
}

func TestTooLong(t *testing.T) {
	b := &body{Reader: strings.NewReader("0123456789+")}
	s := New(b, 10)
	a := s.Attempt()
	read(t, a, "0123456789+")
	a.Close()
	if s.Again(t.Context(), 0) {
		t.Error("sent again, but it is longer than what is kept")
	}
	s.Finish()
	b.check(t, "in the end", 1)
}

func TestKeepsWithinMax(t *testing.T) {
	const max = 100_000
	s := New(io.NopCloser(bytes.NewReader(make([]byte, max))), max)
	a := s.Attempt()
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
	a := s.Attempt()
	a.Read(make([]byte, 3))
	if err := a.Close(); err != b.err {
		t.Errorf("Close returned %v, want the body's error", err)
	}
	b.check(t, "closed by the only attempt", 1)
	a.Close()
	s.Finish()
	b.check(t, "in the end", 1)
	if s.Again(t.Context(), 0) {
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
		a := s.Attempt()
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
			a := s.Attempt()
			time.AfterFunc(999*time.Millisecond, func() { a.Close() })
			if !s.Again(t.Context(), time.Second) {
				t.Error("cannot be sent again")
			}
			read(t, s.Attempt(), "0123")
		})
	})
	t.Run("not closed in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &body{Reader: strings.NewReader("0123")}
			s := New(b, 10)
			a := s.Attempt()
			if s.Again(t.Context(), time.Second) {
				t.Error("sent again beside an attempt that still reads")
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
			s.Attempt()
			if s.Again(ctx, time.Hour) {
				t.Error("sent again")
			}
		})
	})
	t.Run("closed in the middle of a Read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, w := io.Pipe()
			s := New(r, 10)
			a := s.Attempt()
			go a.Read(make([]byte, 4))
			synctest.Wait()
			a.Close()
			if s.Again(t.Context(), time.Second) {
				t.Error("sent again while a Read of the body was under way")
			}
			go func() {
				w.Write([]byte("0123"))
				w.Write([]byte("4567"))
				w.Close()
			}()
			if !s.Again(t.Context(), time.Second) {
				t.Error("cannot be sent again")
			}
			read(t, s.Attempt(), "01234567")
		})
	})
}
