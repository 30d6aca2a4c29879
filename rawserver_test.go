package clarifaihttp_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"example.com/clarifaihttp"
)

// A rawServer accepts connections of which a test writes each byte.
type rawServer struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func newRawServer(t *testing.T, serve func(*net.TCPConn)) *rawServer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{Listener: ln, conns: make(map[net.Conn]bool)}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			s.wg.Go(func() {
				serve(c.(*net.TCPConn))
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			})
		}
	})
	return s
}

func (s *rawServer) url(path string) string { return "http://" + s.Addr().String() + path }

func (s *rawServer) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *rawServer) stop() {
	s.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

const (
	rawOK        = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	rawThrottled = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 120\r\n\r\n" +
		`{"status":{"code":11005,"description":"Too Many Requests"}}` +
		"                                                             " // 59 + 61
)

// reset closes c so that the other side gets a reset.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// hangUp waits for the other side to do so.
func hangUp(c *net.TCPConn) { io.Copy(io.Discard, c) }

// The frames of HTTP/2, RFC 9113, section 6.
const (
	h2Data = iota
	h2Headers
	_
	h2ResetStream
	h2Settings
	_
	h2Ping
	h2GoAway
)

const (
	h2EndStream  = 0x1 // also ACK
	h2EndHeaders = 0x4

	h2InternalError = 2
	h2RefusedStream = 7
	h2Cancel        = 8
)

// An h2Conn is a connection whose other side speaks HTTP/2.
type h2Conn struct {
	net.Conn
	mu sync.Mutex // guards writes
}

func (c *h2Conn) frame(kind, flags byte, stream uint32, payload string) {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	head = append(head, flags)
	head = binary.BigEndian.AppendUint32(head, stream)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Write(append(head, payload...))
}

func uint32s(values ...uint32) string {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return string(b)
}

func (c *h2Conn) ok(stream uint32) {
	c.frame(h2Headers, h2EndHeaders|h2EndStream, stream, "\x88") // :status 200
}

func (c *h2Conn) throttle(stream uint32) {
	// :status 429, retry-after 0
	c.frame(h2Headers, h2EndHeaders, stream, "\x08\x03429"+"\x0f\x26\x010")
	c.frame(h2Data, h2EndStream, stream, fmt.Sprintf(throttledBody, 15))
}

// reset closes a stream.
func (c *h2Conn) reset(stream, why uint32) { c.frame(h2ResetStream, 0, stream, uint32s(why)) }

// serve calls f for each request.
func (c *h2Conn) serve(f func(stream uint32)) {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	br := bufio.NewReader(c)
	if _, err := br.Discard(len(preface)); err != nil {
		return
	}
	c.frame(h2Settings, 0, 0, "")
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(br, head); err != nil {
			return
		}
		n, kind, flags, stream := binary.BigEndian.Uint32(head)>>8, head[3], head[4], binary.BigEndian.Uint32(head[5:])
		payload := make([]byte, n)
		if _, err := io.ReadFull(br, payload); err != nil {
			return
		}
		switch {
		case kind == h2Settings && flags&1 == 0:
			c.frame(h2Settings, 1, 0, "")
		case kind == h2Ping && flags&1 == 0:
			c.frame(h2Ping, 1, 0, string(payload))
		case kind == h2Headers:
			f(stream)
		}
	}
}

// nothingLeft checks that the next request works and that nothing is left then.
func nothingLeft(t *testing.T, rt *clarifaihttp.Transport, th *clarifaihttp.Throttle, srv *rawServer) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, srv.url("/"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := rt.RoundTrip(req); err != nil {
		t.Errorf("the next request: %v", err)
	} else if got := body(t, resp); resp.StatusCode != 200 {
		t.Errorf("the next request: status %d, %s", resp.StatusCode, got)
	}
	eventually(t, func() string {
		if s := th.Stats(); s.Held != 0 || s.Waiting != 0 {
			return fmt.Sprintf("in the end: %+v", s)
		}
		return ""
	})
	rt.CloseIdleConnections()
	eventually(t, func() string {
		if n := srv.open(); n != 0 {
			return fmt.Sprintf("%d connections left", n)
		}
		return ""
	})
}

// tight is a Throttle with few slots, which are soon free again.
func tight() *clarifaihttp.Throttle {
	return &clarifaihttp.Throttle{Limit: 5, Window: 5 * ms, Backoff: 20 * ms, MaxBackoff: 50 * ms, Transit: 200 * ms}
}
