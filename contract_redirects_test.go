package clarifaihttp_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
)

// redirecting answers as the request's query says, ?code=302&to=/there, and
// echoes without one.
func redirecting(w http.ResponseWriter, r *http.Request) {
	if r.URL.RawQuery == "" {
		echo(w, r)
		return
	}
	var code int
	fmt.Sscan(r.FormValue("code"), &code)
	io.Copy(io.Discard, r.Body)
	http.SetCookie(w, &http.Cookie{Name: "seen" + r.URL.Path[1:], Value: r.FormValue("code")})
	w.Header()["Location"] = r.URL.Query()["to"]
	w.WriteHeader(code)
	io.WriteString(w, "elsewhere")
}

// Redirects are followed with the same methods, bodies, headers and cookies.
func TestContractRedirects(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = redirecting
		jar, _ := cookiejar.New(nil)
		for _, s.client.Jar = range []http.CookieJar{nil, jar} {
			for _, code := range []int{301, 302, 303, 307, 308} {
				for i, body := range []func() io.Reader{
					func() io.Reader { return nil },
					func() io.Reader { return strings.NewReader(content) }, // has GetBody
					func() io.Reader { return opaque(strings.NewReader(content)) },
				} {
					method := []string{"GET", "POST", "PUT"}[i]
					req := s.request(method, fmt.Sprintf("/a?code=%d&to=/b%%3Fcode=%d%%26to=c%d", code, code, i), body())
					req.Header.Set("X-Own", "kept")
					s.do(req)
				}
			}
		}
		at, _ := url.Parse(s.url)
		s.note("jar %v", jar.Cookies(at))
	})
}

// Redirects that lead nowhere fail in the same way.
func TestContractBadRedirects(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = redirecting
		_, host, _ := strings.Cut(s.url, "//")
		for _, query := range []string{
			"code=302", "code=302&to=http://[::1", "code=307&to=%25zz", "code=308&to=ftp://nowhere.invalid/",
			"code=302&to=%3Fcode=302", "code=302&to=//me:pw@" + host,
		} {
			s.do(s.request("GET", "/a?"+query, nil))
			s.do(s.request("POST", "/b?"+query, strings.NewReader(content)))
		}
	})
}

// A Client gives up endless redirects after as many requests.
func TestContractEndlessRedirects(t *testing.T) {
	play(t, scene{unthrottled: true}, func(s *stage) {
		s.serve = func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
		}
		s.do(s.request("GET", "/x", nil))
	})
}

// CheckRedirect sees the same requests and responses, and its errors count.
func TestContractCheckRedirect(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		s.serve = redirecting
		for _, err := range []error{nil, http.ErrUseLastResponse, errOwn} {
			s.client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
				s.note("check %s %s %v after %d, got %s", req.Method, req.URL, req.Header, len(via), req.Response.Status)
				return err
			}
			s.do(s.request("GET", "/a?code=302&to=/c", nil))
			s.do(s.request("POST", "/b?code=307&to=/c", strings.NewReader(content)))
		}
	})
}

// A base that sends another request than it was given, as oauth2's does, or one
// that follows redirects by itself, is seen to have sent that one.
func TestContractBaseSendsAnotherRequest(t *testing.T) {
	play(t, scene{}, func(s *stage) {
		rt := s.over(roundTripperFunc(func(req *http.Request) (*http.Response, error) {
			req = req.Clone(req.Context())
			req.Header.Set("Authorization", "Key x")
			req.URL.Path = "/other/place"
			return s.base.RoundTrip(req)
		}))
		s.response(rt.RoundTrip(s.request("GET", "/", nil)))
	})
}
