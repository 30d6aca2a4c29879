// Package clarifaihttp keeps any [net/http.Client] within Clarifai's API rate
// limit, without a change to the code that uses it.
//
//	client := &http.Client{Transport: clarifaihttp.NewTransport(nil)}
//
// Clarifai's API allows 15 requests per second and account by default. A client
// that goes beyond is answered CONN_THROTTLED, code 11005, and no request of
// the account is processed for a while; Clarifai recommends to wait 15 s. A
// [Transport] lets requests go as the limit allows, so that this does not
// happen. Where it does, because others use the account, too, it pauses all of
// them, sends one as a probe, and the others at a pace that the server takes.
//
// Create one Transport per account and share it, or several over one
// [Throttle]. Requests that must wait do so in [Transport.RoundTrip], in one
// line. Their contexts and the client's Timeout count: a request that could not
// go before its deadline fails at once with a [WaitError].
//
// # Urgent before background
//
// A request's standard Priority header orders the line: from u=0, the most
// urgent, to u=7, background.
//
//	req.Header.Set("Priority", "u=1") // someone is waiting for this
//
// [Throttle] says how, and what it means for the less urgent ones.
//
// # The guarantee
//
// At most Limit requests arrive at the server in any Window, whatever the
// network does to them on their way, as long as
//
//   - all requests of the account go through one Throttle. Those of other
//     processes and other users of the account do not, see below.
//   - what lies behind the end of the connection takes no longer than
//     [Throttle].Transit to pass a request on to where the server counts. A proxy
//     near the client (a sidecar, a CONNECT proxy) that takes more than it passes
//     on breaks this: set Transit negative there, so that only an answer proves
//     that a request has arrived. Where the system cannot say what the other end
//     has acknowledged (other systems than Linux, wrapped connections), Transit
//     must bound the whole way of a request with at most 64 KiB, and a minute that
//     of a larger one.
//   - nothing behind the Transport sends requests again without net/http's
//     knowledge: a proxy that replays them is not seen. What net/http sends
//     again by itself is counted.
//
// The comment of internal/gate has the proof. A server that counts otherwise than over windows of
// this length (sliding-window counters, or with bursts below Limit) may throttle
// now and then; then the pause, the probe and the pace take over.
//
// # Several processes
//
// An account's limit is for all processes together. There are three ways to
// share it.
//
// Static shares: a [Throttle].Limit of 3 in each of five processes adds up to
// 15, by the same proof, whatever they know of each other. There is nothing to
// run and nothing that can fail. The share of an idle process is lost to the
// others, the shares must be set anew when the number of processes changes
// (count those of a rolling deployment, too), and five busy processes reach 93 %
// of the limit. When a process dies, its share is unused and the others go on.
//
// Redis, by the module redisthrottle: whoever has requests gets an equal part of
// what there is, and several processes reach what one does. When a process
// dies, its tokens come back within some 6 s. When Redis dies, requests wait,
// or, if asked for, each process goes on with a small share of its own after a
// silence; when it comes back, so do they. A request costs two calls of Redis,
// and each process that waits about one more per second: 100 processes that all
// wait cause about 190 calls per second (go test -bench Calls, there).
//
// One proxy in front of all, with a single Throttle (examples/proxy): nothing
// is shared, any language can use it, and the tokens can stay in one place. When
// it dies, nothing is sent until it is back. It must be the only one: a second
// instance doubles the limit, and one that is started again does not know what
// the one before has sent, so let it wait Window + Transit first.
//
// Processes that share nothing do not break down, either: pause, probe and pace
// divide the limit between them, at 76, 70 and 58 % of it at least for 2, 4 and
// 8 processes (go test -run Foreign -v).
//
// # What is retried
//
// Only throttled requests are retried, for any method: the server refused them
// before processing. There are at most 10 retries ([WithMaxRetries]), if the body
// can be sent again (by GetBody, or because it fits [WithReplayBuffer]), and if
// the pause ends before the context does. Otherwise the caller gets the throttled
// response as it came. Nothing else is retried. To have connection errors and 5xx answers
// retried, put a retryablehttp.Client around:
//
//	client := retryablehttp.NewClient()
//	client.HTTPClient.Transport = clarifaihttp.NewTransport(nil)
//
// Each of its attempts keeps to the limit.
//
// # gRPC
//
// Clarifai's own clients speak gRPC, which is HTTP/2: a Transport carries it. A
// throttled gRPC response has HTTP status 200 and grpc-status 0, so the
// Transport looks at the first message of each response, if it is at most 1 KiB
// long. A throttled unary or server-streaming call is sent again as any other
// request. The client of a bidirectional stream may wait for the response's
// header before it sends more: the header is held back for 20 ms then, in which
// a throttled response has come whole. If no message has come by then, the
// caller's own Reads find a throttled response. It pauses all requests, but the
// call is not sent again. [Detect] does not look at gRPC.
//
// # What can be noticed
//
// Redirects, cookies, 1xx answers, upgrades, trailers, HTTP/2, compression and
// httptrace hooks work as with the base alone. These differences remain:
//
//   - The bodies of answers with a status of 400 or more (up to 16 KiB), and of
//     2xx answers with JSON of a known length of at most 1 KiB, are looked at
//     before RoundTrip returns, which waits for their bytes, bounded by the
//     context. Their trailers may be there before the body is read. So is the
//     first message of a gRPC response, but its trailers come when they are due.
//   - The caller does not see a throttled response that is retried, nor its
//     cookies and headers.
//   - A caller's httptrace hooks run once per attempt. A request may wait between
//     GetConn and GotConn, and holds its connection meanwhile: when net/http sends
//     it again by itself, or when a pause began before it got its connection. A
//     fresh HTTP/1 connection is held for a second at most, and closed then; an
//     HTTP/2 connection that the server wants to be rid of is kept that long.
//   - A request body without GetBody is closed when it was read to its end or
//     when RoundTrip returns, not before, since it may be sent again. If net/http
//     closes it while a Read is under way, it is closed a second later.
//   - When a throttled response comes while the upload goes on, the upload gets
//     up to a second to end; otherwise the throttled response is handed back.
//   - The last Read of a request body that goes on for more than a minute may wait
//     for a slot.
//   - A request body that is not plainly in memory is wrapped, to close it once:
//     an *os.File is copied to the connection, not handed to the kernel
//     (sendfile).
//   - Code that takes http.DefaultTransport for an [*net/http.Transport] does
//     not find one if it was replaced. And since [net/http.Client] knows that type
//     alone, the text of an error by its Timeout may differ; Timeout and errors.Is
//     do not.
//
// # Virtual time
//
// All waiting is by timers of package time, so that tests in a bubble of
// [testing/synctest] wait in no time. Package throttletest has a server that
// throttles as Clarifai does and that works there, too.
package clarifaihttp
