package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/clarifaihttp"
)

// This file is what TestSearch holds, whatever it has drawn:
//
//  1. What ends bare ends with ours, within a bound (bound), and the errors are
//     the base's or those that the plan asks for.
//  2. In the end no slot, token, connection, goroutine or open body is left.
//  3. At most Limit arrivals are in any Window, whether counted by the heads as
//     they come to the server or by the ends of their bodies.
//  4. Nothing is sent between a pause's begin and its end, or after its caller
//     has ended it. The throttled responses explain how many pauses there are,
//     and how long.
//  5. Each caller gets the response to its last arrival, and the server gets
//     each body whole or sees that it is not.

// sent is called when the heads of requests leave the client.
func (w *world) sent(l *link, heads int) {
	if heads == 0 || w.isBare() {
		return
	}
	until := w.look()
	w.mu.Lock()
	since := time.Since(w.paused)
	w.mu.Unlock()
	// After its GotConn, net/http waits 200 ms for the first byte of a body of
	// unknown length.
	if time.Now().Before(until) && since > 201*ms {
		w.fail("4: sent on link %d %v after a pause began, %v before its end", l.n, since, time.Until(until))
	}
}

// arrived is called when the heads of requests have come to the server.
func (w *world) arrived(_ *link, heads int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range heads {
		w.heads = append(w.heads, time.Now())
	}
}

// look looks at the Throttle. It returns the end of the pause.
func (w *world) look() time.Time {
	until := w.throttle.Stats().PausedUntil
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if until.IsZero() {
		return until
	}
	if now.After(w.pausedUntil) || now.Equal(w.pausedUntil) {
		w.pauses++
		w.paused = now
	}
	w.pausedUntil = until
	if longest := w.longestPause(); until.Sub(now) > longest {
		w.tooLong = max(w.tooLong, until.Sub(now))
	}
	return until
}

// longestPause returns how long a pause can be that begins or is prolonged now.
// It requires mu.
func (w *world) longestPause() time.Duration {
	if w.mixed || w.form.retryAfter == "" || slices.ContainsFunc(w.jobs, func(j *job) bool { return j.poisoned }) {
		return maxBackoff
	}
	seconds, _ := strconv.Atoi(w.form.retryAfter)
	return max(time.Duration(seconds)*time.Second, min(maxBackoff, w.window<<w.pauses))
}

// watch looks from time to time, ever less often, since a day may pass.
func (w *world) watch(done <-chan struct{}) {
	for every := 500 * ms; !w.wait(done, every); every += every / 1000 {
		w.look()
	}
}

// underWay returns the jobs that have not ended.
func (w *world) underWay() (jobs []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, a := range w.answers {
		if a == nil || a.end.IsZero() {
			jobs = append(jobs, n)
		}
	}
	return jobs
}

// late tells which jobs should have ended.
func (w *world) late() {
	var stuck []int
	for _, n := range w.underWay() {
		w.mu.Lock()
		arrivals := w.arrivals[n]
		served := len(arrivals) > 0 && !arrivals[len(arrivals)-1].over
		w.mu.Unlock()
		// Over HTTP/1 the base waits for a Read of the body, whatever happens.
		bareToo := w.isBare() || w.compare.answers[n].late || !w.h2
		if !w.jobs[n].endless() || !served && !bareToo {
			stuck = append(stuck, n)
		}
	}
	if len(stuck) > 0 {
		w.fail("1: %d of %d jobs do not end: %v", len(stuck), len(w.jobs), stuck)
	}
	if !w.isBare() {
		w.note("%+v", w.throttle.Stats())
	}
}

