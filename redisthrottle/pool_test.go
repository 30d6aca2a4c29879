package redisthrottle

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/internal/gate"
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
	p.settle()
	r := p.must(order{})
	if r.State != silent {
		t.Fatalf("%+v", r)
	}
	p.lists("", "", "")
	p.endSilence()
	p.lists("0.0 1.0 2.0", "", "")
	return p
}

func (p *pool) must(o order) reply {
	p.Helper()
	o.patience = patience
	r, err := p.call(p.client, o)
	if err != nil {
		p.Fatal(err)
	}
	return r
}

// endSilence has the script called at the end of a silence.
func (p *pool) endSilence() {
	p.Helper()
	p.client.HSet(p.Context(), p.keys[0], "at", 0)
	p.must(order{})
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
	for i, key := range p.keys[1:4] {
		got := p.client.LRange(p.Context(), key, 0, -1).Val()
		got = slices.DeleteFunc(got, func(token string) bool { return token == "-" })
		for i, token := range got {
			parts := strings.Split(token, ".")
			for _, part := range parts { // pools come before the number
				if number, err := strconv.Atoi(part); err == nil {
					got[i] = fmt.Sprintf("%d.%s", number-1, parts[len(parts)-1])
					break
				}
			}
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
	back := order{changes: []change{{"sent", a}}}
	p.must(back)
	p.must(back)
	p.lists("1.0 2.0 0.1", "", "")

	p.take()
	p.take()
	again := p.take() // the same token
	p.must(back)
	p.lists("", "1.0 2.0 0.1", "")
	p.must(order{changes: []change{{"renew", a}, {"renew", "x.1.0"}}})
	p.lists("", "1.0 2.0 0.1", "")
	p.must(order{changes: []change{{"renew", again}}})
	p.lists("", "1.0 2.0 0.1", "")
	p.must(order{changes: []change{{"sent", again}, {"renew", again}, {"sent", again}}})
	p.lists("0.2", "1.0 2.0", "")
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
			if r.State != silent {
				t.Errorf("state %s", r.State)
			}
			// Requests that may yet arrive get tokens at once, others what is left.
			r = p.must(order{changes: []change{{"renew", "x.1.0"}, {"renew", "x.2.0"}}})
			if !strings.HasPrefix(r.Names[0], r.ID) || !strings.HasPrefix(r.Names[1], r.ID) {
				t.Errorf("%+v", r)
			}
			p.lists("", "0.0 1.0", "")
			p.must(order{changes: []change{{"sent", r.Names[0]}}})
			p.lists("", "1.0", "")
			p.endSilence()
			p.lists("0.0 1.0", "1.0", "")
			p.must(order{changes: []change{{"sent", r.Names[1]}}})
			p.lists("0.0 1.0 1.1", "", "")
		})
	}
}

// TestLostReply loses the reply to a step that made tokens anew for requests under
// way: the next one must find these, by their old names.
func TestLostReply(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	a, b, c := p.take(), p.take(), p.take()
	p.client.FlushAll(t.Context())
	p.must(order{}) // silent
	all := order{changes: []change{{"renew", a}, {"renew", b}, {"renew", c}}}
	lost := p.must(all)
	p.must(order{changes: []change{{"sent", c}}}) // its reply is lost, too
	p.lists("", "0.0 1.0", "")
	p.must(order{changes: []change{{"sent", c}}})
	p.lists("", "0.0 1.0", "")

	two := order{changes: []change{{"renew", a}, {"renew", b}}}
	r := p.must(two)
	if r.Names[0] != lost.Names[0] || r.Names[1] != lost.Names[1] {
		t.Errorf("renewed again: %v, want %v", r.Names, lost.Names)
	}
	p.endSilence()
	p.lists("0.0", "0.0 1.0", "")
	p.must(two) // at any time
	p.must(order{changes: []change{{"sent", b}}})
	p.lists("0.0 1.1", "0.0", "")
	p.must(order{changes: []change{{"renew", r.Names[0]}, {"sent", r.Names[1]}, {"sent", b}}})
	p.lists("0.0 1.1", "0.0", "")
}

