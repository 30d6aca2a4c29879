package redisthrottle

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/internal/gate"
)

// The rule, which pool.lua and tokens.go obey.
//
// # Tokens
//
// Redis holds N = Limit tokens for the account. Each is in one of three lists:
// free, taken, or parked during a pause. A request needs one: BLMOVE moves it
// from free to taken, for those who wait in the order in which they came. It
// goes back W after the request has arrived: W is Window plus 10 ms, the
// arrival is known at the answer or Transit after the request was written, and
// the time is measured on the process's own clock, which is monotonic.
//
// So of N+1 requests one got its token from one of the others, after W from
// that one's arrival: no N+1 arrive within one window. This is the proof of
// clarifaihttp.Throttle with tokens for slots. No clock of Redis is used for
// it.
//
// A token's name has a generation, which changes whenever the token leaves
// taken. One script does all of that, and names what it moves by name and
// generation. So a call that is sent again after a lost reply, or that a
// frozen Redis executes when it wakes, does nothing: no token is ever there
// twice. Each call of the script counts the three lists; another number of
// tokens than were made, of whatever cause, are all thrown away and made anew.
//
// # Silence
//
// D = 3 s + Transit + W is the time after which a request of a process that
// was not heard of counts no more: it is let go within 1.1 s of asking for
// the token, or else gives it back, has been written when 3 s are over, and
// arrives by Transit later. Whoever is alive and keeps a token says so every
// D/3, 1.5 s at most. Redis keeps, for all, when a silence ends, by the pool's
// clock: that is Redis's, but a time in which nobody called counts for no more
// than D - D/3 - 0.4 s of it, and a step that a caller notices for nothing.
//
//   - A token that was in taken for D, and of which nobody has said that it is
//     in use, is lost: its process died, or the reply that gave it did not come.
//     It goes back to free.
//     One that no step has seen there was let go within 2.6 s of the step before:
//     its process called at most 1.5 s before it asked for the token, and used it
//     within 1.1 s. So D counts from then, but whoever lives has D/3 + 0.4 s left to
//     say so.
//   - Tokens that were thrown away or not found (a first start, FLUSHALL,
//     eviction, another Redis by restart or failover: its run_id is another)
//     are made anew after D. Requests that are under way then get theirs at once.
//
// # Pause
//
// A throttled response parks the tokens that are free and those that come back.
// When the pause is over one token is freed, as the probe: whoever takes it, W
// after its arrival it lets the others go. For an hour tokens are freed no faster
// than the pace allows, which is the core's for one process. Pause and pace use
// Redis's clock.

//go:embed pool.lua
var poolLua string

var poolScript = redis.NewScript(poolLua)

// States of a pool, and what the script says if it cannot tell the server.
const (
	ready   = "ready"
	silent  = "silent"  // its tokens are made anew when nothing is under way
	foreign = "foreign" // others use it, with another window
	noRunID = "no run_id"
)

// ttl is how long the keys of an account live that nobody uses.
const ttl = 30 * 24 * time.Hour

// maxErrands is how many tokens one call cares for: Lua's stack is finite.
const maxErrands = 1000

var errClosed = errors.New("connection closed at once, as by a Redis that wants TLS")

var errPlain = errors.New("the client speaks TLS, Redis does not")

var errRunID = errors.New("cannot read run_id, by which a restart is noticed: the user needs +info, or set Config.NoRestart")

// An order is what one call of the script is to do.
type order struct {
	sent    time.Time
	takes   int           // BLMOVEs until then
	clock   float64       // Redis's, as it should be; 0: unknown
	known   string        // number of the latest pause that is known
	over    string        // the same, if it has ended
	gap     time.Duration // between tokens, by the pace
	pause   time.Duration
	until   time.Time // end of pause
	cut     gate.State
	want    bool // a token, too, if one is free
	errands []errand
	tokens  []*token // of errands
}

type errand struct{ how, name string }

// A reply is what the script says of a pool.
type reply struct {
	ID                      string
	State, Phase, Number    string
	Limit                   int
	Window                  int64 // of others, if State is foreign
	Token                   string
	Left, Wait              float64 // ms, of the pause and until somebody should call
	Now                     float64 // Redis's clock, in ms, as are:
	Throttled, Resumed, Cut float64
	From, To                float64
	Care                    map[string]float64 // tokens to be freed: at their turn, ms from now
	Names                   map[int]string     // new names of tokens, by errand
}

// call runs the script by client.
func (l *Limiter) call(client redis.UniversalClient, o order) (r reply, err error) {
	timeout := callPatience
	if o.clock == 0 {
		timeout = patience // a first connection takes its time
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	number := func(ms float64) string { return strconv.FormatFloat(ms, 'f', 3, 64) }
	ms := func(d time.Duration) string { return number(float64(d) / float64(time.Millisecond)) }
	c, clock, server, start := &l.config, "", "", l.silence
	if o.clock > 0 {
		clock = number(o.clock)
	}
	if c.NoRestart {
		server = "any"
	}
	if c.StartAtOnce {
		start = 0
	}
	outside := l.outside.Load()
	if outside {
		if server, err = runID(ctx, client, l.keys[0]); err != nil {
			return r, err
		}
	}
	args := []any{
		c.Window.Milliseconds(), c.Limit, rand.Text(), (ttl + 4*l.silence).Milliseconds(), ms(l.silence), ms(start), clock, server,
		o.known, o.over, ms(o.gap), ms(max(o.pause, 0)), number(o.cut.Max), number(o.cut.Low), o.want,
	}
	for _, e := range o.errands {
		args = append(args, e.how, e.name)
	}
	text, err := poolScript.Run(ctx, client, l.keys, args...).Text()
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return r, fmt.Errorf("unexpected reply %q: %w", text, err)
	}
	if r.State == noRunID && !outside {
		l.outside.Store(true)
		return l.call(client, o)
	}
	return r, nil
}

// runID asks for the server's run_id where the script must not.
func runID(ctx context.Context, client redis.UniversalClient, key string) (string, error) {
	var c redis.Cmdable = client
	if cluster, ok := client.(*redis.ClusterClient); ok {
		node, err := cluster.MasterForKey(ctx, key)
		if err != nil {
			return "", err
		}
		c = node
	}
	info, err := c.Info(ctx, "server").Result()
	if err != nil && !isReply(err) {
		return "", err
	}
	for line := range strings.Lines(info) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "run_id:"); ok {
			return id, nil
		}
	}
	return "", fmt.Errorf("INFO server: %w (%v)", errRunID, err)
}

func isReply(err error) bool {
	_, ok := errors.AsType[redis.Error](err)
	return ok
}

// hopeless reports whether time does not cure err.
func hopeless(err error) bool {
	return err != nil && (errors.Is(err, errRunID) || errors.Is(err, errClosed) || errors.Is(err, errPlain) || slices.ContainsFunc([]string{
		"NOPERM", "ACL failure in script", "can't run this command", "NOAUTH", "WRONGPASS", "WRONGTYPE",
		"unknown command", "Unknown Redis command", "x509:", "tls:",
	}, func(s string) bool { return strings.Contains(err.Error(), s) }))
}
