package clarifaihttp_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// content is a request's body where it does not matter which.
const content = "What is told three times is true."

// A countedBody is of a type that net/http does not know. It must be closed
// once, and not be read then.
type countedBody struct {
	io.Reader // is closed, too, if it can be
	t         *testing.T
	what      string
	closes    atomic.Int32
}

func newBody(t *testing.T, s string) *countedBody {
	return &countedBody{Reader: strings.NewReader(s), t: t, what: "body"}
}

func (b *countedBody) Read(p []byte) (int, error) {
	if b.closes.Load() > 0 {
		b.t.Errorf("%s read after Close", b.what)
	}
	return b.Reader.Read(p)
}

func (b *countedBody) Close() error {
	b.closes.Add(1)
	if c, ok := b.Reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// check fails the test unless b was closed once.
func (b *countedBody) check() {
	b.t.Helper()
	if n := b.closes.Load(); n != 1 {
		b.t.Errorf("%s closed %d times, want once", b.what, n)
	}
}

// A registry knows all bodies of a test.
type registry struct {
	t   *testing.T
	mu  sync.Mutex
	all []*countedBody
}

// add returns a body with what r reads.
func (g *registry) add(what string, r io.Reader) *countedBody {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := &countedBody{Reader: r, t: g.t, what: fmt.Sprintf("%s body %d", what, len(g.all))}
	g.all = append(g.all, b)
	return b
}

func (g *registry) check() {
	g.t.Helper()
	for _, b := range g.all {
		b.check()
	}
}

// checkSoon is check for bodies that net/http may close a little after RoundTrip.
func (g *registry) checkSoon() {
	g.t.Helper()
	eventually(g.t, func() string {
		for _, b := range g.all {
			if b.closes.Load() == 0 {
				return b.what + " not closed"
			}
		}
		return ""
	})
	g.check()
}

// opaque is a body that net/http knows nothing about.
func opaque(r io.Reader) io.ReadCloser { return teeBody{r, http.NoBody} }

// A teeBody is read by the one and closed by the other.
type teeBody struct {
	io.Reader
	io.Closer
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
