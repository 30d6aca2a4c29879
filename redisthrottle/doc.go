// Package redisthrottle keeps all processes that share one Clarifai account
// within its rate limit together, by a Redis that they share.
//
//	client := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
//	limiter := redisthrottle.New(client, redisthrottle.Config{})
//	defer limiter.Close()
//	throttle := &clarifaihttp.Throttle{Limiter: limiter}
//	http.DefaultTransport = clarifaihttp.NewTransport(nil, clarifaihttp.WithThrottle(throttle))
//
// Every process does this, with the same [Config]. Any process then uses what
// the others leave: one alone has the whole limit, and those that compete get
// equal shares. Redis keeps the line: nobody polls. [Limiter] says why the limit
// holds, and where that ends.
//
// Urgency does not cross processes. A process asks Redis for the first of its own
// line, which is its most urgent request; Redis serves the processes in the order
// in which they ask.
//
// # What it costs
//
// The first use of an empty Redis begins after 3 s + Transit + Window: 4.3 s by
// default. The keys live for 30 days after the last use, so this happens once.
// A request costs about two calls of Redis, a process that waits one or two more
// per second (go test -bench Calls, go test -run CallsAfter -v). Each process
// has three connections, more if it is far from Redis: one process alone reaches
// 90 % of the limit at 41 ms, 85 % at 77 ms (go test -run Distance -v).
//
// # Which Redis
//
// It must be one server at a time, 6.2 or later, with Lua scripts, BLMOVE and
// INFO. A user needs these rights, for Cluster +cluster|slots and +asking
// too:
//
//	~clarifaihttp:* +hello +eval +evalsha +info +time +blmove +lmove +rpush +lpop
//	+lrem +lrange +llen +hgetall +hset +hdel +del +pexpire
//
// The following is from the documents named, and was not tried there.
//
//   - Amazon ElastiCache restricts none of these commands
//     (docs.aws.amazon.com/AmazonElastiCache/latest/dg/ClientConfig.RestrictedCommands.html).
//   - Google Memorystore supports BLMOVE, EVAL and INFO
//     (docs.cloud.google.com/memorystore/docs/redis/supported-commands).
//   - Oracle OCI Cache has no scripts in sharded clusters; use one that is not
//     (docs.oracle.com/iaas/Content/ocicache/restrictedcommands.htm).
//   - Redis Enterprise and Redis Cloud have no INFO in scripts: it is asked for
//     outside (redis.io/docs/latest/commands/info). Active-Active databases have
//     several masters, and no BLMOVE (redis.io/docs/latest/commands/blmove).
//   - Upstash lists BLMOVE (upstash.com/docs/redis/overall/rediscompatibility);
//     if its INFO has no run_id, Wait returns an error that says so.
//   - What never works: several masters, a [redis.Ring], or twemproxy, which has
//     no blocking commands (github.com/twitter/twemproxy/issues/519).
//   - Set maxmemory-policy to noeviction or a volatile one that spares keys in
//     use: an evicted key costs a silence, never a request too many.
package redisthrottle
