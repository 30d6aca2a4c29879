package clarifaihttp_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
)

// Events come one by one, and a stream ends when its caller closes it.
func TestContractEvents(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n\n", i)
				http.NewResponseController(w).Flush()
				if r.URL.Path == "/held" {
					<-r.Context().Done()
				}
			}
		}
		s.do(s.request("GET", "/", nil))
		resp, err := s.client.Do(s.request("GET", "/held", nil))
		if err != nil {
			s.Fatal(err)
		}
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		s.note("%q %v", line, err)
		resp.Body.Close()
	})
}

// A request and its response go on at the same time.
func TestContractBothWaysAtOnce(t *testing.T) {
	play(t, scene{proto: http2, unthrottled: true}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).Flush()
			in := bufio.NewScanner(r.Body)
			for in.Scan() {
				fmt.Fprintf(w, "you said %s\n", in.Text())
				http.NewResponseController(w).Flush()
			}
		}
		pr, pw := io.Pipe()
		resp, err := s.client.Do(s.request("POST", "/", pr))
		if err != nil {
			s.Fatal(err)
		}
		out := bufio.NewReader(resp.Body)
		for i := range 3 {
			fmt.Fprintln(pw, i)
			line, err := out.ReadString('\n')
			s.note("%q %v", line, err)
		}
		pw.Close()
		s.response(resp, nil)
	})
}

// An answer amid the upload is taken, and the rest of the upload is not.
func TestContractAnsweredBeforeTheUploadEnds(t *testing.T) {
	play(t, scene{unthrottled: true}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 1 {
				w.Header().Set("Connection", "close")
			}
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			io.WriteString(w, "too large")
		}
		pr, pw := io.Pipe()
		go func() {
			defer pw.Close()
			for {
				if _, err := pw.Write(make([]byte, 1<<10)); err != nil {
					return // the body was closed
				}
			}
		}()
		s.roundTrip(s.request("POST", "/", pr))
	})
}

// Connections are used again after read bodies and after another call's failure,
// and not after CloseIdleConnections.
func TestContractConnections(t *testing.T) {
	play(t, scene{unthrottled: true}, func(s *stage) {
		var reused []bool
		ctx := httptrace.WithClientTrace(s.Context(), &httptrace.ClientTrace{
			GotConn: func(i httptrace.GotConnInfo) { reused = append(reused, i.Reused) },
		})
		get := func() { s.do(s.request("GET", "/", nil).WithContext(ctx)) }
		get()
		get()
		_, err := s.client.Do(s.request("GET", "http://127.0.0.1:1/", nil))
		s.failure("refused", err)
		get()
		s.client.CloseIdleConnections()
		get()
		get()
		s.note("reused %v", reused)
	})
}

// The clients of a reverse proxy see the same through both.
func TestContractReverseProxy(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/upgrade":
				upgrade(w, r)
			case "/hints":
				w.Header().Set("Link", "</x>")
				w.WriteHeader(http.StatusEarlyHints)
				echo(w, r)
			case "/trailer":
				w.Header().Set("Trailer", "X-Sum")
				echo(w, r)
				w.Header().Set("X-Sum", "33")
			case "/404":
				io.Copy(io.Discard, r.Body)
				http.NotFound(w, r)
			default:
				echo(w, r)
			}
		}
		to, _ := url.Parse(s.url)
		proxy := httptest.NewServer(&httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host },
			Transport: s.rt,
		})
		defer proxy.Close()
		client := &http.Client{Transport: proxy.Client().Transport}
		do := func(req *http.Request) { s.response(client.Do(req.WithContext(s.Context()))) } // no hooks
		for _, path := range []string{"/", "/hints", "/trailer", "/404", "/x?a;b"} {
			path = proxy.URL + path
			do(s.request("GET", path, nil))
			for _, n := range []int{1, 100000} {
				do(s.request("POST", path, strings.NewReader(strings.Repeat("x", n))))
				do(s.request("POST", path, opaque(strings.NewReader(strings.Repeat("x", n)))))
			}
		}
		if s.proto == plainHTTP1 {
			do(upgradeTo("echo", s.request("GET", proxy.URL+"/upgrade", nil)))
		}
	})
}
