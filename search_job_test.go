package clarifaihttp_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// An answer is what a caller got.
type answer struct {
	job        *job
	start, end time.Time
	resp       bool  // there was a response
	status     int   // of it
	arrival    int   // that it answers
	length     int   // of its body
	err        error // of RoundTrip
	bodyErr    error // of the response's body
	late       bool  // it was there until all were canceled
}

var (
	errPlanned = errors.New("canceled by plan")
	errLate    = errors.New("canceled, since all should have ended long ago")
	errGetBody = errors.New("GetBody fails by plan")
)

// do is the caller of one job.
func (w *world) do(all context.Context, rt http.RoundTripper, j *job) {
	time.Sleep(j.at)
	a := &answer{job: j, start: time.Now()}
	w.mu.Lock()
	w.answers[j.n] = a
	w.mu.Unlock()
	ctx, cancel := context.WithCancelCause(all)
	defer cancel(nil)
	req := w.request(ctx, j)
	if j.cancel != 0 {
		defer time.AfterFunc(j.cancel, func() { w.note("job %d is canceled", j.n); cancel(errPlanned) }).Stop()
	}
	if j.deadline != 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, j.deadline)
		defer stop()
		req = req.WithContext(ctx)
	}
	if j.canceled != 0 {
		canceled := make(chan struct{})
		//lint:ignore SA1019 it works as long as net/http has it
		req.Cancel = canceled
		defer time.AfterFunc(j.canceled, func() { w.note("job %d is canceled by Request.Cancel", j.n); close(canceled); w.giveUp(j) }).Stop()
	}
	// A caller that gives up closes its pipe: HTTP/1 waits for a Read.
	defer context.AfterFunc(ctx, func() { w.giveUp(j) })()
	w.note("%v", j)
	resp, err := rt.RoundTrip(req)
	if resp != nil {
		a.resp, a.status, a.arrival = true, resp.StatusCode, -1
		if k, err := strconv.Atoi(resp.Header.Get("X-Arrival")); err == nil {
			a.arrival = k
		}
		if !j.unread {
			var b []byte
			b, a.bodyErr = io.ReadAll(resp.Body)
			a.length = len(b)
			if a.bodyErr == nil && resp.ContentLength != int64(len(b)) {
				w.fail("job %d: a response body of %d bytes, want %d", j.n, len(b), resp.ContentLength)
			}
		}
		resp.Body.Close()
	}
	a.err, a.late, a.end = err, context.Cause(all) != nil, time.Now()
	w.note("job %d ends: %d to arrival %d, %v, %v", j.n, a.status, a.arrival, err, a.bodyErr)
}

// request returns the request of j.
func (w *world) request(ctx context.Context, j *job) *http.Request {
	method, body := http.MethodPost, io.Reader(nil)
	switch j.kind {
	case noBody:
		method = http.MethodGet
	case inMemory:
		body = bytes.NewReader(j.data)
	default:
		u := w.upload(j)
		u.first = true
		body = u
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://server/", body)
	if err != nil {
		panic(err)
	}
	req.Header.Set("X-Job", strconv.Itoa(j.n))
	if j.known {
		req.ContentLength = int64(len(j.data))
	}
	switch j.kind {
	case rewindable:
		req.GetBody = func() (io.ReadCloser, error) { return w.upload(j), nil }
	case failingGet:
		req.GetBody = func() (io.ReadCloser, error) { return nil, errGetBody }
	case sameObject:
		same := body.(*upload)
		same.keepsOpen = true
		req.GetBody = func() (io.ReadCloser, error) { same.rewind(); return same, nil }
	}
	return req
}

// An upload is a request body whose Reads take as long as the job says. Close
// ends a Read that is under way, as with an io.Pipe.
type upload struct {
	*job
	first     bool // the caller's own, not one of GetBody's
	keepsOpen bool // Close does nothing, so that it can be read again

	mu     sync.Mutex // guards off and closes; not held while a Read waits
	off    int
	closes int

	closed  chan struct{}
	givenUp chan struct{} // by its caller
}

func (w *world) upload(j *job) *upload {
	u := &upload{job: j, closed: make(chan struct{}), givenUp: make(chan struct{})}
	w.mu.Lock()
	w.uploads = append(w.uploads, u)
	w.mu.Unlock()
	return u
}

// giveUp ends all Reads of j's bodies.
func (w *world) giveUp(j *job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.uploads {
		if u.job == j && !closed(u.givenUp) {
			close(u.givenUp)
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (u *upload) Read(b []byte) (int, error) {
	u.mu.Lock()
	off := u.off
	u.mu.Unlock()
	end := len(u.data)
	if u.pieces > 0 && off < end {
		end = min(end, off+len(u.data)/u.pieces+1)
	}
	wait := u.every
	if u.stuckAt >= 0 {
		if end = min(end, u.stuckAt); off >= end {
			wait = 2 * lateAt
		}
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-u.closed:
		case <-u.givenUp:
		}
	}
	if closed(u.closed) || closed(u.givenUp) {
		return 0, io.ErrClosedPipe
	}
	if off == len(u.data) {
		return 0, io.EOF
	}
	n := copy(b, u.data[off:end])
	u.mu.Lock()
	u.off += n
	u.mu.Unlock()
	return n, nil
}

func (u *upload) rewind() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.off = 0
}

func (u *upload) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closes++; u.closes == 1 && !u.keepsOpen {
		close(u.closed)
	}
	return nil
}