// TestPauseLostTwice has Redis lose its data in a pause, and again in the silence
// that follows: each new pool is told of the pause.
func TestPauseLostTwice(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	step := func() {
		t.Helper()
		p.lock()
		o := p.order(time.Now())
		p.unlock()
		r := p.must(o)
		p.lock()
		p.apply(o, r, time.Now())
		p.unlock()
	}
	p.pause = time.Now().Add(time.Minute)
	step()
	for i := range 2 {
		p.client.FlushAll(t.Context())
		step() // finds the new pool
		step() // reports the pause
		if phase := p.client.HGet(t.Context(), p.keys[0], "phase").Val(); phase != "paused" {
			t.Errorf("after loss %d: phase %q", i+1, phase)
		}
	}
}

// TestSameNumber has a token that came back and its next generation both be made
// anew: their names must differ, and whatever follows from them.
func TestSameNumber(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	a := p.take()
	p.must(order{changes: []change{{"sent", a}}}) // as lost: its holder is cut off
	p.take()
	p.take()
	b := p.take() // a's next generation
	p.client.FlushAll(t.Context())
	p.must(order{})
	r := p.must(order{changes: []change{{"renew", a}, {"renew", b}}})
	p.endSilence()
	p.must(order{changes: []change{{"sent", r.Names[0]}}})
	p.take()
	c := p.take()
	if c == r.Names[1] {
		t.Errorf("%s is in taken twice", c)
	}
	back := order{changes: []change{{"sent", r.Names[1]}}}
	p.must(back)
	p.must(back)
	taken := p.client.LRange(t.Context(), p.keys[2], 0, -1).Val()
	if free := p.client.LLen(t.Context(), p.keys[1]).Val(); free != 1 || !slices.Contains(taken, c) {
		t.Errorf("%d are free, taken: %q, %s is under way", free, taken, c)
	}
}

// TestLost has tokens come back that nobody renews, by the pool's clock: it
// stands still while nobody calls, or where Redis's jumps.
func TestLost(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	a, b := p.take(), p.take()
	p.client.HSet(t.Context(), p.keys[0], "look", 0) // or half a second later
	r := p.must(order{})
	clock := func() float64 {
		v, err := p.client.HGet(t.Context(), p.keys[0], "clock").Float64()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	ago := func(d time.Duration) {
		p.client.HIncrByFloat(t.Context(), p.keys[0], "now", -float64(d.Milliseconds()))
	}
	before := clock()
	ago(time.Hour)
	r = p.must(order{})
	if d := clock() - before; d < 2400 || d > 2600 {
		t.Errorf("an hour in which nobody called counts for %v ms", d)
	}
	if r.Wait < 1600 || r.Wait > 1900 {
		t.Errorf("somebody should call in %v ms", r.Wait)
	}
	before = clock()
	ago(time.Hour)
	p.must(order{clock: r.Now - time.Hour.Seconds()*1000})
	if d := clock() - before; d > 150 {
		t.Errorf("a jump of the clock counts for %v ms", d)
	}
	p.client.HSet(t.Context(), p.keys[0], "now", r.Now+time.Hour.Seconds()*1000)
	p.must(order{clock: r.Now + time.Hour.Seconds()*1000})
	if d := clock() - before; d > 150 {
		t.Errorf("a jump back counts for %v ms", d)
	}
	p.must(order{changes: []change{{"renew", b}}})
	before = clock()
	ago(2 * time.Second)
	r = p.must(order{clock: r.Now - 300}) // the call, or the one before, was under way for long
	if d := clock() - before; d < 1750 {
		t.Errorf("2 s count for %v ms", d)
	}
	p.must(order{})
	p.lists("2.0 0.1", "1.0", "")
	p.must(order{changes: []change{{"sent", a}}})
	p.lists("2.0 0.1", "1.0", "")
}

// TestUnseen has a step find a token in taken that none before has seen: how soon
// it is lost depends on how long ago the step before was.
func TestUnseen(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		ago  time.Duration
		step bool // of Redis's clock, as the caller notices
		want float64
	}{
		{300 * time.Millisecond, false, 4260}, {2 * time.Second, false, 2860}, {3 * time.Second, false, 1860}, {time.Hour, false, 1820}, {time.Hour, true, 4260},
	} {
		p := newPool(t)
		now := p.must(order{}).Now
		p.take()
		p.client.HIncrByFloat(t.Context(), p.keys[0], "now", -float64(tt.ago.Milliseconds()))
		p.client.HSet(t.Context(), p.keys[0], "look", 0) // the next would be 3 ms later
		o := order{}
		if tt.step {
			o.clock = now - float64(tt.ago.Milliseconds())
		}
		begin := time.Now()
		if r := p.must(o); r.Wait > tt.want+1 || r.Wait < tt.want-float64(time.Since(begin).Milliseconds())-200 {
			t.Errorf("%v after the step before: lost in %v ms, want %v", tt.ago, r.Wait, tt.want)
		}
	}
}