// nothingLeft checks what is left once all callers are done.
func (w *world) nothingLeft(rts []http.RoundTripper) {
	if !w.isBare() {
		time.Sleep(w.window + 10*ms + 250*ms + ms)
		if s := w.throttle.Stats(); s.Held != 0 || s.Waiting != 0 {
			w.fail("2: in the end: %+v", s)
		}
	}
	time.Sleep(longestDial)
	if w.pool != nil && (len(w.pool.tokens) != cap(w.pool.tokens) || w.pool.excess.Load() != 0) {
		w.fail("2: the Limiter has %d of %d tokens in the end, and %d too many were given back", len(w.pool.tokens), cap(w.pool.tokens), w.pool.excess.Load())
	}
	for _, rt := range rts {
		rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	}
	time.Sleep(time.Second)
	w.mu.Lock()
	links, uploads := len(w.links), w.uploads
	w.mu.Unlock()
	if links != 0 {
		w.fail("2: %d connections are left", links)
	}
	for _, u := range uploads {
		u.mu.Lock()
		closes := u.closes
		u.mu.Unlock()
		// HTTP/2 leaves those open that it replaces by GetBody.
		if closes != 1 && u.first && !w.isBare() && !u.keepsOpen {
			w.fail("2: the body of job %d is closed %d times", u.n, closes)
		}
	}
}

// holds checks the record of a run; ours against the bare one.
func (w *world) holds() {
	w.mu.Lock()
	throttled, bares, tooLong := w.throttled, w.bare, w.tooLong
	w.mu.Unlock()
	for _, a := range w.answers {
		if a != nil && !a.end.IsZero() {
			w.answerHolds(a)
		}
	}
	for _, what := range w.lateArrivals {
		w.fail("4: %s", what)
	}
	if w.isBare() {
		return
	}
	bound := w.bound()
	for n, a := range w.answers {
		b := w.compare.answers[n]
		switch {
		case a == nil || b == nil || a.end.IsZero() || b.end.IsZero() || a.late || b.late:
			// late has told already.
		case a.end.Sub(a.start) > b.end.Sub(b.start)+bound:
			w.fail("1: job %d ends after %v (bare after %v), want %v at most", n, a.end.Sub(a.start), b.end.Sub(b.start), bound)
		}
	}
	if n, at := most(w.heads, w.window); n > w.limit {
		w.fail("3: %d heads arrive within less than %v at %v, want %d at most", n, w.window, at.Sub(w.begin), w.limit)
	}
	if n, at := most(w.ends, w.window); n > w.limit {
		w.fail("3: %d bodies end within less than %v at %v, want %d at most", n, w.window, at.Sub(w.begin), w.limit)
	}
	if most, pauses := throttled+bares/3, w.throttle.Stats().Pauses; pauses > most {
		w.fail("4: %d pauses, want %d at most for %d times CONN_THROTTLED and %d bare 429s", pauses, most, throttled, bares)
	}
	if tooLong > 0 {
		w.fail("4: a pause of %v", tooLong)
	}
}

// bound returns how much later than bare a request may end. Each wire request
// may hold up the others by the time that it holds its slot (or until it is
// given up), by its dial and by the pace at its floor; each pause by itself and
// by its probe.
func (w *world) bound() time.Duration {
	var uploads time.Duration
	for _, j := range w.jobs {
		uploads = max(uploads, j.uploads())
	}
	pace := 2 * time.Second * 15 / time.Duration(w.limit) * w.window / time.Second
	each := w.slowest + uploads + longestStream + longestDial + 2*w.delay + pace + w.window + time.Second
	if slices.ContainsFunc(w.jobs, (*job).endless) {
		each += 2 * time.Minute // until it is given up
	}
	n := time.Duration(max(len(w.heads), len(w.jobs)))
	pauses := time.Duration(w.pauses) * (maxBackoff + w.backoff + w.window)
	alone := time.Duration(w.retries) * maxBackoff // for bare 429s of its own
	backoff := 70 * time.Second                    // of HTTP/2's own resends
	return n*each + pauses + alone + backoff
}

