package redisthrottle

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
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

// Config says what is shared. The zero value is ready. All processes of an
// account must use the same Account, Prefix and Window: a process with another
// Window gets no permission until the others are silent (see [Limiter]).
type Config struct {
	// Account names the account in the keys. It is no secret: never a token.
	// Empty means "default".
	Account string

	// Limit is how many requests of all processes together may arrive at the
	// server in one Window. Zero means the Throttle's Limit, or 15 without a
	// Throttle. If processes differ, the lowest Limit is in force for all, until
	// nobody has used it for Window + Transit + 3 s.
	Limit int

	// Window is the time that Limit is for. Zero means the Throttle's Window, or
	// 1 s without a Throttle.
	Window time.Duration

	// Transit bounds the time from a request's being written to its arrival at
	// the server. Zero means the Throttle's Transit, or 250 ms where that is
	// negative or there is no Throttle.
	Transit time.Duration

	// Prefix begins all keys. Empty means "clarifaihttp".
	Prefix string

	// Fallback is how many requests this process may have arrive in one Window
	// while Redis is away. Zero means none: requests wait. The shares of all
	// processes should add up to Limit at most; where only some of them are cut
	// off from Redis, or were idle and have not noticed, the shares come on top
	// of what the others send. The process sends nothing for Window + Transit + 3 s
	// before it uses its share, and after Redis is back if it was away for a third
	// of that.
	Fallback int

	// NoRestart says that Redis never starts with old data: it has neither
	// persistence nor replicas, or it is a fake. Then INFO is not needed.
	NoRestart bool

	// StartAtOnce leaves out the silence before an empty Redis is used. It is for
	// unit tests, whose Redis no other process uses.
	StartAtOnce bool

	// Logger gets a line when Redis goes away, the fallback begins, or other
	// processes use other settings (level Warn), and when Redis is back, a silence
	// begins or tokens are ready (Info). Nil means slog.Default() at that time.
	Logger *slog.Logger
}

// New returns a Limiter that uses the Redis of client: a single server, Sentinel
// or Cluster, Redis 6.2 or later. Nothing is sent before the first Wait.
//
// A [*redis.Client] or [*redis.ClusterClient] is not used itself, and its hooks
// are not run: the Limiter makes connections of its own, by the client's
// options, with its own time-outs. So neither ReadTimeout nor PoolSize matters,
// nor do dead connections in a pool that the application shares. The client must
// stay open: its dialer and credentials are used. A client of another type is used
// itself, and needs ContextTimeoutEnabled.
//
// New panics if client is nil or a [*redis.Ring], or if config is invalid.
func New(client redis.UniversalClient, config Config) *Limiter {
	check := func(ok bool, format string, args ...any) {
		if !ok {
			panic(fmt.Sprintf("redisthrottle: "+format, args...))
		}
	}
	check(client != nil, "New: nil client")
	_, ring := client.(*redis.Ring)
	check(!ring, "New: a Ring has several masters, the limit needs one")
	check(config.Limit >= 0 && config.Limit <= maxLimit, "Config.Limit is %d, must be between 0 (the Throttle's) and %d", config.Limit, maxLimit)
	for name, d := range map[string]time.Duration{"Window": config.Window, "Transit": config.Transit} {
		check(d == 0 || d >= time.Millisecond && d <= maxDuration, "Config.%s is %v, must be 0 (the Throttle's) or between 1ms and %v", name, d, maxDuration)
	}
	check(config.Fallback >= 0 && config.Fallback <= cmp.Or(config.Limit, maxLimit), "Config.Fallback is %d, must be between 0 (none) and Limit, %d", config.Fallback, config.Limit)
	for name, s := range map[string]string{"Account": config.Account, "Prefix": config.Prefix} {
		check(!strings.ContainsAny(s, "{}"), "Config.%s is %q, must not contain { or }, which mark the part of a key that chooses its node", name, s)
	}
	config.Account = cmp.Or(config.Account, "default")
	config.Prefix = cmp.Or(config.Prefix, "clarifaihttp")
	l := &Limiter{config: config, turn: make(chan struct{}, 1), changed: make(chan struct{})}
	l.timer = time.AfterFunc(maxDuration, func() {
		l.lock()
		defer l.unlock()
		l.plan(time.Now())
	})
	l.timer.Stop()
	l.connect(client)
	l.client = l.dial()
	for _, name := range []string{"pool", "free", "taken", "parked", "seen"} {
		l.keys = append(l.keys, config.Prefix+":{"+config.Account+"}:"+name)
	}
	return l
}

