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

var errRunID = errors.New("cannot read run_id, by which a restart is noticed: the user needs +info, or set Config.NoRestart")

// An order is what one call of the script is to do.
type order struct {
	sent    time.Time
	clock   float64       // Redis's, as it should be; 0: unknown
	known   string        // number of the latest pause that is known
	over    string        // the same, if it has ended
	gap     time.Duration // between tokens, by the pace
	pause   time.Duration
	until   time.Time // end of pause
	cut     gate.State
	errands []errand
	tokens  []*token // of errands
}

type errand struct{ how, name string }

// A reply is what the script says of a pool.
type reply struct {
	ID                      string
	State, Phase, Number    string
	Limit                   int
	Window                  int64   // of others, if State is foreign
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
		o.known, o.over, ms(o.gap), ms(max(o.pause, 0)), number(o.cut.Max), number(o.cut.Low),
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
	return err != nil && (errors.Is(err, errRunID) || errors.Is(err, errClosed) || slices.ContainsFunc([]string{
		"NOPERM", "ACL failure in script", "can't run this command", "NOAUTH", "WRONGPASS", "WRONGTYPE",
		"unknown command", "Unknown Redis command", "x509:", "tls:",
	}, func(s string) bool { return strings.Contains(err.Error(), s) }))
}
