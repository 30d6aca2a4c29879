package clarifaihttp_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// Bodies of all lengths, known, wrong or unknown, are framed in the same way.
func TestContractLengths(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		for _, method := range []string{"POST", "GET", "DELETE"} {
			for _, n := range []int{0, 1, len(content), 5000, 70000, 1 << 20} {
				if n > 100000 && method != "POST" {
					continue
				}
				text := strings.Repeat("x", n)
				for _, length := range []int64{-1, 0, int64(n)} {
					req := s.request(method, "/", opaque(strings.NewReader(text)))
					req.ContentLength = length
					s.do(req)
				}
				s.do(s.request(method, "/", strings.NewReader(text)))
			}
			req := s.request(method, "/", nil)
			req.Body = http.NoBody
			s.do(req)
			req = s.request(method, "/", opaque(strings.NewReader(content)))
			req.TransferEncoding = []string{"chunked"}
			s.do(req)
		}
	})
}

// Bodies that fail, or are shorter than they should be, fail the request. The
// error is that of writing or of reading, whichever net/http sees first.
func TestContractBadBodies(t *testing.T) {
	play(t, scene{unthrottled: true, blind: true}, func(s *stage) {
		failing := io.MultiReader(strings.NewReader(content), iotest.ErrReader(errOwn))
		for _, body := range []io.Reader{nil, opaque(strings.NewReader(content)), opaque(failing)} {
			req := s.request("POST", "/", body)
			req.ContentLength = 100
			_, err := s.client.Do(req)
			s.note("fails: %v", err != nil)
			_, err = s.rt.RoundTrip(s.request("POST", "/", opaque(failing)))
			s.note("fails: %v", err != nil)
		}
	})
}

// Trailers of requests, some set when the body ends, come through, and so do
// those of responses, announced or not.
func TestContractTrailers(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum, X-Unset")
			if r.URL.Path == "/500" {
				w.WriteHeader(500)
			}
			echo(w, r)
			w.Header().Set("X-Sum", "33")
			w.Header().Set(http.TrailerPrefix+"X-Unannounced", "1")
		}
		for _, path := range []string{"/", "/500"} {
			for _, getBody := range []bool{true, false} {
				req := s.request("POST", path, nil)
				req.Trailer = http.Header{"X-Early": {"1"}, "X-Late": nil}
				req.ContentLength = -1
				open := func() (io.ReadCloser, error) {
					rest := strings.NewReader(content)
					return opaque(readerFunc(func(p []byte) (int, error) {
						if rest.Len() == 0 {
							req.Trailer.Set("X-Late", "2")
						}
						return rest.Read(p)
					})), nil
				}
				req.Body, _ = open()
				if getBody {
					req.GetBody = open
				}
				s.roundTrip(req)
			}
		}
	})
}

// Expect: 100-continue holds the body back until the server wants it.
func TestContractExpect(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/wanted":
				echo(w, r)
			case "/refused":
				w.Header().Set("Connection", "close") // or HTTP/1.1's server waits for the body
				http.Error(w, "no", http.StatusExpectationFailed)
			case "/taken":
				w.WriteHeader(http.StatusNoContent)
			}
		}
		s.base.ExpectContinueTimeout = time.Minute
		for _, path := range []string{"/wanted", "/refused", "/taken"} {
			for i, body := range []io.Reader{strings.NewReader(content), opaque(strings.NewReader(content)), opaque(strings.NewReader(content))} {
				req := s.request("POST", path, body)
				req.Header.Set("Expect", "100-continue")
				if i == 2 {
					req.ContentLength = int64(len(content))
				}
				s.do(req)
			}
		}
	})
}

// URLs of all kinds, with passwords and without, arrive as they are, as does a
// Host of the caller's.
func TestContractURLs(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		for _, path := range []string{"", "?", "/a%2fb//c/../d", "/?q=a+b&q=%zz;x", "/#fragment", "/%E2%9C%93?✓"} {
			s.do(s.request("GET", s.url+path, nil))
		}
		req := s.request("GET", "/", nil)
		req.URL.Opaque = "//" + req.URL.Host + "/opaque%2f"
		s.do(req)
		req = s.request("OPTIONS", "/", nil)
		req.URL.Path = "*"
		s.do(req)
		req = s.request("GET", "/", nil)
		req.Host = "other.invalid"
		s.do(req)
		withPassword := strings.Replace(s.url, "//", "//me:secret@", 1)
		s.do(s.request("GET", withPassword+"/x", nil))
		s.roundTrip(s.request("GET", withPassword+"/x", nil))
	})
}

// A RequestURI is an error of the Client's alone.
func TestContractRequestURI(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		req := s.request("POST", "/", strings.NewReader(content))
		req.RequestURI = "/other"
		s.roundTrip(req)
		s.do(req)
	})
}

// Requests made by hand, valid and not, work or fail in the same way.
func TestContractRequestsByHand(t *testing.T) {
	play(t, scene{unthrottled: true, blind: true}, func(s *stage) {
		at, _ := url.Parse(s.url)
		for _, req := range []*http.Request{
			{URL: at},
			{URL: at, Header: http.Header{}},
			{URL: at, Header: http.Header{}, Method: "bad method"},
			{URL: at, Header: http.Header{"Bad Key": {"x"}}},
			{URL: at, Header: http.Header{"X-Bad": {"x\ny"}}},
			{URL: &url.URL{}, Header: http.Header{}},
			{URL: &url.URL{Scheme: "http"}, Header: http.Header{}},
			{URL: &url.URL{Scheme: "gopher", Host: "x.invalid"}, Header: http.Header{}},
		} {
			req.Body = opaque(strings.NewReader(content))
			s.roundTrip(req)
			req.Body = opaque(strings.NewReader(content))
			s.do(req)
		}
	})
}

// Request.Close and Connection: close are obeyed.
func TestContractRequestClose(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		for range 2 {
			req := s.request("POST", "/", strings.NewReader(content))
			req.Close = true
			s.do(req)
		}
		req := s.request("GET", "/", nil)
		req.Header.Set("Connection", "close")
		s.do(req)
	})
}

// Settings of the base hold.
func TestContractSettingsOfTheBase(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.base.DisableCompression = true
		s.base.DisableKeepAlives = true
		s.base.MaxIdleConns = 1
		s.do(s.request("GET", "/", nil))
		s.do(s.request("POST", "/", strings.NewReader(content)))
		s.base.Proxy = func(*http.Request) (*url.URL, error) { return nil, errOwn }
		s.do(s.request("GET", strings.Replace(s.url, "//", "//me:secret@", 1), nil))
	})
}

// The base's errors come back as they are.
func TestContractErrorsOfTheBase(t *testing.T) {
	play(t, scene{unthrottled: true}, func(s *stage) {
		dial := &url.Error{Op: "Own", URL: "http://server/", Err: &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}}
		for _, err := range []error{errOwn, dial, context.Canceled, io.EOF, http.ErrUseLastResponse, http.ErrSkipAltProtocol, fmt.Errorf("own: %w", errOwn)} {
			rt := s.over(roundTripperFunc(func(req *http.Request) (*http.Response, error) {
				if req.Body != nil {
					req.Body.Close()
				}
				return nil, err
			}))
			_, got := rt.RoundTrip(s.request("POST", "/", opaque(strings.NewReader(content))))
			s.note("as it is: %v", got == err)
			_, got = (&http.Client{Transport: rt}).Do(s.request("GET", "/", nil))
			s.failure("client", got)
		}
	})
}
