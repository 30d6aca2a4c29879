package redisthrottle_test

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A proxy is the network between processes and Redis.
type proxy struct {
	Addr  string
	delay time.Duration // each way
	tries atomic.Int32  // connections made, and pieces sent to Redis

	mu     sync.Mutex
	free   *sync.Cond // no longer stuck
	target string
	stuck  bool
	gone   int // connections made before this one are stuck for ever
	made   int
	conns  map[net.Conn]bool
}

func newProxy(t testing.TB, target string) *proxy { return newFarProxy(t, target, 0) }

// newFarProxy returns a proxy that is that far away, there and back.
func newFarProxy(t testing.TB, target string, distance time.Duration) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Addr: l.Addr().String(), delay: distance / 2, target: target, conns: make(map[net.Conn]bool)}
	p.free = sync.NewCond(&p.mu)
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.gone = 0
		p.mu.Unlock()
		p.stick(false)
		p.cut()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.tries.Add(1)
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) serve(c net.Conn) {
	p.mu.Lock()
	p.made++
	number := p.made
	p.mu.Unlock()
	p.pass(number) // a connection is made in any case: the kernel accepts it
	time.Sleep(2 * p.delay)
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
	go p.copy(s, c, number, true)
	p.copy(c, s, number, false)
}

// copy sends on what comes, a delay later.
func (p *proxy) copy(to, from net.Conn, number int, asks bool) {
	type piece struct {
		b  []byte
		at time.Time
	}
	way := make(chan piece, 1000)
	go func() {
		defer close(way)
		for {
			b := make([]byte, 16<<10)
			n, err := from.Read(b)
			if n > 0 && asks {
				p.tries.Add(1)
			}
			way <- piece{b[:n], time.Now().Add(p.delay)}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		p.mu.Lock()
		delete(p.conns, to)
		p.mu.Unlock()
		to.Close()
		for range way { // until from ends
		}
	}()
	for x := range way {
		time.Sleep(time.Until(x.at))
		p.pass(number)
		if _, err := to.Write(x.b); err != nil {
			return
		}
	}
}

// pass waits for as long as the network is stuck.
func (p *proxy) pass(number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.stuck || number < p.gone {
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

// vanish has the connections stuck for ever, and new ones lead to target.
func (p *proxy) vanish(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target, p.gone = target, p.made+1
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
