package clarifaihttp

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"example.com/clarifaihttp/internal/gate"
	"example.com/clarifaihttp/internal/grpcstatus"
)

const (
	maxLook  = 16 << 10 // bytes looked at of an error's body, as sent and as decompressed
	maxSmall = 1 << 10  // Content-Length up to which JSON is looked at under 2xx

	codeThrottled   = 11005
	codeOutOfCredit = "insufficient_quota" // OpenAI's, which comes with 429 although no wait cures it
)

// codes are the names in Clarifai's status_code.proto that tell CONN_THROTTLED
// from the quotas next to it.
var codes = map[string]int{
	"CONN_EXCEED_HOURLY_LIMIT":  11003,
	"CONN_EXCEED_MONTHLY_LIMIT": 11004,
	"CONN_THROTTLED":            codeThrottled,
	"CONN_EXCEEDS_LIMITS":       11006,
}

var (
	codeName = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
	limitIn  = regexp.MustCompile(`(?i)\blimit of (\d+) requests? per second\b`)
)

// Status is Clarifai's status of a whole response, as far as it is known.
type Status struct {
	Code        int    // 10000 to 99999; 0 for none and for a name whose number is not known here
	Description string // such as "Making too many requests"
	Details     string // such as "exceeded limit of 15 requests per second"
	RequestID   string // status.req_id, else the header X-Clarifai-Request-Id
}

// Detect reports whether resp is a throttled response, and returns its Clarifai
// status if it has one, throttled or not. A response is throttled if its code is
// 11005 (CONN_THROTTLED), or if it is HTTP 429 without a Clarifai status, as from a
// gateway. HTTP 429 with another Clarifai code, or with the error.code
// "insufficient_quota" of OpenAI, is a spent quota.
//
// Detect reads up to 16 KiB of the body, plain or gzip, if the status is 400 or
// more, or if a 2xx response is JSON of a known length of at most 1 KiB. It waits
// for these bytes. It puts back what it read: the body reads and closes as before.
// It does not look at other responses, nor at gRPC, which only a [Transport] does.
//
// Detect replaces resp.Body, so it must not run while another goroutine uses resp.
// It may be called again.
func Detect(resp *http.Response) (Status, bool) {
	if resp == nil {
		return Status{}, false
	}
	var f findings
	if worthALook(resp) {
		f = look(resp)
	}
	if f.status.RequestID == "" {
		f.status.RequestID = resp.Header.Get("X-Clarifai-Request-Id")
	}
	bare := resp.StatusCode == http.StatusTooManyRequests && !f.known && !f.outOfCredit
	return f.status, f.status.Code == codeThrottled || bare
}

// detect is [Detect], and for gRPC a look at the first message. While the
// request is still being sent that may not have come: then the caller's Reads
// look on, and have the response judged.
func (c *call) detect() (s Status, throttled, known bool) {
	if !grpcstatus.In(c.resp) {
		s, throttled = Detect(c.resp)
		return s, throttled, true
	}
	header := c.resp.Header
	verdict := func(found grpcstatus.Status) (Status, bool) {
		s := Status{found.Code, found.Description, found.Details, cmp.Or(found.RequestID, header.Get("X-Clarifai-Request-Id"))}
		return s, s.Code == codeThrottled
	}
	progress := func() grpcstatus.Progress {
		if c.source == nil || c.req.GetBody != nil { // it does not wait for anything
			return grpcstatus.Progress{Over: true}
		}
		sent, first, all := c.source.Sent()
		return grpcstatus.Progress{Sent: sent, First: first, Over: all}
	}
	later := func(found grpcstatus.Status) {
		s, throttled := verdict(found)
		c.judge(s, throttled)
		if throttled {
			c.handsBack("stream is open")
		}
	}
	resp, found, known := grpcstatus.Look(c.Context, c.resp, progress, later)
	c.resp = resp
	if known {
		s, throttled = verdict(found)
	}
	return s, throttled, known
}

// verdictOf returns what a throttled response says.
func verdictOf(resp *http.Response, status Status) gate.Verdict {
	v := gate.Verdict{Bare: status.Code != codeThrottled}
	v.RetryAfter, v.Asked = retryAfter(resp.Header, time.Now())
	v.Limit, _ = limitOf(status.Details)
	return v
}

