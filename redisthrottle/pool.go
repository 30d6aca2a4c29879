package redisthrottle

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
// from free to taken, for those who wait in the order in which they asked. The
// process gives it back W after the request has arrived. W is Window plus 10 ms.
// The arrival is known at the answer or Transit after the request was written, and
// W is measured on the process's own clock, which is monotonic.
//
// So of N+1 requests, one got its token from another one, after W from the arrival
// of that: no N+1 arrive within one window. This is the proof of
// clarifaihttp.Throttle with tokens for slots. It uses no clock of Redis.
//
// The name of a token has a generation, which changes whenever the token leaves
// taken. The script alone does that, and finds the token by name and generation.
// So a call that is sent again after a lost reply, or that a frozen Redis executes
// when it wakes, does nothing: no token is ever there twice. Each call counts the
// tokens. If there are more or fewer than were made, all are thrown away and made
// anew.
//
// # Silence
//
// D = 3 s + Transit + W. A request whose process is not heard of for D counts no
// more: it was written within 3 s of the process's asking for the token, and
// arrived within Transit. A process that keeps a token renews it every D/3, 1.5 s
// at most.
// Redis keeps when a silence ends, by the pool's clock. This is Redis's own, but a
// time in which nobody called counts for D - D/3 - 0.4 s at most, and a step that
// a caller notices counts for nothing.
//
//   - A token in taken that nobody has renewed for D is lost: its process died, or
//     the reply that gave it did not come. It goes back to free. Where no step has
//     seen a token in taken before, D counts from 0.6 s after the last step before:
//     the process had asked for it by then. For a process begins a BLMOVE within
//     0.6 s of a call of its own, or of the end of a BLMOVE that got nothing, until
//     which free was empty; and who waits in a BLMOVE gets a token at a step. In
//     any case D/3 + 0.4 s are left to renew a token.
//   - Tokens that were thrown away or not found (a first start, FLUSHALL,
//     eviction, another Redis by restart or failover: its run_id is another)
//     are made anew after D. Requests that are under way get theirs when they
//     renew them.
//
// # Pause
//
// A throttled response parks the tokens that are free and those that come back.
// When the pause is over, one token is freed for the probe. The other tokens
// follow W after the probe's arrival. For an hour, tokens are freed no faster than
// the pace allows, which is the core's for one process. Pause and pace use Redis's
// clock.

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

var (
	errClosed = errors.New("connection closed at once, as by a Redis that wants TLS")
	errPlain  = errors.New("the client speaks TLS, Redis does not")
	errRunID  = errors.New("cannot read run_id, by which a restart is noticed: the user needs +info, or set Config.NoRestart")
)

// An order is what one call of the script is to do.
type order struct {
	sent    time.Time
	takes   int           // BLMOVEs until then
	clock   float64       // Redis's, as it should be; 0: unknown
	known   string        // number of the latest pause that is known
	over    string        // the same, if it has ended by the process's clock
	gap     time.Duration // between tokens, by the pace
	pause   time.Duration
	until   time.Time // end of pause
	cut     gate.State
	want    bool // a token, too, if one is free
	changes []change
	tokens  []*token // of changes
}

// A change is what is to be done with a token, and its name: "renew" it, or give
// it back as "sent", "unused" or "delayed".
type change [2]string

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
	Delays                  map[string]float64 // of tokens to be freed at their turn, in ms
	Names                   map[int]string     // new names of tokens, by change
}

// call runs the script by client.
func (l *Limiter) call(client redis.UniversalClient, o order) (r reply, err error) {
	timeout := callPatience
	if o.clock == 0 {
		timeout = patience // a first connection takes its time
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	c, server, start := &l.config, "", l.silence
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
	text, err := json.Marshal(map[string]any{
		"server":  server,      // its run_id; "": find out
		"clock":   o.clock,     // Redis's, as the caller reckons it
		"fresh":   rand.Text(), // a name that never was one
		"ttl":     (ttl + 4*l.silence).Milliseconds(),
		"silence": ms(l.silence), "start": ms(start), // of a pool that is not there
		"window": c.Window.Milliseconds(), "limit": c.Limit,
		"known": o.known, "over": o.over, "gap": ms(o.gap),
		"pause": ms(max(o.pause, 0)), "from": o.cut.Max, "to": o.cut.Low, // rates
		"want": o.want, "changes": append([]change{}, o.changes...),
	})
	if err != nil {
		return r, err
	}
	answer, err := poolScript.Run(ctx, client, l.keys, text).Text()
	switch {
	case err != nil && o.clock == 0 && plain(l.secure):
		return r, errPlain
	case err != nil:
		return r, err
	}
	if err := json.Unmarshal([]byte(answer), &r); err != nil {
		return r, fmt.Errorf("unexpected reply %q: %w", answer, err)
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