// most returns the most instants that are within less than a window, and when.
func most(instants []time.Time, window time.Duration) (n int, at time.Time) {
	slices.SortFunc(instants, time.Time.Compare)
	first := 0
	for i, last := range instants {
		for last.Sub(instants[first]) >= window {
			first++
		}
		if i-first+1 > n {
			n, at = i-first+1, last
		}
	}
	return n, at
}

// answerHolds checks what a caller got against what the server did.
func (w *world) answerHolds(a *answer) {
	j, arrivals := a.job, w.arrivals[a.job.n]
	if a.resp == (a.err != nil) {
		w.fail("5: job %d: a response %t, and error %v", j.n, a.resp, a.err)
	}
	for _, err := range []error{a.err, a.bodyErr} {
		if why := w.unexplained(a, err); err != nil && why != "" {
			w.fail("1: job %d: %v: %s", j.n, err, why)
		}
	}
	if last := len(arrivals) - 1; w.h2 && last >= 0 && j.stuckAt >= 0 && (j.kind == plainReader || j.kind == beyondReplay) {
		// Nothing can come after it, so that HTTP/2 tells at once.
		if l := arrivals[last]; l.over && l.status == 0 && a.end.Sub(l.end) > 3*time.Second {
			w.fail("1: job %d ends %v after the server has given it up", j.n, a.end.Sub(l.end))
		}
	}
	if !a.resp {
		return
	}
	if a.arrival < 0 || a.arrival >= len(arrivals) || a.status != arrivals[a.arrival].status {
		w.fail("5: job %d: status %d to arrival %d, which the server did not give", j.n, a.status, a.arrival)
		return
	}
	for k, later := range arrivals[a.arrival+1:] {
		if later.answered && j.endsAfter() == 0 {
			w.fail("5: job %d: the answer to arrival %d, not to %d", j.n, a.arrival, a.arrival+1+k)
		}
	}
	if !arrivals[a.arrival].throttled || w.isBare() || j.endsAfter() != 0 || !j.again() || a.late {
		return
	}
	if j.every > time.Second {
		return // a Read that was under way then took too long to end
	}
	if a.bodyErr != nil || j.unread && slices.ContainsFunc(w.breaks, a.end.Equal) {
		return // its body broke off, so that it could not be seen that it is throttled
	}
	// A throttled response is handed back only when the retries are used up.
	times := 0
	for _, arrival := range arrivals {
		if arrival.throttled {
			times++
		}
	}
	if times <= w.retries {
		w.fail("5: job %d: the throttled response is handed back after %d of %d retries", j.n, times-1, w.retries)
	}
}

// unexplained returns why nothing explains err, if so.
func (w *world) unexplained(a *answer, err error) string {
	if a.late {
		return ""
	}
	j := a.job
	_, refused := errors.AsType[*clarifaihttp.WaitError](err)
	switch elapsed := a.end.Sub(a.start); {
	case refused:
		if w.isBare() || j.deadline == 0 {
			return "there is no deadline"
		}
		return ""
	case errors.Is(err, context.DeadlineExceeded) && j.deadline != 0 && elapsed >= j.deadline,
		j.cancel != 0 && elapsed >= j.cancel,
		j.canceled != 0 && elapsed >= j.canceled:
		return ""
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, errPlanned):
		return fmt.Sprintf("after %v, deadline %v, cancel %v and %v", elapsed, j.deadline, j.cancel, j.canceled)
	case errors.Is(err, errDial), errors.Is(err, errGetBody):
		return ""
	case !j.again() && err != nil && (strings.Contains(err.Error(), "its body was not kept") ||
		strings.Contains(err.Error(), "cannot retry err") || strings.Contains(err.Error(), "cannot rewind body")):
		return "" // the server left, and net/http cannot send it again
	case a.status >= http.StatusBadRequest && a.status == w.form.status && w.form.long && !w.isBare():
		return "" // it was too long to be kept whole until it was handed back
	}
	for _, at := range w.breaks {
		if !at.After(a.end) {
			return ""
		}
	}
	return "no connection broke before"
}
