// Package redisthrottle keeps all processes of one Clarifai account together
// within its rate limit. The processes share a Redis.
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
// The first use of an empty Redis waits for 3 s + Transit + Window: 4.3 s by
// default, 63.3 s with a Window of a minute. Redis keeps what it knows for 30 days
// after the last use, so this happens once. Later, a process that starts waits for
// its connection and one round trip.
//
// A process with requests in line calls Redis about 16 times per second when
// it is alone, 5 times if there are 4 processes, 3 if 16, 2 if 64. This command
// prints the figures of your machine:
//
//	go test -run 'Calls$' -v .
//
// A process that does not send makes no calls. Each process has up to 8
// connections, two if it is near Redis. One process alone reaches 90 % of the limit
// at 41 ms from Redis, 85 % at 77 ms, 60 % at 300 ms (go test -run Distance -v .). At
// 400 ms or more it sends nothing.
//
// Give the Limiter a client of its own if the application closes its client earlier.
// Otherwise any client will do: see [New].
//
// # Which Redis
//
// The Limiter needs one server at a time, Redis 6.2 or later, with Lua scripts,
// BLMOVE and INFO. Its user needs these rights, and in a Cluster +cluster|slots and
// +asking too:
//
//	~clarifaihttp:* +hello +eval +evalsha +info +time +blmove +lmove +rpush +lpop
//	+lrem +lrange +llen +hgetall +hset +hdel +del +pexpire
//
// Set maxmemory-policy to noeviction. An evicted key costs a silence of 4.3 s, but
// never lets a request pass.
//
// The tests use redis-server itself: alone, with TLS, as a Cluster, with Sentinel.
// What follows was read in the documents named, and not tried.
//
// These work:
//
//   - Amazon ElastiCache: it restricts none of the commands
//     (docs.aws.amazon.com/AmazonElastiCache/latest/dg/ClientConfig.RestrictedCommands.html).
//   - Google Memorystore: it supports BLMOVE, EVAL and INFO
//     (docs.cloud.google.com/memorystore/docs/redis/supported-commands).
//   - Oracle OCI Cache, not sharded: sharded clusters have no scripts
//     (docs.oracle.com/iaas/Content/ocicache/restrictedcommands.htm).
//   - Redis Enterprise and Redis Cloud: scripts cannot call INFO there, so the
//     Limiter calls it outside (redis.io/docs/latest/commands/info).
//   - Azure Managed Redis, which is Redis Enterprise 7.4
//     (learn.microsoft.com/azure/redis/overview). With the OSS clustering policy use
//     a [redis.ClusterClient], with the Enterprise policy a [redis.Client], for that
//     policy has no CLUSTER SLOTS
//     (learn.microsoft.com/azure/redis/best-practices-client-libraries).
//   - Upstash lists BLMOVE (upstash.com/docs/redis/overall/rediscompatibility). If
//     its INFO has no run_id, Wait returns an error that says so.
//
// These never work:
//
//   - Azure Cache for Redis, Basic to Premium: it has Redis 6.0, without BLMOVE
//     (learn.microsoft.com/azure/azure-cache-for-redis/cache-overview).
//   - Anything with several masters for one key: Active-Active databases, which
//     have no BLMOVE either (redis.io/docs/latest/commands/blmove), Azure's active
//     geo-replication (learn.microsoft.com/azure/redis/how-to-active-geo-replication),
//     and a [redis.Ring].
//   - twemproxy: it has no blocking commands
//     (github.com/twitter/twemproxy/issues/519).
package redisthrottle
