package clarifaihttp_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"testing"

	"example.com/clarifaihttp"
)

// Responses of all codes and lengths are the same, the looked-at ones included.
func TestContractStatus(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			var code, n int
			fmt.Sscanf(r.URL.Path, "/%d/%d", &code, &n)
			w.Header().Set("Content-Type", r.FormValue("type"))
			if r.FormValue("sized") != "" {
				w.Header().Set("Content-Length", fmt.Sprint(n))
			}
			w.WriteHeader(code)
			io.WriteString(w, strings.Repeat("x", n))
		}
		for _, path := range []string{ // /code/length
			"/204/0", "/205/0", "/304/0", "/200/0", "/404/0", "/500/0?sized=1", "/503/9", "/400/20000", "/500/300000", "/500/300000?sized=1",
			"/401/16384", "/401/16385?sized=1", "/200/2?type=application/json&sized=1", "/201/1024?type=application/json&sized=1",
			"/599/1", "/200/70000?type=text/event-stream",
		} {
			s.do(s.request("GET", path, nil))
			s.do(s.request("POST", path, strings.NewReader(content)))
		}
	})
}

// JSON that is looked at for Clarifai's status comes as it is.
func TestContractJSON(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", fmt.Sprint(len(r.FormValue("body"))))
			io.WriteString(w, r.FormValue("body"))
		}
		for _, body := range []string{okBody, `{"status":{"code":10010}}`, "[", "{", `"x"`, "{}", `{"outputs":[{"status":{"code":11005}}]}`} {
			s.do(s.request("GET", "/?body="+url.QueryEscape(body), nil))
		}
	})
}

// HEAD has the header of a body, and none.
func TestContractHEAD(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1234")
			w.Header().Set("Content-Type", "application/json")
			if r.URL.Path == "/404" {
				w.WriteHeader(404)
			}
		}
		s.do(s.request("HEAD", "/", nil))
		s.do(s.request("HEAD", "/404", nil))
	})
}

// Gzip, whole or cut off, is decompressed by whoever would without us.
func TestContractGzip(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			b := []byte(okBody)
			if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
				w.Header().Set("Content-Encoding", "gzip")
				var zip bytes.Buffer
				z := gzip.NewWriter(&zip)
				io.WriteString(z, strings.Repeat(okBody, 100))
				z.Close()
				b = zip.Bytes()[:zip.Len()-len(r.FormValue("cut"))]
			}
			if r.URL.Path == "/404" {
				w.WriteHeader(404)
			}
			w.Write(b)
		}
		for _, path := range []string{"/", "/404", "/?cut=xxx", "/404?cut=xxx"} {
			s.do(s.request("GET", path, nil))
			for _, coding := range []string{"gzip", "identity"} {
				req := s.request("GET", path, nil)
				req.Header.Set("Accept-Encoding", coding)
				s.do(req)
			}
		}
	})
}

// Responses that break off do so at the same byte, with the same error.
func TestContractBrokenOff(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			var code int
			fmt.Sscanf(r.URL.Path, "/%d", &code)
			if code == 0 {
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Type", "application/json")
			if r.FormValue("sized") != "" {
				w.Header().Set("Content-Length", "900")
			}
			w.WriteHeader(code)
			io.WriteString(w, strings.Repeat(" ", 800))
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		for _, path := range []string{"/", "/200", "/500", "/200?sized=1", "/503?sized=1"} {
			s.do(s.request("POST", path, opaque(strings.NewReader(content))))
		}
	})
}

// 1xx responses reach the hooks, whose errors count.
func TestContract1xx(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusProcessing)
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			echo(w, r)
		}
		s.do(s.request("GET", "/", nil))
		s.do(s.request("POST", "/", strings.NewReader(content)))
		req := s.request("GET", "/refused", nil)
		s.do(req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(int, textproto.MIMEHeader) error { return errOwn },
		})))
	})
}

// 101 gives a connection to write to.
func TestContractUpgrade(t *testing.T) {
	play(t, scene{proto: plainHTTP1}, func(s *stage) {
		s.serve = upgrade
		req := upgradeTo("echo", s.request("GET", "/", nil))
		s.do(req)
		s.roundTrip(req.Clone(s.hooked(s.Context())))
		s.do(s.request("GET", "/not", nil))
	})
}

// upgradeTo has req ask for another protocol.
func upgradeTo(protocol string, req *http.Request) *http.Request {
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	return req
}

// upgrade switches to a protocol of two lines.
func upgrade(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		http.Error(w, "what for?", http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	rw.Flush()
	line, _ := rw.ReadString('\n')
	fmt.Fprintf(rw, "who is there? %s", line)
	rw.Flush()
}

// A throttled response that is handed back is whole, trailer included.
func TestContractHandedBack(t *testing.T) {
	play(t, scene{unthrottled: true}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Trailer", "X-Sum")
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", r.URL.Path[1:])
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprintf(w, throttledBody, 15)
			io.WriteString(w, strings.Repeat(" ", 100000))
			w.Header().Set("X-Sum", "33")
		}
		s.client.Transport = s.over(s.base, clarifaihttp.WithMaxRetries(0))
		s.do(s.request("GET", "/0", nil))
		s.do(s.request("POST", "/0", opaque(strings.NewReader(content))))
		s.client.Transport = s.over(s.base, clarifaihttp.WithReplayBuffer(len(content)-1))
		s.do(s.request("POST", "/0", opaque(strings.NewReader(content))))
		s.client.Transport = s.over(s.base)
		s.do(s.request("POST", "/100000", strings.NewReader(content))) // nobody sits that out
	})
}
