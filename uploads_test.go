package clarifaihttp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
)

// uploads counts the requests that come to it twice: by their headers and, as a
// server does that counts behind a buffer, when they have come whole.
type uploads struct {
	heads, ends *timeline
	deaf        chan struct{} // until it is closed, the body at /deaf is not read
}

func newUploads() *uploads {
	return &uploads{newTimeline(), newTimeline(), make(chan struct{})}
}

func (u *uploads) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	u.heads.mark()
	if req.URL.Path == "/deaf" {
		<-u.deaf
	}
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return
	}
	u.ends.mark()
	io.WriteString(w, okBody)
}

// drip is a body that gives a byte now and then.
type drip struct {
	n     int
	every time.Duration
	wait  func(time.Duration)
}

func (d *drip) Read(p []byte) (int, error) {
	if d.n == 0 {
		return 0, io.EOF
	}
	d.n--
	d.wait(d.every)
	return copy(p, "."), nil
}

// TestUploadsThatDoNotEnd has 15 uploads hang, or take very long. Others go on
// after a minute and W; what ends later than that needs a slot anew.
func TestUploadsThatDoNotEnd(t *testing.T) {
	const lapse = time.Minute + 1010*ms
	for _, tt := range []struct {
		name    string
		http1   bool // alone
		path    string
		transit time.Duration
		ends    bool // by themselves
		body    func(*sync.WaitGroup) io.Reader
	}{
		{name: "server does not read", path: "/deaf", body: func(*sync.WaitGroup) io.Reader {
			return bytes.NewReader(make([]byte, 100_000))
		}},
		// HTTP/2 reads a body whole that waits for the server to read, and may write it at
		// any time.
		{name: "server does not read, answers only", http1: true, path: "/deaf", transit: -1, body: func(*sync.WaitGroup) io.Reader {
			return bytes.NewReader(make([]byte, 100_000))
		}},
		{name: "open streams", body: func(open *sync.WaitGroup) io.Reader {
			r, w := io.Pipe()
			go func() {
				w.Write([]byte("first"))
				open.Wait()
				w.Close()
			}()
			return r
		}},
		{name: "slow pipes", ends: true, body: func(*sync.WaitGroup) io.Reader {
			return &drip{n: 200, every: time.Second, wait: time.Sleep}
		}},
		{name: "slow pipes, answers only", ends: true, transit: -1, body: func(*sync.WaitGroup) io.Reader {
			return &drip{n: 200, every: time.Second, wait: time.Sleep}
		}},
	} {
		overBoth(t, tt.name, tt.http1, func(t *testing.T, proto string) {
			u := newUploads()
			server := newServer(proto, true, u)
			defer server.Close()
			th := &clarifaihttp.Throttle{Transit: tt.transit}
			rt := over(server.Client().Transport, th)
			ctx := patient(t, time.Hour)

			var open, wg sync.WaitGroup
			open.Add(1)
			for range 15 {
				body := tt.body(&open)
				wg.Go(func() {
					if text, err := fetch(ctx, rt, server.URL+tt.path, body); err != nil || !strings.HasPrefix(text, "200") {
						t.Errorf("upload: %q, %v", text, err)
					}
				})
			}
			synctest.Wait()
			served(t, together(ctx, rt, server.URL, 15), lapse)

			// All end at once, amid others.
			time.AfterFunc(139*time.Second-lapse-500*ms, open.Done)
			time.AfterFunc(139*time.Second-lapse-500*ms, func() { close(u.deaf) })
			time.Sleep(139*time.Second - lapse - time.Second)
			if tt.ends {
				time.Sleep(61 * time.Second)
			}
			served(t, together(ctx, rt, server.URL, 60), 20*time.Second)
			wg.Wait()
			if heads, ends := u.heads.peak(), u.ends.peak(); heads > 15 || ends > 15 && tt.path != "/deaf" {
				t.Errorf("in a second %d headers and %d ends arrived", heads, ends)
			}
			idle(t, th)
		})
	}
}

// overBoth runs a test in virtual time, over HTTP/1.1 and HTTP/2.
func overBoth(t *testing.T, name string, http1 bool, test func(t *testing.T, proto string)) {
	for _, proto := range []string{plainHTTP1, http2} {
		if http1 && proto == http2 {
			continue
		}
		t.Run(name+", "+proto, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, proto) })
		})
	}
}

