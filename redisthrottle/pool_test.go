package redisthrottle

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/redisthrottle/internal/redisserver"
)

// A pool is one with three tokens, for tests of single calls of the script.
type pool struct {
	*testing.T
	*Limiter
	client *redis.Client
}

func newPool(t *testing.T) *pool {
	s, err := redisserver.Start()
	if err == redisserver.ErrMissing {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { c.Close() })
	p := &pool{t, New(c, Config{Limit: 3}), c}
	r := p.must(order{})
	if r.state != silence {
		t.Fatalf("%+v", r)
	}
	p.must(order{silent: r.watch})
	p.lists("0.0 1.0 2.0", "", "")
	return p
}

func (p *pool) must(o order) reply {
	p.Helper()
	r, err := p.call(o)
	if err != nil {
		p.Fatal(err)
	}
	return r
}

// take moves a token to taken and returns its name.
func (p *pool) take() string {
	p.Helper()
	name, err := p.client.LMove(p.Context(), p.keys[1], p.keys[2], "left", "right").Result()
	if err != nil {
		p.Fatal(err)
	}
	return name
}

// lists compares the lists with tokens as number.generation, numbers from 0.
func (p *pool) lists(want ...string) {
	p.Helper()
	for i, key := range p.keys[1:] {
		got := p.client.LRange(p.Context(), key, 0, -1).Val()
		got = slices.DeleteFunc(got, func(token string) bool { return token == "-" })
		for i, token := range got {
			var number, generation int
			fmt.Sscanf(token[strings.IndexByte(token, '.')+1:], "%d.%d", &number, &generation)
			got[i] = fmt.Sprintf("%d.%d", number-1, generation)
		}
		if !slices.Equal(got, strings.Fields(want[i])) {
			p.Errorf("%s: %v, want %s", key, got, want[i])
		}
	}
}

func TestCallsThatComeLateOrTwice(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	a := p.take()
	back := order{errands: []errand{{"sent", a}}}
	p.must(back)
	p.must(back)
	p.lists("1.0 2.0 0.1", "", "")

	p.take()
	p.take()
	again := p.take() // the same token
	p.must(back)
	p.lists("", "1.0 2.0 0.1", "")
	p.must(order{errands: []errand{{"renew", again}}})
	p.must(order{errands: []errand{{"renew", again}, {"sent", again}}})
	p.lists("", "1.0 2.0 0.2", "")
	if generation(again) == again || p.client.LPos(t.Context(), p.keys[2], generation(again), redis.LPosArgs{}).Err() != nil {
		t.Errorf("%s is not what the script made of %s", generation(again), again)
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(*pool){
		"one too few":    func(p *pool) { p.client.LPop(t.Context(), p.keys[1]) },
		"one too many":   func(p *pool) { p.client.LPush(t.Context(), p.keys[1], "x.9.9") },
		"a list is gone": func(p *pool) { p.take(); p.client.Del(t.Context(), p.keys[2]) },
		"the pool is":    func(p *pool) { p.client.Del(t.Context(), p.keys[0]) },
		"another server": func(p *pool) { p.client.HSet(t.Context(), p.keys[0], "server", "x") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t)
			damage(p)
			r := p.must(order{})
			p.lists("", "", "")
			if r.state != silence {
				t.Errorf("state %s", r.state)
			}
			// A request that may yet arrive begins the silence again.
			was := r.watch
			if r = p.must(order{holding: 1, silent: was}); r.watch == was {
				t.Error("the silence goes on")
			}
			p.lists("", "", "")
			p.must(order{silent: was})
			p.lists("", "", "")
			p.must(order{silent: r.watch})
			p.lists("0.0 1.0 2.0", "", "")
		})
	}
}

func TestPauseAndPace(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	a, b := p.take(), p.take()
	r := p.must(order{pause: time.Minute})
	p.lists("", "0.0 1.0", "2.0")
	if r.left < 59*time.Second || r.left > time.Minute {
		t.Errorf("%v left", r.left)
	}
	p.must(order{errands: []errand{{"sent", a}, {"unused", b}}})
	p.lists("", "", "2.0 0.1 1.1")

	// The clock of a process is as good as that of Redis.
	p.must(order{over: "no such pause"})
	p.lists("", "", "2.0 0.1 1.1")
	p.must(order{over: r.number})
	p.must(order{over: r.number})
	p.lists("2.0", "", "0.1 1.1")

	probe := p.take()
	p.must(order{errands: []errand{{"unused", probe}}})
	p.lists("2.1", "", "0.1 1.1")
	probe = p.take()
	p.must(order{errands: []errand{{"renew", probe}}})
	p.lists("", "2.2", "0.1 1.1")
	r = p.must(order{errands: []errand{{"sent", generation(probe)}}})
	p.lists("2.3", "0.1 1.1", "") // at 0.8 * 14/5 per second

	if len(r.care) != 2 || len(r.turns) != 2 {
		t.Fatalf("%+v", r)
	}
	const gap = 446 * time.Millisecond
	for i, turn := range r.turns {
		if want := time.Duration(i+1) * gap; turn < want-5*time.Millisecond || turn > want+5*time.Millisecond {
			t.Errorf("turn %d comes after %v, want %v", i, turn, want)
		}
	}
	p.must(order{errands: r.care[:1]})
	p.lists("2.3 0.2", "1.1", "")

	// A pause in the meantime counts for it.
	p.must(order{pause: time.Minute})
	p.must(order{errands: r.care[1:]})
	p.lists("", "", "2.3 0.2 1.2")
}
