package redisthrottle_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/redisthrottle"
)

// A lateConn calls send before it sends a command, and late before it hands on the
// reply, unless they are nil.
type lateConn struct {
	net.Conn
	send    func(command []byte)
	late    func(command, reply []byte) error
	command []byte
}

func (c *lateConn) Write(b []byte) (int, error) {
	c.command = bytes.ToLower(b)
	if c.send != nil {
		c.send(c.command)
	}
	return c.Conn.Write(b)
}

func (c *lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && c.late != nil {
		err = c.late(c.command, b[:n])
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// lateClient returns a client whose connections call send and late, as lateConn says.
func lateClient(t *testing.T, addr string, send func(command []byte), late func(command, reply []byte) error) *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: addr, Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &lateConn{Conn: c, send: send, late: late}, nil
	}})
	t.Cleanup(func() { client.Close() })
	return client
}

// TestLateAfterTrouble has Redis answer late, within the time-outs, when a process
// finds that it is back: the token that this finds is too old to be used.
func TestLateAfterTrouble(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	var mu sync.Mutex
	var armed, failed, back bool
	var old string // the reply to the BLMOVE that finds that Redis is back
	late := func(command, reply []byte) (err error) {
		var d time.Duration
		mu.Lock()
		switch script := bytes.Contains(command, []byte("evalsha")); {
		case !armed:
		case script && !failed:
			failed, err = true, errors.New("lost")
		case script:
			back, d = true, 600*ms
		case back && old == "" && bytes.Contains(command, []byte("blmove")):
			old, d = string(reply), 1050*ms
		}
		mu.Unlock()
		time.Sleep(d)
		return err
	}
	l := redisthrottle.New(lateClient(t, server.Addr, nil, late), redisthrottle.Config{Limit: 3, Logger: quiet})
	wait(t, l, 10*time.Second)
	l.Arrived()
	idle(t, l)
	time.Sleep(3 * time.Second) // the next Wait calls first
	mu.Lock()
	armed = true
	mu.Unlock()
	wait(t, l, 10*time.Second)
	mu.Lock()
	defer mu.Unlock()
	used := l.UnderWay()
	if len(used) != 1 || !strings.Contains(old, ".") || strings.Contains(old, used[0]) {
		t.Errorf("%q was used, %q came too late", used, old)
	}
}

// TestFlushInPause has Redis lose its data in a pause: the processes know it still.
func TestFlushInPause(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	l := redisthrottle.New(connect(t, server.Addr), fast)
	other := redisthrottle.New(connect(t, server.Addr), fast)
	wait(t, l, 10*time.Second)
	l.Arrived()
	l.Throttled(time.Minute)
	time.Sleep(200 * ms)
	refused(t, other, 300*ms)
	connect(t, server.Addr).FlushAll(t.Context())
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(100 * ms) {
		for _, l := range []*redisthrottle.Limiter{l, other} {
			if err := l.Wait(expired(t, time.Second)); err == nil {
				t.Fatalf("let go %v after the flush, in a pause of a minute", time.Since(begin))
			}
		}
	}
}

// TestJitter starts with an empty Redis, and every other call is late: that must not
// look like a jump of Redis's clock.
func TestJitter(t *testing.T) {
	t.Parallel()
	server, n := startRedis(t), listen(t)
	var calls atomic.Int64
	client := lateClient(t, server.Addr, func(command []byte) {
		if bytes.Contains(command, []byte("evalsha")) && calls.Add(1)%2 == 1 {
			time.Sleep(300 * ms)
		}
	}, nil)
	l := redisthrottle.New(client, redisthrottle.Config{Logger: quiet})
	begin := time.Now()
	wait(t, l, 20*time.Second)
	if d := time.Since(begin); d > 5500*ms {
		n.slow(t, "the first permission came after %v", d)
	} else {
		t.Logf("the first permission came after %v, with %d calls", d, calls.Load())
	}
}