// TestUploadThatIsHeldBack has the end of an upload wait for a slot while other
// things happen.
func TestUploadThatIsHeldBack(t *testing.T) {
	errAborted := errors.New("aborted")
	for _, tt := range []struct {
		name   string
		answer time.Duration // the server answers the upload amid its body; 0: at its end
		cancel time.Duration // 0: never
		fail   bool          // the body ends by an error
		want   string
		err    error
		at     time.Duration
	}{
		{name: "slot", want: "200", at: 73*time.Second + 990*ms},
		{name: "answer comes first", answer: 72 * time.Second, want: "200", at: 72 * time.Second},
		{name: "canceled", cancel: 72 * time.Second, err: errAborted, at: 72 * time.Second},
		{name: "body fails", fail: true, err: errAborted, at: 70 * time.Second},
	} {
		overBoth(t, tt.name, false, func(t *testing.T, proto string) {
			begin := time.Now()
			server := newServer(proto, true, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				switch {
				case req.Method == http.MethodGet:
					sleep(req.Context(), 10*time.Second) // holds the slot
				case tt.answer > 0:
					http.NewResponseController(w).EnableFullDuplex()
					time.Sleep(time.Until(begin.Add(tt.answer)))
					w.Header().Set("Content-Length", fmt.Sprint(len(okBody)))
					defer io.Copy(io.Discard, req.Body)
					defer http.NewResponseController(w).Flush()
				default:
					if _, err := io.Copy(io.Discard, req.Body); err != nil {
						return
					}
				}
				io.WriteString(w, okBody)
			}))
			defer server.Close()
			th := &clarifaihttp.Throttle{Limit: 1, Transit: -1}
			rt := over(server.Client().Transport, th)
			ctx, cancel := context.WithCancelCause(patient(t, time.Hour))
			if tt.cancel > 0 {
				time.AfterFunc(tt.cancel, func() { cancel(errAborted) })
			}
			defer cancel(nil)

			r, w := io.Pipe()
			up := &countedBody{Reader: r, t: t, what: "body"}
			time.AfterFunc(70*time.Second, func() {
				if tt.fail {
					w.CloseWithError(errAborted)
				} else {
					w.Close()
				}
			})
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(62*time.Second + 980*ms) // its slot is free at 73.99 s
				served(t, together(patient(t, time.Hour), rt, server.URL, 1), 11*time.Second)
			})
			text, err := fetch(ctx, rt, server.URL, up)
			at := time.Since(begin).Round(10 * ms)
			if tt.cancel > 0 && proto == http2 && errors.Is(err, context.Canceled) {
				err = context.Cause(ctx) // net/http's HTTP/2 does not name it
			}
			if !strings.HasPrefix(text, tt.want) || !errors.Is(err, tt.err) || at != tt.at {
				t.Errorf("%q, %v at %v, want %v, %v at %v", text, err, at, tt.want, tt.err, tt.at)
			}
			wg.Wait()
			w.Close()
			synctest.Wait()
			up.check()
			idle(t, th)
		})
	}
}

// rewound is a body whose GetBody returns the same object again, from its start,
// as connect-go's does. It is not safe for use by two attempts at a time.
type rewound struct {
	*bytes.Reader
	users *atomic.Int32
}

func (r rewound) Read(p []byte) (int, error) {
	if r.users.Add(1) > 1 {
		panic("two attempts read it")
	}
	defer r.users.Add(-1)
	return r.Reader.Read(p[:min(len(p), 4<<10)])
}

func (rewound) Close() error { return nil }

// TestGetBodyOfSameObject has uploads of 3 MB throttled while they go on. Each
// must come whole in the end, or the throttled response is handed back.
func TestGetBodyOfSameObject(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	var n atomic.Int64
	var cut atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if n.Add(1)%2 == 1 {
			io.CopyN(io.Discard, req.Body, 64<<10)
			http.NewResponseController(w).EnableFullDuplex()
			writeThrottled(w)
			http.NewResponseController(w).Flush()
			io.Copy(io.Discard, req.Body)
			return
		}
		b, err := io.ReadAll(req.Body)
		if err == nil && !bytes.Equal(b, data) {
			cut.Add(1)
		}
		io.WriteString(w, okBody)
	}))
	defer server.Close()
	base := server.Client().Transport.(*http.Transport)
	th := tight()
	rt := over(base, th)
	defer base.CloseIdleConnections()

	calls := 8
	if testing.Short() {
		calls = 4
	}
	var whole, back atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range calls {
				body := rewound{bytes.NewReader(data), new(atomic.Int32)}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, body)
				if err != nil {
					t.Error(err)
					return
				}
				req.ContentLength = int64(len(data))
				req.GetBody = func() (io.ReadCloser, error) {
					body.Seek(0, io.SeekStart)
					return body, nil
				}
				resp, err := rt.RoundTrip(req)
				switch {
				case err != nil:
					t.Error(err)
					continue
				case resp.StatusCode == http.StatusOK:
					whole.Add(1)
				default:
					back.Add(1)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	if n := cut.Load(); n > 0 {
		t.Errorf("%d were cut short", n)
	}
	t.Logf("%d whole, %d handed back", whole.Load(), back.Load())
}

// TestGetBodyOfSameObjectAfterResend has net/http send a body again by itself. It
// still reads that when the throttled response comes: the next attempt must wait.
func TestGetBodyOfSameObjectAfterResend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const text = "0123456789abcdef"
		var got []string
		rt := newTransport(&clarifaihttp.Throttle{Backoff: ms}, func(req *http.Request) (*http.Response, error) {
			if len(got) == 0 {
				got = append(got, "throttled")
				req.Body.Close()
				again, err := req.GetBody()
				if err != nil {
					return nil, err
				}
				go func() {
					io.ReadAll(again)
					again.Close()
				}()
				sent(req)
				synctest.Wait()
				return throttled(""), nil
			}
			sent(req)
			b, err := io.ReadAll(req.Body)
			got = append(got, string(b))
			return ok(), err
		})
		body := slowBody{strings.NewReader(text)}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://server/", body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = int64(len(text))
		req.GetBody = func() (io.ReadCloser, error) {
			body.Seek(0, io.SeekStart)
			return body, nil
		}
		resp, err := rt.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusOK || len(got) != 2 || got[1] != text {
			t.Errorf("%v, %v after the bodies %q", resp, err, got)
		}
	})
}

// A slowBody takes its time for each Read.
type slowBody struct{ *strings.Reader }

func (b slowBody) Read(p []byte) (int, error) {
	time.Sleep(100 * ms)
	return b.Reader.Read(p)
}

func (slowBody) Close() error { return nil }
