// Package clarifaihttp keeps any [net/http.Client] within the rate limit of
// Clarifai's API. The code that uses the client does not change.
//
//	client := &http.Client{Transport: clarifaihttp.NewTransport(nil)}
//
// Clarifai allows an account 15 requests per second. It throttles the requests
// beyond that: their response is CONN_THROTTLED (code 11005), and the server
// halts the account for a while. Clarifai recommends waiting 15 s. A [Transport]
// sends requests only as fast as the limit allows. If the server throttles all the
// same, because others use the account, all requests pause, one probes, and the
// others follow at a pace that the server takes. Requests wait in
// [Transport.RoundTrip]; their contexts and the client's Timeout end the wait.
//
// # Before production
//
// Create one Transport per account and share it, or share one [Throttle] among
// several Transports. Do not create one per call: each counts on its own.
//
//   - A client's Timeout includes the waiting. Set it to a minute or more: a pause
//     lasts 15 s, then 30 s. With 10 s, the caller gets the throttled response (HTTP
//     429) at once. Without a deadline, a request waits for as long as others are
//     ahead, and for its own retries up to 8 min 45 s with the defaults, or 40 min if
//     each response has a long Retry-After. Then the caller gets the 429.
//   - The limit is for all processes of the account together. See "Several
//     processes".
//   - A Throttle counts every request that goes through it, whatever its host. A
//     client that also talks to other hosts needs [WithThrottleFunc].
//
// # The line
//
// A request's Priority header says how urgent it is (RFC 9218, section 4.1): from
// u=0, the most urgent, to u=7, background. Without the header, or with a
// malformed one, the urgency is 3. Nothing else of the header is read, and it
// travels on unchanged.
//
//	req.Header.Set("Priority", "u=1") // someone is waiting for this
//
// The more urgent requests go first. Among equals, retries go before newcomers,
// then the order of arrival counts. The order is strict: a request waits as long
// as more urgent ones do. Give background requests a deadline where that must not
// be for ever.
//
// A request whose turn comes after its deadline is refused at once, by a
// [WaitError], for which errors.Is finds context.DeadlineExceeded. The Throttle
// looks at the deadline when the request joins the line, and when a pause begins or
// is extended. A request that is overtaken later ends with its context.
//
// # After a throttled response
//
// After CONN_THROTTLED all requests pause, for [Throttle].Backoff or for the
// response's Retry-After. Then one request goes alone, the probe. If it is served,
// the others go. They also go Window after the probe was written, or Backoff after
// its start. If the probe is throttled, the next pause is twice as long, up to
// MaxBackoff. If it fails or is canceled, another request is the probe. If three
// probes wait for a dial in vain, the others go.
//
// From the first throttled response on, the Throttle also keeps starts apart, by a
// rate that begins low and rises as in TCP CUBIC (RFC 9438, section 4.2). An hour
// without a throttled response lifts it. If a throttled response names a lower limit
// than Limit, the lower one is in force for at least an hour.
//
// The throttled request is sent again, whatever its method: the server refused it
// before processing. The caller gets the throttled response as it came in four
// cases: 10 retries are spent ([WithMaxRetries]); the pause outlasts the deadline;
// the body cannot be sent again, because it has no GetBody and does not fit
// [WithReplayBuffer]; Retry-After is longer than four times MaxBackoff.
//
// HTTP 429 without a Clarifai status, as from a gateway, first delays its own
// request alone: for Backoff, then twice as long each time up to MaxBackoff, or for
// its Retry-After. The account pauses only if three requests that were sent one after
// the other get such a response; retries do not count. HTTP 429 for an hourly or
// monthly quota goes to the caller at once: no pause cures it.
//
// Nothing else is retried. For retries of 5xx and of connection errors, put a
// retryablehttp.Client around; each of its attempts keeps to the limit.
//
// # The guarantee
//
// At most Limit requests arrive at the server within any Window. Each attempt holds
// one of Limit slots from its start until Window + 10 ms after it has arrived. The
// comment of internal/gate has the proof. An attempt counts as arrived at the earliest
// of these instants:
//
//   - its answer;
//   - Transit after it was written, if its body has at most 64 KiB. On Linux, for TCP
//     connections, plain or under TLS, only if the other end has acknowledged it by
//     then;
//   - Transit after the other end has acknowledged it, whatever its size, on Linux;
//   - a minute after it was written;
//   - Transit after it failed or was canceled. If nothing of it was sent, its slot
//     is free at once.
//
// What net/http sends again by itself holds a slot of its own. An attempt that waits
// for a dial, or that uploads for more than a minute, gives its slot back meanwhile. So
// a request that never answers keeps others waiting for about a minute at most. With a
// negative Transit only the answer counts, or a failure: there such a request needs a
// deadline. (A base with MaxConnsPerHost should not be used for hosts that may be dead:
// requests that wait for its connections keep their slots. Nor should several accounts
// share one: in a pause, requests of an account may keep its connections.) The
// guarantee assumes that
//
//   - all requests of the account go through one Throttle, or through several whose
//     limits add up to the account's, or that share a Limiter;
//   - the other end of the connection passes a request on to where the server
//     counts within Transit. A sidecar or a CONNECT proxy near the client may not:
//     set Transit negative there;
//   - elsewhere than on Linux, and for connections of another type than TCP or TLS
//     over TCP, a request of at most 64 KiB takes at most Transit for the whole way;
//   - any request takes a minute at most;
//   - nothing behind the Transport sends requests again without net/http's
//     knowledge, or copies of them at the same time;
//   - the server counts over windows of this length, with bursts up to Limit. Other
//     servers throttle now and then.
//
// # Several processes
//
// A process that is started again does not know what the last one has sent. Start it
// Window + Transit later, or expect a throttled response.
//
// Static shares need nothing that can fail: a Limit of 3 in each of five processes
// adds up to 15. The share of an idle process is lost to the others. In a rolling
// deployment old and new processes count together.
//
// The module redisthrottle shares the limit by way of Redis: each process gets
// what the others leave. Requests wait while Redis is away, unless a fallback is
// set.
//
// A proxy in front of all (examples/proxy) needs nothing in the clients and works
// for any language. It must be the only one of its account.
//
// Processes that share nothing throttle each other. Pause, probe and pace then
// divide the limit among them, at a loss.
//
// # gRPC
//
// A Transport carries gRPC for clients over net/http, such as connect-go. For grpc-go,
// which has a transport of its own, there is examples/proxy. A throttled gRPC response
// has HTTP status 200 and grpc-status 0, so the Transport looks at the first message of
// each response, if it has at most 1 KiB. Unary and server-streaming calls are sent
// again. The client of a bidirectional stream may wait for the response's header
// before it sends more, so the header is held back for 20 ms at most. A throttled
// response that comes later pauses all requests, but goes to the caller. [Detect] does
// not look at gRPC.
//
// # What can be noticed
//
// Redirects, cookies, 1xx responses, upgrades, trailers, HTTP/2, compression and
// httptrace hooks work as with the base alone. These differences remain:
//
//   - RoundTrip reads the body before it returns if the status is 400 or more (up
//     to 16 KiB), or if a 2xx response is JSON of a known length of at most 1 KiB.
//     The context bounds that. The trailers may be there early.
//   - A throttled response that is retried is never seen, nor are its cookies.
//   - A caller's httptrace hooks run for each attempt. An attempt may wait between
//     GetConn and GotConn and holds its connection meanwhile: when net/http sends it
//     again, or when a pause has begun. An HTTP/1 connection that is fresh, or whose
//     request has a body, is held for a second at most and then closed.
//   - A request body without GetBody is closed at its end or when RoundTrip
//     returns. If net/http closes it during a Read, the caller's body is closed a
//     second later.
//   - When a throttled response comes during the upload, the upload gets a second
//     to end.
//   - If an upload takes more than a minute, its last bytes may wait for a slot.
//   - A request body that is not in memory is wrapped: an *os.File is copied to the
//     connection, not sent by sendfile.
//   - Code that takes http.DefaultTransport for an [*net/http.Transport] panics if
//     it was replaced. The text of an error of the client's Timeout may differ;
//     Timeout and errors.Is do not.
//
// # Tests
//
// Package throttletest has a server that throttles as Clarifai does. It works in a
// bubble of [testing/synctest], where a pause of 15 s takes no time.
package clarifaihttp
