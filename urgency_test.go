package clarifaihttp_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/throttletest"
)

// A lineup sends named requests and records in which order they leave.
type lineup struct {
	t     *testing.T
	rt    http.RoundTripper
	wg    sync.WaitGroup
	mu    sync.Mutex
	order []string
	begin time.Time
	at    map[string]time.Duration // start of the latest attempt
	ended map[string]error
}

// newLineup has answer serve each attempt, after it was recorded.
func newLineup(t *testing.T, th *clarifaihttp.Throttle, answer func(name string, attempt int) *http.Response) *lineup {
	l := &lineup{t: t, begin: time.Now(), at: map[string]time.Duration{}, ended: map[string]error{}}
	l.rt = newTransport(th, func(req *http.Request) (*http.Response, error) {
		l.mu.Lock()
		name := req.Header.Get("Name")
		l.order = append(l.order, name)
		l.at[name] = time.Since(l.begin)
		attempt := len(l.order)
		l.mu.Unlock()
		time.Sleep(100 * ms)
		return answer(name, attempt), nil
	})
	return l
}

// send sends a request and returns when it waits.
func (l *lineup) send(ctx context.Context, name, priority string) {
	req := get(ctx, l.t)
	req.Header.Set("Name", name)
	if priority != "" {
		req.Header.Set("Priority", priority)
	}
	l.wg.Go(func() {
		resp, err := l.rt.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		l.mu.Lock()
		l.ended[name] = err
		l.mu.Unlock()
	})
	synctest.Wait()
}

// end returns how a request ended, if it did.
func (l *lineup) end(name string) (ended bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err, ended = l.ended[name]
	return ended, err
}

// refused fails the test unless a request has ended by a WaitError.
func (l *lineup) refused(name string) {
	l.t.Helper()
	_, err := l.end(name)
	if _, ok := errors.AsType[*clarifaihttp.WaitError](err); !ok {
		l.t.Errorf("%s: got %v, want a WaitError", name, err)
	}
}

func (l *lineup) check(want string) {
	l.t.Helper()
	l.wg.Wait()
	if got := strings.Join(l.order, " "); got != want {
		l.t.Errorf("order %s, want %s", got, want)
	}
}

func always(string, int) *http.Response { return ok() }

func TestUrgency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineup(t, &clarifaihttp.Throttle{Limit: 1}, always)
		for _, r := range []struct{ name, priority string }{
			{"first", "u=7"},
			{"7", "u=7"},
			{"none", ""},
			{"4", "u=4, i"},
			{"malformed", "u=0,"},
			{"0", "u=0"},
			{"2", "i;a=b, u=1, u=2"},
			{"range", "u=8"},
			{"0b", "u=0"},
		} {
			l.send(t.Context(), r.name, r.priority)
		}
		l.check("first 0 0b 2 none malformed range 4 7")
	})
}

func TestPriorityHeaderTravelsOn(t *testing.T) {
	lines := []string{"u=1;a=(", "i, whatever"}
	rt := newTransport(new(clarifaihttp.Throttle), func(req *http.Request) (*http.Response, error) {
		if got := req.Header["Priority"]; !slices.Equal(got, lines) {
			t.Errorf("Priority %q, want %q", got, lines)
		}
		return ok(), nil
	})
	req := get(t.Context(), t)
	req.Header["Priority"] = slices.Clone(lines)
	if _, err := rt.RoundTrip(req); err != nil {
		t.Error(err)
	}
	if !slices.Equal(req.Header["Priority"], lines) {
		t.Errorf("the caller's header is %q now", req.Header["Priority"])
	}
}

// TestUrgencyOfRetries has the first attempts of a retry of each urgency
// throttled, while newcomers wait.
func TestUrgencyOfRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineup(t, &clarifaihttp.Throttle{Limit: 2, Transit: time.Hour}, func(_ string, attempt int) *http.Response {
			if attempt <= 2 {
				return throttled("")
			}
			return ok()
		})
		l.send(t.Context(), "background", "u=7")
		l.send(t.Context(), "usual", "")
		for _, r := range []struct{ name, priority string }{
			{"background2", "u=7"}, {"usual2", "u=3"}, {"urgent", "u=0"},
		} {
			l.send(t.Context(), r.name, r.priority)
		}
		l.check("background usual urgent usual usual2 background background2")
	})
}

// TestOvertaken has a background request that could go in time be overtaken
// until its deadline. Bounds are lower ones: nothing refuses it before.
func TestOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := &clarifaihttp.Throttle{Limit: 1}
		l := newLineup(t, th, always)
		l.send(t.Context(), "first", "")
		overrun := errors.New("overrun")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, overrun)
		defer cancel()
		l.send(ctx, "background", "u=7")
		for range 10 {
			l.send(t.Context(), "urgent", "u=0")
		}
		time.Sleep(5*time.Second - time.Nanosecond)
		synctest.Wait()
		if ended, err := l.end("background"); ended {
			t.Errorf("ended before its deadline: %v", err)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if _, err := l.end("background"); err != overrun {
			t.Errorf("got %v, want the context's cause", err)
		}
		l.wg.Wait()
	})
}

