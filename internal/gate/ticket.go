package gate

import "time"

// A Ticket is one wire request: first a place in the line, then a slot. It
// outlives the call that it was made for, and never points to it.
type Ticket struct {
	// What it was made with.
	rank     int
	number   int64 // order of arrival in the line; 0: not there yet
	urgency  int
	deadline time.Time     // zero: none
	rest     time.Duration // to wait before it joins the line
	suspect  bool          // its call had a bare 429
	badProbe bool          // its call's latest attempt was a throttled probe
	requeued int           // times
	home     place         // its call's
	must     bool          // it cannot be refused, for it is about to be sent
	excused  bool          // so it goes without the Limiter, which failed

	// In line.
	links   [lists]links
	ready   chan struct{} // closed when there is something to look at
	refused error

	// Let go.
	gone      bool
	counted   bool // as an attempt
	slot      slot
	taken     int64       // order among all slots
	pauses    int         // pause.count when it was let go
	probe     bool        // it was let go as a probe
	permitted bool        // by the Limiter, which was not told of its arrival yet
	arrived   *time.Timer // tells it
	outcome   int         // of a ticket in a run

	// Sent.
	asked     bool // for a connection
	dials     bool // to get it
	lapsed    bool // it waits for it without a slot
	got       bool // a connection
	written   time.Time
	over      bool // answered or failed
	throttled bool // and this was said
}

type place struct {
	rank   int
	number int64
}

// NewTicket returns the ticket for a call's first attempt. Urgency is 0, the
// most urgent, to 7. A zero deadline stands for none.
func NewTicket(urgency int, deadline time.Time) *Ticket {
	return &Ticket{rank: rankOf(urgency, false), urgency: urgency, deadline: deadline}
}

// Retry returns the ticket for the next attempt of tk's call, after a throttled
// response: ahead of newcomers or, if rest is not 0, as one of them after so
// long.
func (tk *Ticket) Retry(rest time.Duration) *Ticket {
	return &Ticket{
		rank:     rankOf(tk.urgency, rest == 0),
		urgency:  tk.urgency,
		deadline: tk.deadline,
		rest:     rest,
		suspect:  tk.suspect || rest > 0,
		badProbe: tk.probe,
	}
}

// Requeued returns the ticket for sending an attempt anew of which nothing was
// sent, at its old place.
func (tk *Ticket) Requeued() *Ticket {
	home := tk.place()
	return &Ticket{
		rank:     home.rank,
		number:   home.number,
		urgency:  tk.urgency,
		deadline: tk.deadline,
		suspect:  tk.suspect,
		badProbe: tk.badProbe,
		requeued: tk.requeued + 1,
		counted:  tk.counted,
	}
}

// patience returns how long tk's attempt waits where the first one waits for d:
// twice as long each time that it was sent anew, or what takes longer would never
// end.
func (tk *Ticket) patience(d time.Duration) time.Duration { return d << min(tk.requeued, 6) }

// standsAside reports whether tk lets others go first if the next one is the
// probe.
func (tk *Ticket) standsAside() bool { return tk.suspect || tk.badProbe }

// place returns the place of tk's attempt in the line.
func (tk *Ticket) place() place {
	if tk.rank == holder {
		return tk.home
	}
	return place{tk.rank, tk.number}
}

// resend returns the ticket for what net/http sends again of tk's attempt.
func (tk *Ticket) resend() *Ticket {
	return &Ticket{
		rank:     holder,
		urgency:  tk.urgency,
		deadline: tk.deadline,
		suspect:  tk.suspect,
		badProbe: tk.badProbe,
		requeued: tk.requeued,
		home:     tk.place(),
		asked:    true,
		got:      true,
	}
}

// holds puts tk, which has a connection but no slot any more, ahead of all that
// have none.
func (tk *Ticket) holds() {
	tk.home = tk.place()
	tk.rank, tk.number = holder, 0
}

// signal wakes who waits for tk.
func (tk *Ticket) signal() {
	if tk.ready != nil {
		close(tk.ready)
		tk.ready = nil
	}
}
