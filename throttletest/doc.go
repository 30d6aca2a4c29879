// Package throttletest is a server that throttles as Clarifai's API does, for
// tests of clients.
//
// A [Handler] serves requests up to a limit. It answers more with CONN_THROTTLED
// and halts the account for a while. [NewServer] runs it without a network. Inside a
// [testing/synctest] bubble, where time is virtual, a test that waits for minutes is
// over at once:
//
//	func TestClient(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			account := &throttletest.Handler{} // 15 requests per second, then a halt of 15 s
//			srv := throttletest.NewServer(account)
//			defer srv.Close()
//			client := myclient.New(srv.URL, srv.Client())
//
//			account.Take(10)                  // another user of the account
//			account.HaltFor(20 * time.Second) // and one who exceeded the limit
//			if err := client.DoManyThings(t.Context()); err != nil {
//				t.Error(err)
//			}
//			if s := account.Stats(); s.Peak > 15 {
//				t.Errorf("the client exceeded the limit: %+v", s)
//			}
//		})
//	}
//
// In a bubble, call NewServer and Close inside it. Handler.Next serves the requests
// that are not throttled: a test puts the API that it needs there.
//
// A Handler is an [http.Handler] as any other: it also runs under
// [httptest.NewServer] and with an [httptest.ResponseRecorder]. A simulation without
// HTTP calls [Handler.Allow].
//
// Clarifai does not document the algorithm that counts, the length of a halt,
// whether requests prolong it, and the form of the response. These are settings
// here. Test a client against several of them.
package throttletest
