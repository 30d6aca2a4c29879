// Package clarifaihttp keeps any [net/http.Client] within the rate limit of
// Clarifai's API. The code that uses the client does not change.
//
//	client := &http.Client{Transport: clarifaihttp.NewTransport(nil)}
//
// Clarifai allows an account 15 requests per second. It throttles the requests
// beyond that: their response is CONN_THROTTLED (code 11005), and the server
// halts the account for a while. Clarifai recommends to wait 15 s. A [Transport]
// sends requests only as fast as the limit allows. If the server throttles all the
// same, because others use the account, all requests pause, one probes, and the
// others follow at a pace that the server takes. Requests wait in
// [Transport.RoundTrip]; their contexts and the client's Timeout end the wait.
//
// # Before production
//
// Create one Transport per account and share it, or share one [Throttle] among
// several Transports. A Transport that is created for each call limits nothing.
//
//   - A client's Timeout must be longer than a pause, 15 s. With a shorter one,
//     the caller gets the throttled response (HTTP 429) at once. Without any
//     deadline, a request may wait for minutes: with the defaults, its own pauses
//     last 8 min 45 s at most, or 40 min if each response has a long Retry-After.
//     Then the caller gets the 429.
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
// [WaitError]. The Throttle looks at this when the request joins the line and when
// a pause begins or is extended. A request that is overtaken later ends with its
// context.
//
// # After a throttled response
//
// After CONN_THROTTLED all requests pause, for [Throttle].Backoff or for the
// response's Retry-After. Then one request goes alone, the probe. The others go
// when it is answered, or Window after it was written, or Backoff after its start.
// If the probe is throttled, the next pause is twice as long, up to MaxBackoff.
// From the first throttled response on, starts are also spaced by a rate. It comes
// back along the curve of RFC 9438, section 4.2, and an hour without a throttled
// response lifts it. If the response names a lower limit than Limit, the lower one
// is in force for at least an hour.
//
// The throttled request is sent again, whatever its method: the server refused it
// before processing. The caller gets the throttled response as it came after 10
// retries ([WithMaxRetries]), if the pause outlasts the deadline, if the body
// cannot be sent again (it needs GetBody, or must fit [WithReplayBuffer]), or if
// Retry-After is longer than four times MaxBackoff.
//
// HTTP 429 without a Clarifai status, as from a gateway, first delays its own
// request alone: for Backoff, then for twice as long each time, or for its
// Retry-After. The account pauses only after three such responses in a row.
//
// Nothing else is retried. For retries of 5xx and of connection errors, put a
// retryablehttp.Client around; each of its attempts keeps to the limit.
//
// # The guarantee
//
// At most Limit requests arrive at the server within any Window. Each attempt holds
// one of Limit slots from its start until Window + 10 ms after it has arrived. The
// comment of internal/gate has the proof. An attempt has arrived
//
//   - when its answer comes;
//   - Transit after it was written, if its body has at most 64 KiB. Linux is also
//     asked whether the other end of the connection has acknowledged it (TCP,
//     plain or under TLS); if not, the attempt counts as in the next case;
//   - Transit after the other end has acknowledged it, whatever its size, on Linux;
//   - a minute after it was written;
//   - Transit after it failed or was canceled. If nothing of it was sent, its slot
//     is free at once.
//
// What net/http sends again by itself holds a slot of its own. An attempt that
// waits for a dial, or that uploads for more than a minute, gives its slot back
// meanwhile. So what never answers stops nothing else. The guarantee assumes that
//
//   - all requests of the account go through one Throttle;
//   - the other end of the connection passes a request on to where the server
//     counts within Transit. A sidecar or a CONNECT proxy near the client may not:
//     set Transit negative there;
//   - elsewhere than on Linux, and for wrapped connections, a request of at most
//     64 KiB takes at most Transit for the whole way, and a larger one a minute;
//   - nothing behind the Transport sends requests again without net/http's
//     knowledge;
//   - the server counts over windows of this length, with bursts up to Limit. Other
//     servers throttle now and then.
//
// # Several processes
//
// Static shares need nothing that can fail: a Limit of 3 in each of five processes
// adds up to 15. The share of an idle process is lost to the others. Processes of a
// rolling deployment count twice.
//
// The module redisthrottle shares the limit by way of Redis: each process gets
// what the others leave. Requests wait while Redis is away, unless a fallback is
// set.
//
// A proxy in front of all (examples/proxy) needs nothing in the clients and works
// for any language. It must be the only one. Start a new one Window + Transit
// after the last one ended.
//
// Processes that share nothing throttle each other. Pause, probe and pace then
// divide the limit among them, at a loss.
//
// # gRPC
//
// A Transport carries gRPC, which is HTTP/2. A throttled gRPC response has HTTP
// status 200 and grpc-status 0, so the Transport looks at the first message of
// each response, if it has at most 1 KiB. Unary and server-streaming calls are sent
// again. The client of a bidirectional stream may wait for the response's header
// before it sends more, so the header is held back for 20 ms at most. A throttled
// response that comes later pauses all requests, but goes to the caller. [Detect]
// does not look at gRPC.
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
//     again, or when a pause has begun. A fresh HTTP/1 connection is held for a
//     second at most and then closed.
//   - A request body without GetBody is closed at its end or when RoundTrip
//     returns. If net/http closes it during a Read, it is closed a second later.
//   - When a throttled response comes during the upload, the upload gets a second
//     to end.
//   - The last Read of a body that takes more than a minute may wait for a slot.
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
