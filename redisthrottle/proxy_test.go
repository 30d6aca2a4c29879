package redisthrottle_test

import (
	"net"
	"sync"
	"testing"
)

// A proxy is the network between processes and Redis.
type proxy struct {
	Addr string

	mu     sync.Mutex
	free   *sync.Cond // no longer stuck
	target string
	stuck  bool
	conns  map[net.Conn]bool
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Addr: l.Addr().String(), target: target, conns: make(map[net.Conn]bool)}
	p.free = sync.NewCond(&p.mu)
	t.Cleanup(func() {
		l.Close()
		p.stick(false)
		p.cut()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) serve(c net.Conn) {
	p.pass() // a connection is made in any case: the kernel accepts it
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	s, err := net.Dial("tcp", target)
	if err != nil {
		c.Close()
		return
	}
	p.mu.Lock()
	p.conns[c], p.conns[s] = true, true
	p.mu.Unlock()
	go p.copy(s, c)
	p.copy(c, s)
}

func (p *proxy) copy(to, from net.Conn) {
	defer func() {
		p.mu.Lock()
		delete(p.conns, to)
		p.mu.Unlock()
		to.Close()
	}()
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		p.pass()
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// pass waits for as long as the network is stuck.
func (p *proxy) pass() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.stuck {
		p.free.Wait()
	}
}

// stick has all that is sent wait, or no longer.
func (p *proxy) stick(stuck bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck = stuck
	p.free.Broadcast()
}

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
		c.Close()
	}
}

// lead has new connections lead to target, and closes the others.
func (p *proxy) lead(target string) {
	p.mu.Lock()
	p.target = target
	p.mu.Unlock()
	p.cut()
}