// TestWant has the script give tokens while there are some, and see them.
func TestWant(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	a := p.must(order{want: true}).Token
	p.must(order{want: true})
	p.lists("2.0", "0.0 1.0", "")
	if seen := p.client.HExists(t.Context(), p.keys[4], a).Val(); a == "" || !seen {
		t.Errorf("token %q, seen: %v", a, seen)
	}
	p.must(order{want: true})
	if r := p.must(order{want: true}); r.Token != "" {
		t.Errorf("%+v", r)
	}
	p.must(order{changes: []change{{"sent", a}}})
	if r := p.must(order{want: true, pause: time.Minute}); r.Token != "" {
		t.Errorf("during a pause: %+v", r)
	}
}

// TestLimits has processes use other limits: the lowest is in force.
func TestLimits(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	a := p.take()
	p.config.Limit = 1
	if r := p.must(order{}); r.Limit != 1 {
		t.Errorf("%+v", r)
	}
	p.lists("", "0.0", "")
	p.config.Limit = 3
	p.must(order{changes: []change{{"sent", a}}})
	p.lists("0.1", "", "")
	p.client.HIncrByFloat(t.Context(), p.keys[0], "clock", 4300)
	if r := p.must(order{}); r.Limit != 3 {
		t.Errorf("%+v", r)
	}
	p.lists("0.1 3.0 4.0", "", "")
	p.take()
	p.take()
	p.config.Limit = 1
	p.must(order{})
	p.lists("", "0.1 3.0", "")
}

func TestPauseAndPace(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	a, b := p.take(), p.take()
	cut := gate.State{Max: 2.8, Low: 2.24}
	r := p.must(order{pause: time.Minute, cut: cut})
	p.lists("", "0.0 1.0", "2.0")
	if r.Left < 59000 || r.Left > 60000 || r.From != cut.Max || r.To != cut.Low {
		t.Errorf("%+v", r)
	}
	p.must(order{changes: []change{{"sent", a}, {"unused", b}}})
	p.lists("", "", "2.0 0.1 1.1")

	// The clock of a process is as good as that of Redis.
	p.must(order{over: "no such pause"})
	p.lists("", "", "2.0 0.1 1.1")
	p.must(order{over: r.Number})
	p.must(order{over: r.Number})
	p.lists("2.0", "", "0.1 1.1")

	probe := p.take()
	p.must(order{changes: []change{{"unused", probe}}})
	p.lists("2.1", "", "0.1 1.1")
	probe = p.take()
	p.must(order{changes: []change{{"renew", probe}}})
	p.lists("", "2.1", "0.1 1.1")
	r = p.must(order{changes: []change{{"sent", probe}}})
	p.lists("2.2", "0.1 1.1", "") // at 0.8 * 14/5 per second

	const gap = 446.0
	var turned []change
	for name := range r.Delays {
		turned = append(turned, change{"delayed", name})
	}
	turns := slices.Sorted(maps.Values(r.Delays))
	if len(turns) != 2 || turns[0] < gap-5 || turns[0] > gap+5 || turns[1] < 2*gap-5 || turns[1] > 2*gap+5 {
		t.Fatalf("turns after %v", turns)
	}
	slices.SortFunc(turned, func(a, b change) int { return int(r.Delays[a[1]] - r.Delays[b[1]]) })
	p.must(order{changes: turned[:1]})
	p.lists("2.2 0.2", "1.1", "")

	// A pause in the meantime counts for it.
	p.must(order{pause: time.Minute, cut: cut})
	p.must(order{changes: turned[1:]})
	p.lists("", "", "2.2 0.2 1.2")
}