var _ retryablehttp.CheckRetry = CheckRetry

// CheckRetry is a [retryablehttp.CheckRetry] that retries the responses that
// [Detect] calls throttled, and nothing else: to retry 5xx and connection errors,
// too, call retryablehttp.DefaultRetryPolicy where it returns false. It is for
// those who have a retryablehttp.Client already. Set the client's RetryWaitMin to
// 15 s, which Clarifai recommends. Unlike a [Transport], CheckRetry holds back no
// other request of the account.
//
// If ctx is done, CheckRetry returns false and the [context.Cause].
func CheckRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		return false, nil // the client returns err itself
	}
	_, throttled := Detect(resp)
	return throttled, nil
}

// worthALook reports whether a Clarifai status may be in the body. Under 2xx a
// throttle's is small; everything else may be a stream, or large, or not yet
// there, and is the caller's alone.
func worthALook(resp *http.Response) bool {
	if resp.Body == nil || resp.Body == http.NoBody ||
		resp.Request != nil && resp.Request.Method == http.MethodHead {
		return false
	}
	if resp.StatusCode >= 400 {
		return true
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 300 || resp.Uncompressed ||
		resp.ContentLength <= 0 || resp.ContentLength > maxSmall {
		return false
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	mediaType = strings.ToLower(strings.TrimSpace(mediaType))
	return mediaType == "application/json" ||
		strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json")
}

// look reads the start of resp's body and puts it back.
func look(resp *http.Response) (f findings) {
	kept := &recorder{body: resp.Body, length: resp.ContentLength}
	switch strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding"))) {
	case "", "identity":
		f = find(kept)
	case "gzip", "x-gzip": // x-gzip: RFC 9110, section 8.4.1.3
		if z, err := gzip.NewReader(kept); err == nil {
			f = find(io.LimitReader(z, maxLook))
		}
	}
	if len(kept.head) > 0 || kept.err != nil {
		resp.Body = &restored{ReadCloser: resp.Body, head: kept.head, err: kept.err}
	}
	return f
}

// A recorder keeps the first maxLook bytes of a body and the error that came
// with or instead of them. Then it pretends that the body has ended; as it
// does for one that keeps giving nothing, which a json.Decoder reads for ever.
//
// The last byte, where it is known to be, is read by itself: with it net/http
// may give the connection to another request, which must not go before it is
// known that the account is throttled.
type recorder struct {
	body    io.Reader
	length  int64 // of body; not positive: unknown
	head    []byte
	err     error
	nothing int // Reads in a row that returned 0, nil
}

func (r *recorder) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	p = p[:min(len(p), maxLook-len(r.head))]
	if len(p) == 0 || r.nothing == 100 {
		return 0, io.EOF
	}
	if left := r.length - int64(len(r.head)); left > 1 {
		p = p[:min(int64(len(p)), left-1)]
	}
	n, err := r.body.Read(p)
	r.head, r.err = append(r.head, p[:n]...), err
	if r.nothing++; n > 0 {
		r.nothing = 0
	}
	return n, err
}

// restored is a body with what was read of it put back in front. Once closed
// it is the original alone, whose word on reading after Close counts. Close
// may come from another goroutine than Read, as it may with net/http's bodies.
type restored struct {
	io.ReadCloser
	head   []byte
	err    error // came after head
	closed atomic.Bool
}

