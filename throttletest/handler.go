package throttletest

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A Handler is one account. It serves requests up to a limit. It throttles a request
// beyond the limit, with HTTP 429 and CONN_THROTTLED, and then halts: it throttles
// every request until the halt is over. After the halt the Algorithm goes on where
// it was; throttled requests use up nothing. A gRPC request (by its Content-Type) is
// throttled in gRPC: HTTP 200, one message with the status, grpc-status 0.
//
// A request counts at the instant when ServeHTTP is called. Nothing is read of the
// body of a throttled request. The zero value is ready to use. The fields must not
// be changed after the first use, which panics if a field is invalid. A Handler is
// safe for concurrent use.
type Handler struct {
	Next        http.Handler  // serves what is not throttled; nil: a status "Ok", in JSON or gRPC
	Limit       int           // requests per Window; 0: 15
	Window      time.Duration // 0: 1 s
	Halt        time.Duration // 0: 15 s; negative: none, just what is over the limit is throttled
	RestartHalt bool          // a request during a halt starts it anew
	Algorithm   Algorithm     // that counts; the zero value is SlidingLog

	Status     int      // HTTP status of throttled responses, 200 at least; 0: 429; not in gRPC
	Code       CodeForm // of the code in their body; the zero value is CodeName; not in gRPC
	RetryAfter string   // Retry-After of throttled responses, as it is; "": none, as Clarifai

	requestID atomic.Uint64

	mu       sync.Mutex // guards what follows
	limiter  limiter    // nil before first use
	now      time.Time  // the latest
	haltEnd  time.Time
	arrivals recent
	stats    Stats
}

var _ http.Handler = (*Handler)(nil)

// A CodeForm is a way to write the code of a throttled response in JSON. Clarifai
// uses the name and the number. A client should understand all of them.
type CodeForm int

const (
	CodeName   CodeForm = iota // "CONN_THROTTLED"
	CodeInt                    // 11005
	CodeString                 // "11005"
)

var codes = [...]string{CodeName: `"CONN_THROTTLED"`, CodeInt: `11005`, CodeString: `"11005"`}

// Stats are what a [Handler] has counted.
type Stats struct {
	Served    int // requests that went to Next
	Throttled int
	Peak      int // most requests, served or throttled, in less than one Window
	Taken     int // requests of others that [Handler.Take] had served; they are in no other count
}

// ServeHTTP lets Next serve the request, or throttles it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case !h.Allow(time.Now()):
		h.throttle(w, r)
	case h.Next != nil:
		h.Next.ServeHTTP(w, r)
	case isGRPC(r):
		writeGRPC(w, r, status{code: 10000, description: "Ok"})
	default:
		writeJSON(w, http.StatusOK, `{"status":{"code":10000,"description":"Ok"}}`)
	}
}

// Allow counts a request that arrives now and reports whether it is served.
// ServeHTTP calls it; a simulation without HTTP can, too. If now is before that of
// an earlier call, the request counts at the earlier call's.
func (h *Handler) Allow(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now = h.at(now)
	h.arrivals.add(now)
	h.stats.Peak = max(h.stats.Peak, h.arrivals.count(now))
	if !h.serves(now) {
		h.stats.Throttled++
		return false
	}
	h.stats.Served++
	return true
}

// Take counts n requests of another user of the account, which arrive now, and
// returns how many of them were served. If they exceed the limit, a halt begins.
func (h *Handler) Take(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, served := h.at(time.Now()), 0
	for range n {
		if h.serves(now) {
			served++
		}
	}
	h.stats.Taken += served
	return served
}

// HaltFor begins a halt, as if another user of the account had exceeded the limit.
// It lasts for d, or for Halt if d is not positive. It never shortens a halt.
func (h *Handler) HaltFor(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d <= 0 {
		d = h.halt()
	}
	h.haltUntil(h.at(time.Now()).Add(d))
}

// Stats returns what was counted so far.
func (h *Handler) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stats
}

func (h *Handler) limit() int            { return cmp.Or(h.Limit, 15) }
func (h *Handler) window() time.Duration { return cmp.Or(h.Window, time.Second) }
func (h *Handler) halt() time.Duration   { return cmp.Or(h.Halt, 15*time.Second) }

// check panics if a field is invalid.
func (h *Handler) check() {
	for _, f := range []struct {
		name  string
		value any
		valid bool
	}{
		{"Window", h.Window, h.Window >= 0},
		{"Limit", h.Limit, h.Limit >= 0 && int64(h.limit()) <= math.MaxInt64/int64(h.window())}, // see bucket
		{"Algorithm", h.Algorithm, h.Algorithm.known()},
		{"Status", h.Status, h.Status == 0 || h.Status >= 200 && h.Status <= 999},
		{"Code", h.Code, h.Code >= 0 && int(h.Code) < len(codes)},
	} {
		if !f.valid {
			panic(fmt.Sprintf("throttletest: invalid %s: %v", f.name, f.value))
		}
	}
}

// at returns now, but never one before the latest: between reading the clock and
// getting the lock, requests overtake each other. h.mu must be held.
func (h *Handler) at(now time.Time) time.Time {
	if h.limiter == nil {
		h.check()
		h.limiter = newLimiter(h.Algorithm, h.limit(), h.window())
		h.arrivals.window = h.window()
	}
	if now.After(h.now) {
		h.now = now
	}
	return h.now
}

// serves reports whether a request that arrives now is served; if not, a halt
// begins or goes on. h.mu must be held.
func (h *Handler) serves(now time.Time) bool {
	halted := now.Before(h.haltEnd)
	if !halted && h.limiter.allow(now) {
		return true
	}
	if !halted || h.RestartHalt {
		h.haltUntil(now.Add(h.halt()))
	}
	return false
}

// haltUntil prolongs the halt to end; h.mu must be held.
func (h *Handler) haltUntil(end time.Time) {
	if end.After(h.haltEnd) {
		h.haltEnd = end
	}
}

// throttle writes the answer to a request that is throttled.
func (h *Handler) throttle(w http.ResponseWriter, r *http.Request) {
	id := fmt.Sprintf("%032x", h.requestID.Add(1))
	w.Header().Set("X-Clarifai-Request-Id", id)
	if h.RetryAfter != "" {
		w.Header().Set("Retry-After", h.RetryAfter)
	}
	const description = "Making too many requests"
	details := fmt.Sprintf("exceeded limit of %d requests per %s", h.limit(), unit(h.window()))
	if isGRPC(r) {
		writeGRPC(w, r, status{11005, description, details, id})
		return
	}
	writeJSON(w, cmp.Or(h.Status, http.StatusTooManyRequests), fmt.Sprintf(
		`{"status":{"code":%s,"description":"%s","details":"%s","req_id":"%s"}}`, codes[h.Code], description, details, id))
}

// unit is a window in the words of Clarifai's details.
func unit(window time.Duration) string {
	switch window {
	case time.Second:
		return "second"
	case time.Minute:
		return "minute"
	case time.Hour:
		return "hour"
	}
	return window.String()
}

func writeJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	io.WriteString(w, body)
}
