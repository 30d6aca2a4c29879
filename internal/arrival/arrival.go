// Package arrival finds out when a written request has arrived at the server,
// by what the system says of its connection.
//
// # The rule
//
// Let w be the instant at which net/http has written a request to its connection,
// and T (Transit) the longest time that a request takes from the system at the other
// end of the connection to where the server counts. A look asks this system how many
// bytes the other end has acknowledged.
//
//   - A look at the instant L may find that all bytes of the request are
//     acknowledged. Then the request arrives at L + T at the latest. For large
//     requests, looks come 5 ms after w and then each time that the age has grown by a
//     quarter, at least 5 and at most 250 ms apart.
//   - A small request fits the buffers of a socket, so it is on its way at w. There is
//     one look at it, at w + T. If it is acknowledged by then, it counts as arrived at
//     w + T. This assumes that T bounds the whole way, from w on, of a request whose
//     acknowledgement is back within T: no packet was lost for long, and the link did
//     not stand still. If the request is not acknowledged, it is looked at further as a
//     large one.
//   - Without such a proof, a request counts as arrived one minute after w.
//
// The look at a small request cannot wait until its slot is wanted, at w + T + W. A
// look finds that bytes are acknowledged, not since when. So at w + T + W it would
// prove an arrival by then, and the slot would be held until w + T + 2W.
package arrival

import (
	"container/heap"
	"net"
	"sync"
	"time"
)

const (
	// A large request is looked at so long after it was written, and then each
	// time that its age has grown by a quarter, within these bounds.
	leastBetween = 5 * time.Millisecond
	mostBetween  = 250 * time.Millisecond

	// giveUp is how long after it was written a request has arrived in any case.
	giveUp = time.Minute
)

// An Arriver is told by when its request has arrived. That may be later than
// what is known from elsewhere, such as an answer.
type Arriver interface{ Arrived(by time.Time) }

// A Watch looks after the written requests of one Throttle, with one timer for
// all of them. The zero value is ready. A Watch is safe for concurrent use. It
// asks the system and calls Arrivers outside its lock.
type Watch struct {
	mu      sync.Mutex // guards all below, and the Requests in pending
	pending pending
	timer   *time.Timer
	fires   time.Time // zero: the timer is not set

	ask func(Arriver) answer // for tests; nil: the system is asked
}

// A Request is one written request. The zero value is ready, for one use. A Watch
// allocates nothing for it before the first look.
type Request struct {
	to      Arriver
	look    look
	small   bool // and not looked at yet
	over    bool // no longer watched
	place   int  // in Watch.pending, from 1; 0: not there
	written time.Time
	transit time.Duration
	due     time.Duration // when it is looked at next, from written
}

// Written has w watch r, which was written to conn just now, unless Stop was
// called before. It returns by when r has arrived, as far as is known yet. When
// an earlier instant is known, to is told, until r is stopped. A small request is
// one that fits the buffers of a socket; conn may be nil.
func (w *Watch) Written(r *Request, to Arriver, conn net.Conn, small bool, transit time.Duration) (by time.Time) {
	now := time.Now()
	latest := now.Add(max(giveUp, transit))
	unasked := latest // if the system cannot be asked
	if small {
		unasked = now.Add(transit)
	}
	l, ok := newLook(conn)
	if !ok || small && !unasked.Before(latest) {
		return unasked
	}
	if l.shared() { // and what others write from now on must not count
		switch l.mark() {
		case unknown:
			return unasked
		case gone:
			return latest
		}
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	if r.over {
		return latest
	}
	*r = Request{to: to, look: l, small: small, written: now, transit: transit, due: leastBetween}
	if small {
		r.due = transit
	}
	heap.Push(&w.pending, r)
	w.wake(now)
	return latest
}

// Stop ends the watch over r. To may still be told once, if that has begun.
func (w *Watch) Stop(r *Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.place != 0 {
		heap.Remove(&w.pending, r.place-1)
	}
	r.forget()
}

// forget ends the watch over r, and lets go of what it refers to. It requires mu.
func (r *Request) forget() { *r = Request{over: true} }

// wake sets the timer for the next look. It stays set when that is stopped: to
// set it anew for each request would cost more than to wake for nothing once in
// a while. It requires mu.
func (w *Watch) wake(now time.Time) {
	if len(w.pending) == 0 {
		return
	}
	at := w.pending[0].at()
	if !w.fires.IsZero() && !at.Before(w.fires) {
		return
	}
	w.fires = at
	if w.timer == nil {
		w.timer = time.AfterFunc(at.Sub(now), w.look)
	} else {
		w.timer.Reset(at.Sub(now))
	}
}

// look looks at all requests whose time has come.
func (w *Watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fires = time.Time{}
	for now := time.Now(); len(w.pending) > 0; now = time.Now() {
		r := w.pending[0]
		if r.at().After(now) {
			break
		}
		heap.Pop(&w.pending)
		w.lookAt(r)
	}
	w.wake(time.Now())
}

// lookAt looks at r, which is not in pending meanwhile. It requires mu, and
// releases it while it asks and tells.
func (w *Watch) lookAt(r *Request) {
	to, l := r.to, r.look // a Stop may come meanwhile
	w.mu.Unlock()
	var a answer
	if w.ask != nil {
		a = w.ask(to)
	} else {
		a = l.ask()
	}
	now := time.Now() // not before it was acknowledged
	w.mu.Lock()
	if r.over {
		return
	}

	age, by := now.Sub(r.written), now
	due := age + min(max(leastBetween, age/4), mostBetween)
	switch {
	case a == acked && r.small:
	case a == acked:
		by = now.Add(r.transit)
	case a == unknown && r.small:
		by = r.written.Add(r.transit)
	case a == notYet && due < giveUp:
		r.look, r.small, r.due = l, false, due
		heap.Push(&w.pending, r)
		return
	default: // the end of the attempt will tell, or the minute
		r.forget()
		return
	}
	r.forget()
	w.mu.Unlock()
	to.Arrived(by)
	w.mu.Lock()
}

// An answer is what the system says of a request's bytes.
type answer int

const (
	notYet  answer = iota // acknowledged
	acked                 // all of them
	gone                  // the connection is closed
	unknown               // the system cannot be asked
)

// at returns when r is looked at next.
func (r *Request) at() time.Time { return r.written.Add(r.due) }

// pending is a heap of the requests that are to be looked at.
type pending []*Request

func (h pending) Len() int           { return len(h) }
func (h pending) Less(i, j int) bool { return h[i].at().Before(h[j].at()) }

func (h pending) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i+1, j+1
}

func (h *pending) Push(x any) {
	r := x.(*Request)
	*h = append(*h, r)
	r.place = len(*h)
}

func (h *pending) Pop() any {
	last := len(*h) - 1
	r := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	r.place = 0
	return r
}
