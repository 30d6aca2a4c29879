package clarifaihttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// The server that callers lose patience with begins the body "begin" and five
// bytes more, or nothing at all, as the path of a request says.
const (
	stallsInHeader    = "/header"
	stallsInBody      = "/body"
	stallsInErrorBody = "/body/500" // which is looked at
	endedBefore       = "/before"   // the server is not asked
)

// stalling answers as far as the path says, calls stalled, and waits.
func stalling(stalled func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if strings.HasPrefix(r.URL.Path, stallsInBody) {
			w.Header().Set("Content-Length", "10")
			if r.URL.Path == stallsInErrorBody {
				w.WriteHeader(500)
			}
			io.WriteString(w, "begin")
			http.NewResponseController(w).Flush()
		}
		stalled()
		<-r.Context().Done()
	}
}

// A caller who ends a request, in any way and at any moment, gets the same error.
func TestContractInterrupted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(*http.Request) (*http.Request, func()) // returns what ends it
		client  bool
		before  bool // it may end before it is sent
	}{
		{name: "canceled", prepare: byCancel, before: true},
		// Over an HTTP/2 connection that there is already, the bare base does not
		// give the cause of a context that is done before.
		{name: "canceled, with a Client", prepare: byCancel, client: true},
		{name: "deadline", prepare: byDeadline, before: true},
		{name: "Request.Cancel", prepare: cancelable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			play(t, scene{virtual: true}, func(s *stage) {
				send := s.rt.RoundTrip
				if tt.client {
					send = s.client.Do
				}
				for _, at := range []string{endedBefore, stallsInHeader, stallsInBody, stallsInErrorBody} {
					if at == endedBefore && !tt.before {
						continue
					}
					req, end := tt.prepare(s.request("POST", at, opaque(strings.NewReader(content))))
					end = sync.OnceFunc(end)
					defer end()
					s.serve = stalling(func() {
						switch at {
						case stallsInHeader:
							end()
						case stallsInErrorBody: // when the client has what there is of it
							time.AfterFunc(ms, end)
						}
					})
					if at == endedBefore {
						end()
					}
					resp, err := send(req)
					if at == stallsInBody && err == nil {
						resp.Body = &endsIn{resp.Body, len("begin"), end}
					}
					s.response(resp, err)
				}
			})
		})
	}
}

func byCancel(req *http.Request) (*http.Request, func()) {
	ctx, cancel := context.WithCancelCause(req.Context())
	return req.WithContext(ctx), func() { cancel(errOwn) }
}

func byDeadline(req *http.Request) (*http.Request, func()) {
	ctx := &expires{Context: req.Context(), done: make(chan struct{})}
	return req.WithContext(ctx), func() { close(ctx.done) }
}

// expires is a context whose deadline passes when done is closed.
type expires struct {
	context.Context
	done chan struct{}
}

func (e *expires) Deadline() (time.Time, bool) { return time.Now().Add(time.Hour), true }
func (e *expires) Done() <-chan struct{}       { return e.done }

func (e *expires) Err() error {
	select {
	case <-e.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// endsIn calls end when so many bytes have been read and more are waited for.
type endsIn struct {
	io.ReadCloser
	bytes int
	end   func()
}

func (e *endsIn) Read(p []byte) (int, error) {
	if e.bytes <= 0 {
		time.AfterFunc(ms, e.end)
	}
	n, err := e.ReadCloser.Read(p)
	e.bytes -= n
	return n, err
}

// A Client's Timeout ends the wait for a server that stalls after as long, with
// as much of the body. The text of the error is not compared: a Client ends the
// context of a request alone if it knows the Transport, else it closes
// Request.Cancel, too, and the text depends on what is seen first.
func TestContractClientTimeout(t *testing.T) {
	outcomes := func(t *testing.T, throttles int32, over func(http.RoundTripper) http.RoundTripper) (notes []string) {
		var requests atomic.Int32
		synctest.Test(t, func(t *testing.T) {
			stall := stalling(func() {})
			srv := throttletest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if requests.Add(1) <= throttles {
					writeThrottled(w)
					return
				}
				stall(w, r)
			}))
			defer srv.Close()
			client := &http.Client{Transport: over(srv.Client().Transport), Timeout: time.Minute}
			note := func(err error) {
				timeout, ok := err.(net.Error)
				notes = append(notes, fmt.Sprintf("timeout=%v deadline=%v", ok && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded)))
			}
			for _, at := range []string{stallsInHeader, stallsInBody, stallsInErrorBody} {
				begin := time.Now()
				resp, err := client.Get("http://server" + at)
				notes = append(notes, fmt.Sprintf("%T", err))
				note(err)
				if err == nil {
					b, err := io.ReadAll(resp.Body)
					notes = append(notes, fmt.Sprintf("%s %q", resp.Status, b))
					note(err)
					resp.Body.Close()
				}
				notes = append(notes, time.Since(begin).String())
			}
		})
		return notes
	}
	bare := outcomes(t, 0, func(base http.RoundTripper) http.RoundTripper { return base })
	for throttles := range int32(2) {
		ours := outcomes(t, throttles, func(base http.RoundTripper) http.RoundTripper {
			return clarifaihttp.NewTransport(base, clarifaihttp.WithLogger(quiet))
		})
		compare(t, fmt.Sprintf("%d throttles", throttles), bare, ours)
	}
}

// What ends a wait in the line looks as it does where the bare base waits.
func TestContractTimeoutInLine(t *testing.T) {
	for _, tt := range []struct {
		name     string
		timeout  time.Duration // the client's
		deadline time.Duration // the context's
		cancel   time.Duration
		slow     bool // the slot is not free before its answer, nobody knows when
		want     time.Duration
		err      error
	}{
		{name: "too early", timeout: 500 * ms, want: 0, err: context.DeadlineExceeded},
		{name: "passes", timeout: 3 * time.Second, slow: true, want: 3 * time.Second, err: context.DeadlineExceeded},
		{name: "deadline", deadline: 3 * time.Second, slow: true, want: 3 * time.Second, err: context.DeadlineExceeded},
		{name: "cancel", cancel: 3 * time.Second, timeout: time.Hour, slow: true, want: 3 * time.Second, err: errOwn},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				th := &clarifaihttp.Throttle{Limit: 1, Transit: -1}
				client := &http.Client{Transport: newTransport(th, func(req *http.Request) (*http.Response, error) {
					if tt.slow {
						time.Sleep(time.Minute)
					}
					return ok(), nil
				})}
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() {
					resp, err := client.Transport.RoundTrip(get(t.Context(), t))
					if err != nil {
						t.Error(err)
						return
					}
					resp.Body.Close()
				})
				synctest.Wait()

				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if tt.cancel != 0 {
					time.AfterFunc(tt.cancel, func() { cancel(errOwn) })
				}
				if tt.deadline != 0 {
					var stop context.CancelFunc
					ctx, stop = context.WithTimeout(ctx, tt.deadline)
					defer stop()
				}
				client.Timeout = tt.timeout
				begin := time.Now()
				_, err := client.Do(get(ctx, t))
				failure, isURL := err.(*url.Error)
				if d := time.Since(begin); !isURL || d != tt.want || !errors.Is(err, tt.err) ||
					failure.Timeout() != (tt.err == context.DeadlineExceeded) {
					t.Errorf("%v after %v, want %v after %v", err, d, tt.err, tt.want)
				}
				if s := th.Stats(); s.Waiting != 0 || s.Attempts != 1 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}