// TestDeadlineCountsThoseAhead has two requests with the same deadline join a
// long line, the one behind it, the other ahead of it.
func TestDeadlineCountsThoseAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineup(t, &clarifaihttp.Throttle{Limit: 1}, always)
		for range 20 {
			l.send(t.Context(), "batch", "u=6")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		l.send(ctx, "background", "u=7")
		l.refused("background")
		l.send(ctx, "urgent", "u=5")
		l.wg.Wait()
		if at, want := l.at["urgent"], 100*ms+hold; at != want || l.ended["urgent"] != nil {
			t.Errorf("urgent went at %v (%v), want %v", at, l.ended["urgent"], want)
		}
	})
}

// TestPauseRefusesByUrgency has a pause begin while requests wait that all have
// the same deadline, of 18 s: those go who are urgent enough.
func TestPauseRefusesByUrgency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineup(t, &clarifaihttp.Throttle{Limit: 1}, func(_ string, attempt int) *http.Response {
			if attempt == 1 {
				return throttled("")
			}
			return ok()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 18*time.Second)
		defer cancel()
		l.send(t.Context(), "first", "u=1")
		for _, r := range []struct{ name, priority string }{
			{"7", "u=7"}, {"6", "u=6"}, {"2", "u=2"}, {"0", "u=0"},
		} {
			l.send(ctx, r.name, r.priority)
		}
		time.Sleep(100 * ms)
		synctest.Wait()
		// The pause ends at 15.1 s, and then one goes each 1.01 s, or more slowly:
		// the last of four not before 18.13 s.
		l.refused("7")
		l.check("first 0 first 2")
		if err := l.ended["6"]; err != context.DeadlineExceeded { // the retry overtook it
			t.Errorf("6: got %v, want the context's error", err)
		}
	})
}

// TestLimiterAndUrgency has an urgent request come while another one asks.
func TestLimiterAndUrgency(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name   string
		errors []error // of Wait, in order
		want   string
		asked  int
	}{
		{"the permission is for whoever is first", nil, "first urgent asks next", 4},
		{"an error refuses the one who asked alone", []error{nil, broken}, "first urgent next", 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				lim := &limiter{arrived: newTimeline(), wait: func(ctx context.Context) error {
					asked++
					n := asked
					if err := sleep(ctx, 300*ms); err != nil {
						return err
					}
					if n <= len(tt.errors) {
						return tt.errors[n-1]
					}
					return nil
				}}
				l := newLineup(t, &clarifaihttp.Throttle{Limiter: lim}, always)
				l.send(t.Context(), "first", "")
				time.Sleep(300 * ms)
				l.send(t.Context(), "asks", "")
				l.send(t.Context(), "next", "")
				time.Sleep(100 * ms)
				l.send(t.Context(), "urgent", "u=0")
				l.check(tt.want)
				if asked != tt.asked || lim.most.Load() != 1 {
					t.Errorf("asked %d times, %d at once; want %d times, one at once", asked, lim.most.Load(), tt.asked)
				}
				wantErr := error(nil)
				if tt.errors != nil {
					wantErr = broken
				}
				if err := l.ended["asks"]; !errors.Is(err, wantErr) {
					t.Errorf("the one who asked: %v, want %v", err, wantErr)
				}
				if at, want := l.at["urgent"], 600*ms; tt.errors == nil && at != want {
					t.Errorf("urgent went at %v, want %v, with the other's permission", at, want)
				}
				if at, want := l.at["urgent"], 900*ms; tt.errors != nil && at != want {
					t.Errorf("urgent went at %v, want %v, with its own permission", at, want)
				}
			})
		})
	}
}

// TestWaitIsSeenByGetConn follows one request through its waits.
func TestWaitIsSeenByGetConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := &throttletest.Handler{Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(100 * ms) })}
		server := throttletest.NewServer(handler)
		defer server.Close()
		client := server.Client()
		client.Transport = over(client.Transport, &clarifaihttp.Throttle{Limit: 1})

		var waits []time.Duration
		var start time.Time
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GetConn: func(string) { waits = append(waits, time.Since(start)) },
		})
		for range 3 {
			start = time.Now()
			resp, err := client.Do(get(ctx, t))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if len(waits) == 2 {
				handler.HaltFor(2 * time.Second)
			}
		}
		// At once; a window after the other's answer; the same, and again after the
		// pause.
		if want := []time.Duration{0, hold, hold, hold + 15*time.Second}; !slices.Equal(waits, want) {
			t.Errorf("waits %v, want %v", waits, want)
		}
	})
}
