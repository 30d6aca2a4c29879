package redisthrottle

import (
	"cmp"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	defaultLimit   = 15
	defaultWindow  = time.Second
	defaultTransit = 250 * time.Millisecond

	// guard lengthens the window for a server whose nodes' clocks differ.
	guard = 10 * time.Millisecond

	maxLimit    = 10_000
	maxDuration = 24 * time.Hour
)

// Config says what is shared. The zero value is ready and stands for Clarifai's
// documented limit. All processes of an account must use the same Account,
// Prefix, Limit, Window and Transit: a process with another Limit, Window or
// Transit gets no permission until the others are gone.
type Config struct {
	// Account names the account in the keys. It is no secret: never a token.
	// Empty means "default".
	Account string

	// Limit is how many requests of all processes together may arrive at the
	// server in one Window. Zero means 15.
	Limit int

	// Window is the time that Limit is for. Zero means 1 s.
	Window time.Duration

	// Transit bounds the time from a request's being written to its arrival at
	// the server, as the Throttle's does. Zero means 250 ms.
	Transit time.Duration

	// Prefix begins all keys. Empty means "clarifaihttp".
	Prefix string

	// Fallback is how many requests this process may have arrive in one Window
	// while Redis is away. Zero means none: requests wait. The shares of all
	// processes should add up to Limit at most; where only some of them are cut
	// off from Redis, or were idle and have not noticed, the shares come on top
	// of what the others send. For a silence of Window + Transit + 3 s at each
	// switch nothing is sent.
	Fallback int

	// Logger gets one line when Redis goes away (level Warn), one when the
	// fallback begins (Warn), one when Redis is back (Info), one when tokens are
	// made anew (Info), and one when others use other settings (Warn). Nil means
	// slog.Default() at that time.
	Logger *slog.Logger
}

// New returns a Limiter that uses client. Nothing is sent before the first
// Wait. The client may be one of a single server, of Sentinel or of Cluster;
// it needs Redis 6.2 or later that is less than 80 ms away, two connections,
// and a ReadTimeout of at least 1.1 s (go-redis has 3 s), but not none. By ACL
// it needs eval, evalsha, blmove, info, time, del, pexpire and the commands of
// hashes and lists. It stays the caller's to close.
//
// A nil client and an invalid config panic.
func New(client redis.UniversalClient, config Config) *Limiter {
	if client == nil {
		panic("redisthrottle: New: nil client")
	}
	if config.Limit < 0 || config.Limit > maxLimit {
		panic(fmt.Sprintf("redisthrottle: Config.Limit is %d, must be between 0 (the default) and %d", config.Limit, maxLimit))
	}
	config.Limit = cmp.Or(config.Limit, defaultLimit)
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"Window", config.Window}, {"Transit", config.Transit}} {
		if f.d != 0 && (f.d < time.Millisecond || f.d > maxDuration) {
			panic(fmt.Sprintf("redisthrottle: Config.%s is %v, must be 0 (the default) or between 1ms and %v", f.name, f.d, maxDuration))
		}
	}
	if config.Fallback < 0 || config.Fallback > config.Limit {
		panic(fmt.Sprintf("redisthrottle: Config.Fallback is %d, must be between 0 (none) and Limit, %d", config.Fallback, config.Limit))
	}
	config.Window = cmp.Or(config.Window, defaultWindow)
	config.Transit = cmp.Or(config.Transit, defaultTransit)
	config.Account = cmp.Or(config.Account, "default")
	config.Prefix = cmp.Or(config.Prefix, "clarifaihttp")
	for _, f := range []struct{ name, s string }{{"Account", config.Account}, {"Prefix", config.Prefix}} {
		if strings.ContainsAny(f.s, "{}") {
			panic(fmt.Sprintf("redisthrottle: Config.%s is %q, must not contain { or }, which mark the part of a key that chooses its node", f.name, f.s))
		}
	}
	l := &Limiter{
		client:  client,
		config:  config,
		hold:    config.Window + guard,
		turn:    make(chan struct{}, 1),
		changed: make(chan struct{}),
		retry:   retrySoon,
	}
	l.gone = grace + config.Transit + l.hold
	l.tick = min(l.gone/3, maxTick)
	for _, name := range []string{"pool", "free", "taken", "parked"} {
		l.keys = append(l.keys, config.Prefix+":{"+config.Account+"}:"+name)
	}
	return l
}
