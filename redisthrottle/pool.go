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

// The rule, which pool.lua and tokens.go obey. A step is one run of pool.lua.
//
// # Tokens
//
// Redis holds N = Limit tokens for the account. Each is in one of three lists:
// free, taken or parked. BLMOVE or a step moves a token from free to taken, for one
// request; BLMOVE serves processes in the order in which they asked. Each time the
// Throttle reports an arrival, the process keeps a token for W more, by its own
// monotonic clock, and then gives it back by a step. W is Window + 10 ms.
//
// So each process has as many tokens in taken as it has requests that may yet
// arrive or arrived less than W ago. If N+1 requests arrived within one window,
// N+1 tokens would be in taken at the last of these arrivals. But there are N.
// No clock of Redis matters here.
//
// The name of a token ends in a generation, which a step raises when the token
// leaves taken. A step finds a token by its whole name. So a step that runs twice,
// or late in a frozen Redis, gives no token back twice. Each step counts the
// tokens. If there are more or fewer than were made, it throws all away.
//
// # Silence
//
// D = 3 s + Transit + W. A process renews the tokens that it keeps every D/3, 1.5 s
// at most. A request is written within 3 s of the process's asking for the token
// ([Limiter] says what if not). So if a process is silent for D, its requests
// arrived more than W ago. The pool's clock measures D. It is Redis's, but from
// step to step it advances so little (most, in pool.lua) that living processes
// renew in time, and by 100 ms more at most than the caller's clock allows: Redis's
// may jump.
//
//   - A token in taken that nobody renewed for D is lost: its process died, or the
//     reply to BLMOVE did. A step gives it back. If no step saw it there before, D
//     counts from 0.6 s after the previous step, by when the process had asked: it
//     begins a BLMOVE within 0.6 s of its own last step, or of the end of a BLMOVE
//     that got nothing, until which free was empty. A BLMOVE that waits gets its
//     token from a step. In any case 0.4 s more than between renewals are left to
//     renew it.
//   - Tokens that were thrown away or are missing are made anew after D: at a first
//     start, after FLUSHALL, eviction, restart or failover (run_id changes).
//     Meanwhile only renewals get tokens, for requests under way. The new name has
//     the old one in it: whoever did not get the reply is told again.
//
// # Pause
//
// A throttled response parks the tokens that are free and those that come back.
// When the pause is over, one token is freed for the probe. The others follow W
// after the probe's arrival. For an hour, tokens are freed no faster than the pace
// of package gate allows. A token that waits for its turn is in taken, and the
// process that made the step keeps it. Pause and pace use Redis's clock; the clock
// of a process that knows the pause may end it sooner.

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

// ttl is how long the keys of an unused account live.
const ttl = 30 * 24 * time.Hour

var (
	errClosed = errors.New("connection closed at once by Redis, which may need TLS")
	errPlain  = errors.New("the client uses TLS, Redis does not")
	errRunID  = errors.New("cannot read run_id, which shows a restart: give the user +info, or set Config.NoRestart")
)

// An order is what one call of the script is to do.
type order struct {
	sent     time.Time
	patience time.Duration // with the call
	takes    int           // BLMOVEs begun before
	clock    float64       // Redis's, as it should be; 0: unknown
	known    string        // number of the latest pause that is known
	over     string        // known, if that pause is over by the process's clock
	gap      time.Duration // between tokens, by the pace
	pause    time.Duration
	until    time.Time // end of pause
	cut      gate.State
	want     bool // a free token, if there is one
	changes  []change
	tokens   []*token // of changes
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
	ctx, cancel := context.WithTimeout(context.Background(), o.patience)
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
		"fresh":   rand.Text(), // an id that no pool had
		"ttl":     (ttl + 4*l.silence).Milliseconds(),
		"silence": ms(l.silence), "start": ms(start), // of a pool that is not there
		"tick": ms(maxTick), "ask": ms(askWithin),
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
	if _, refused := errors.AsType[redis.Error](err); err != nil && !refused {
		return "", err
	}
	for line := range strings.Lines(info) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "run_id:"); ok {
			return id, nil
		}
	}
	return "", fmt.Errorf("INFO server: %w (%v)", errRunID, err)
}

// hopeless reports whether err stays until somebody changes the settings.
func hopeless(err error) bool {
	return errors.Is(err, errRunID) || errors.Is(err, errClosed) || errors.Is(err, errPlain) || slices.ContainsFunc([]string{
		"NOPERM", "ACL failure in script", "can't run this command", "NOAUTH", "WRONGPASS", "WRONGTYPE",
		"unknown command", "Unknown Redis command", "x509:", "tls:",
	}, func(s string) bool { return strings.Contains(err.Error(), s) })
}
