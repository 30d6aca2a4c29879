// Package throttletest is a server that throttles as Clarifai's API does, for
// tests of clients.
//
// A [Handler] serves so many requests per window and answers those beyond with
// CONN_THROTTLED, halting the account for a while. [NewServer] runs it without
// a network, so that inside a [testing/synctest] bubble, where time is virtual,
// a test that waits for minutes is over at once:
//
//	func TestClient(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			account := &throttletest.Handler{} // 15 requests per second, then a halt of 15 s
//			srv := throttletest.NewServer(account)
//			defer srv.Close()
//			client := myclient.New(srv.URL, srv.Client())
//
//			account.Take(10)                  // another user of the account
//			account.HaltFor(20 * time.Second) // and one who went over the limit
//			if err := client.DoManyThings(t.Context()); err != nil {
//				t.Error(err)
//			}
//			if s := account.Stats(); s.Peak > 15 {
//				t.Errorf("the client went over the limit: %+v", s)
//			}
//		})
//	}
//
// Inside a bubble NewServer and Close have to be called in it. The requests that
// are served go to Handler.Next, where a test puts the API it needs.
//
// A Handler is an [http.Handler] like any other: it also runs under
// [httptest.NewServer] and with an [httptest.ResponseRecorder]. A simulation
// that uses no HTTP asks [Handler.Allow].
//
// What Clarifai does not document is a setting here: the algorithm that counts,
// the length of a halt and whether requests prolong it, the form of the answer.
// A client is tested best against several of them.
package throttletest