func (b *restored) Read(p []byte) (n int, err error) {
	switch {
	case b.closed.Load():
	case len(b.head) > 0:
		n = copy(p, b.head)
		b.head = b.head[n:]
		return n, nil
	case b.err != nil:
		err, b.err = b.err, nil
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

func (b *restored) Close() error {
	b.closed.Store(true)
	return b.ReadCloser.Close()
}

// findings are what a body says.
type findings struct {
	status      Status
	known       bool // status is Clarifai's
	outOfCredit bool // error.code is codeOutOfCredit
}

// find reads a JSON object until it has a Clarifai status or the object ends.
func find(body io.Reader) (f findings) {
	r := &tokens{dec: json.NewDecoder(body)}
	r.dec.UseNumber()
	if r.next() != json.Delim('{') {
		return f // an array, say, which may take long to end and has nothing for us
	}
	for key := range r.keys("status", "result", "error") {
		switch {
		case !r.object():
		case key == "status":
			f.status, f.known = r.status()
		case key == "result":
			for range r.keys("status") {
				if r.object() {
					f.status, f.known = r.status()
				}
			}
		case key == "error":
			for range r.keys("code") {
				f.outOfCredit = r.value() == codeOutOfCredit
			}
		}
	}
	return f
}

// tokens walks through JSON without recursion: it steps into the objects it is
// told to and over anything else. An error ends all of its loops, and so does
// a Clarifai status: what comes after it is not read, it may never come.
type tokens struct {
	dec *json.Decoder
	err error
}

func (r *tokens) next() (tok json.Token) {
	if r.err == nil {
		tok, r.err = r.dec.Token()
	}
	return tok
}

// keys yields those of names that the object just entered has, each at its
// first occurrence; the loop's body reads the value. After the loop the object
// is left behind.
func (r *tokens) keys(names ...string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for {
			key, ok := r.next().(string)
			if !ok {
				return
			}
			if i := slices.Index(names, key); i < 0 {
				r.value()
			} else if names = slices.Delete(names, i, i+1); !yield(key) {
				return
			}
		}
	}
}

// object enters the value if it is an object, else steps over it.
func (r *tokens) object() bool {
	tok := r.next()
	if tok == json.Delim('{') {
		return true
	}
	r.finish(tok)
	return false
}

// value returns the value if it is a scalar, else steps over it.
func (r *tokens) value() json.Token {
	tok := r.next()
	r.finish(tok)
	return tok
}

// finish reads to the end of the value that begins with tok.
func (r *tokens) finish(tok json.Token) {
	for depth := 0; r.err == nil; tok = r.next() {
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return
		}
	}
}

// status reads the status object just entered; ok if its code is Clarifai's,
// not HTTP's or gRPC's in a foreign body.
func (r *tokens) status() (s Status, ok bool) {
	for key := range r.keys("code", "description", "details", "req_id") {
		v := r.value()
		text, _ := v.(string)
		switch key {
		case "code":
			s.Code, ok = parseCode(fmt.Sprint(v))
		case "description":
			s.Description = text
		case "details":
			s.Details = text
		case "req_id":
			s.RequestID = text
		}
	}
	if !ok {
		return Status{}, false
	}
	r.err = io.EOF
	return s, true
}

// parseCode reads one of Clarifai's codes, which all have five digits, or its
// name. A name that is not listed is known to be a code, its number is not.
func parseCode(text string) (code int, ok bool) {
	if n, err := strconv.Atoi(text); err == nil {
		return n, len(text) == 5 && n >= 10000
	}
	return codes[text], codeName.MatchString(text)
}

// retryAfter reads Retry-After (RFC 9110, section 10.2.3): seconds or a date.
// A date is taken against the answer's own Date, if it has one, so that the
// clocks' difference does not count. What is negative or past is 0.
func retryAfter(h http.Header, now time.Time) (wait time.Duration, ok bool) {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if digits := strings.TrimPrefix(v, "-"); digits != "" && strings.Trim(digits, "0123456789") == "" {
		seconds, _ := strconv.ParseInt(v, 10, 64) // the nearest int64 if out of range
		if seconds > math.MaxInt64/int64(time.Second) {
			return math.MaxInt64, true
		}
		return time.Duration(max(seconds, 0)) * time.Second, true
	}
	until, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	if date, err := http.ParseTime(strings.TrimSpace(h.Get("Date"))); err == nil {
		now = date
	}
	return max(until.Sub(now), 0), true
}

// limitOf finds the limit that the details of a throttled response name.
func limitOf(details string) (perSecond int, ok bool) {
	m := limitIn.FindStringSubmatch(details)
	if m == nil {
		return 0, false
	}
	perSecond, err := strconv.Atoi(m[1])
	return perSecond, err == nil && perSecond >= 1
}