// connect sets dial, which makes a client with connections of its own, and
// hangUp, which closes them once the last call has ended.
func (l *Limiter) connect(client redis.UniversalClient) {
	own := func(c *redis.Client) *redis.Client {
		o := *c.Options()
		onConnect := o.OnConnect
		o.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			l.lock()
			l.connected = time.Now() // to another Redis, possibly
			l.unlock()
			if onConnect == nil {
				return nil
			}
			return onConnect(ctx, cn)
		}
		o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		o.PushNotificationProcessor, o.ClientSideCacheConfig, o.ClientSideCache = nil, nil, nil
		o.ContextTimeoutEnabled, o.ReadTimeout, o.DisableIdentity, o.MaxRetries, o.DialerRetries = true, 2*patience, true, -1, 1
		o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = maxAsked+2, 0, 0, 0
		return redis.NewClient(&o)
	}
	l.hangUp = func(c redis.UniversalClient) { time.AfterFunc(2*patience, func() { c.Close() }) }
	switch c := client.(type) {
	case *redis.Client:
		if c.Options().TLSConfig != nil && c.Options().Network == "tcp" {
			l.secure = c.Options().Addr
		}
		l.dial = func() redis.UniversalClient { return own(c) }
	case *redis.ClusterClient:
		o := *c.Options()
		node := o.NewClient
		o.NewClient = func(options *redis.Options) *redis.Client {
			c := node(options)
			defer c.Close()
			return own(c)
		}
		o.DisableRoutingPolicies = true
		l.dial = func() redis.UniversalClient { return redis.NewClusterClient(&o) }
	default:
		l.dial = func() redis.UniversalClient { return client }
		l.hangUp = func(redis.UniversalClient) {}
	}
}

// Agree sets the Limit, Window and Transit that the Config leaves at zero. A
// Throttle calls it with its own before its first Wait. Agree returns an error if
// the Config, another Throttle or an earlier Wait has set another value. A negative
// transit does not bound arrivals.
//
// So a Throttle's Limit is the account's. A process that must keep below it hides
// Agree behind a type of its own that has Wait, Arrived and Throttled, and gives
// its Throttle a lower Limit.
func (l *Limiter) Agree(limit int, window, transit time.Duration) error {
	l.lock()
	defer l.unlock()
	if transit < 0 {
		transit = cmp.Or(l.config.Transit, defaultTransit)
	}
	transit = cmp.Or(transit, defaultTransit)
	if limit > maxLimit {
		return fmt.Errorf("redisthrottle: Throttle.Limit is %d, must be at most %d", limit, maxLimit)
	}
	c := &l.config
	return cmp.Or(agree("Limit", &c.Limit, limit), agree("Window", &c.Window, window), agree("Transit", &c.Transit, transit))
}

// agree sets a field of the Config that is zero. Calls read it without mu later.
func agree[T comparable](name string, own *T, theirs T) error {
	var zero T
	switch *own {
	case theirs:
	case zero:
		*own = theirs
	default:
		return fmt.Errorf("redisthrottle: Config.%s is %v, Throttle.%s is %v: leave the Config's at zero", name, *own, name, theirs)
	}
	return nil
}

// settle sets the defaults before the first use. It requires mu.
func (l *Limiter) settle() {
	if l.hold > 0 {
		return
	}
	c := &l.config
	c.Limit = cmp.Or(c.Limit, defaultLimit)
	c.Window = cmp.Or(c.Window, defaultWindow)
	c.Transit = cmp.Or(c.Transit, defaultTransit)
	c.Fallback = min(c.Fallback, c.Limit)
	l.hold = c.Window + guard
	l.silence = grace + c.Transit + l.hold
	l.tick = min(l.silence/3, maxTick)
}
