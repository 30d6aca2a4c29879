package clarifaihttp_test

import (
	"io"
	"net/http"
	"reflect"

	"example.com/clarifaihttp"
)

// An obedient Transport is checked to obey the rules of http.RoundTripper.
type obedient struct {
	*clarifaihttp.Transport
	s *stage
}

// RoundTrip fails the test unless there is one of response and error, each body
// is closed once, and nothing of the request changes. An answer must belong to
// the caller's request; over HTTP/2, the bare base's belong to a copy of it.
func (o obedient) RoundTrip(req *http.Request) (*http.Response, error) {
	s := o.s
	mine := req.WithContext(req.Context())
	if req.Body != nil && req.Body != http.NoBody {
		mine.Body = s.bodies.add("request", req.Body)
	}
	if req.GetBody != nil {
		mine.GetBody = func() (io.ReadCloser, error) {
			b, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			return s.bodies.add("request", b), nil
		}
	}
	before, after := *mine, mine.Clone(req.Context())
	resp, err := o.Transport.RoundTrip(mine)
	if (resp == nil) == (err == nil) {
		s.Errorf("got %v and %v", resp, err)
	}
	if resp != nil {
		if resp.Request != mine {
			s.Errorf("answer to %p, not to the caller's request %p", resp.Request, mine)
		}
		resp.Request = req
	}
	now := *mine
	now.Body, now.GetBody = nil, nil
	after.Body, after.GetBody, after.Trailer = nil, nil, req.Trailer
	if mine.Body != before.Body || (mine.GetBody == nil) != (before.GetBody == nil) || !reflect.DeepEqual(&now, after) {
		s.Errorf("the request has changed: %+v, was %+v", now, *after)
	}
	return resp, err
}
