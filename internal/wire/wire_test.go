package wire

import (
	"net"
	"net/http/httptrace"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/internal/arrival"
	"example.com/clarifaihttp/internal/gate"
)

// TestSentAgain follows an attempt that net/http sends on one connection after
// the other. Each is a wire request of its own, but for those of which nothing
// was written: they go on with what they were given.
func TestSentAgain(t *testing.T) {
	const ms = time.Millisecond
	const hold = 1010 * ms
	for _, tt := range []struct {
		name     string
		wrote    func(*httptrace.ClientTrace) // to the first connection
		wait     time.Duration                // on the second
		attempts int
	}{
		{"nothing was written", func(*httptrace.ClientTrace) {}, 0, 1},
		{"the header was", func(c *httptrace.ClientTrace) { c.WroteHeaders() }, 250*ms + hold, 2},
		{"all of it was", func(c *httptrace.ClientTrace) {
			c.WroteHeaders()
			c.WroteRequest(httptrace.WroteRequestInfo{})
		}, 250*ms + hold, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := gate.New(gate.Config{Limit: 1, Window: time.Second, Backoff: 15 * time.Second, MaxBackoff: time.Minute, Transit: 250 * ms})
				w := &Wire{Context: t.Context(), Gate: g, Watch: new(arrival.Watch), Dials: true, MayResend: true}
				tk := gate.NewTicket(3, time.Time{})
				if err := g.Start(t.Context(), nil, tk); err != nil {
					t.Fatal(err)
				}
				w.Trace(tk)
				conn, other := net.Pipe()
				defer other.Close()
				c := &w.hooks
				for _, wait := range []time.Duration{0, tt.wait} {
					begin := time.Now()
					c.GetConn("server:443")
					c.GotConn(httptrace.GotConnInfo{Conn: conn})
					if d := time.Since(begin); d != wait {
						t.Errorf("waited %v, want %v", d, wait)
					}
					if wait == 0 {
						tt.wrote(c)
					}
				}
				if s := g.Stats(); s.Attempts != tt.attempts || s.Held != 1 {
					t.Errorf("%+v, want %d attempts and one slot held", s, tt.attempts)
				}
				c.WroteHeaders()
				w.End(true)
				time.Sleep(hold)
				if s := g.Stats(); s.Held != 0 {
					t.Errorf("%+v, want no slot held", s)
				}
			})
		})
	}
}

// TestFailsUnsent has an attempt fail on a connection of its own before anything is
// written: its slot is free at once.
func TestFailsUnsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate.New(gate.Config{Limit: 1, Window: time.Second, Backoff: 15 * time.Second, MaxBackoff: time.Minute, Transit: time.Second})
		for range 3 {
			w := &Wire{Context: t.Context(), Gate: g, Watch: new(arrival.Watch), PlainIsHTTP1: true}
			tk := gate.NewTicket(3, time.Time{})
			if err := g.Start(t.Context(), nil, tk); err != nil {
				t.Fatal(err)
			}
			w.Trace(tk)
			conn, other := net.Pipe()
			w.hooks.GetConn("server:443")
			w.hooks.GotConn(httptrace.GotConnInfo{Conn: conn})
			other.Close()
			w.End(false)
		}
		if d := time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)); d != 0 {
			t.Errorf("waited %v", d)
		}
	})
}
