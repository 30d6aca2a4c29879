package redisthrottle

import (
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed pool.lua
var poolLua string

var poolScript = redis.NewScript(poolLua)

// States of a pool.
const (
	ready   = "ready"
	silence = "silence" // its tokens are made anew when nothing is under way
	foreign = "foreign" // others use it, at other settings
)

// ttl is how long the keys of an account live that nobody uses. The pace after
// a throttle is remembered for an hour.
const ttl = 2 * time.Hour

// An order is what one call of the script is to do.
type order struct {
	silent   string // watch of a pool that has been silent for long enough
	holding  int
	pause    time.Duration
	until    time.Time // end of pause
	over     string    // number of a pause that has ended
	observe  bool
	errands  []errand
	gaveBack []*token // of errands
}

type errand struct{ how, name string }

// A view is what the script says of a pool.
type view struct {
	watch       string // changes when the silence begins again
	state       string
	settings    string
	paused      bool
	pausedUntil time.Time // by this process's clock
	number      string    // of the pause
}

// A reply is a view, and tokens.
type reply struct {
	view
	left  time.Duration // of the pause
	care  []errand      // tokens to be freed at their turn
	turns []time.Duration
	taken []string
}

func (l *Limiter) settings() string {
	return fmt.Sprintf("%d/%d/%d", l.config.Limit, l.config.Window.Milliseconds(), l.config.Transit.Milliseconds())
}

// call runs the script.
func (l *Limiter) call(o order) (r reply, err error) {
	observe := 0
	if o.observe {
		observe = 1
	}
	args := []any{
		l.settings(), l.config.Limit, rand.Text(), (ttl + 4*l.gone).Milliseconds(),
		o.silent, o.holding, (max(o.pause, 0) + time.Millisecond - 1).Milliseconds(), o.over, observe,
	}
	for _, e := range o.errands {
		args = append(args, e.how, e.name)
	}
	v, err := poolScript.Run(context.Background(), l.client, l.keys, args...).Result()
	if err != nil {
		return r, err
	}
	defer func() {
		if e := recover(); e != nil {
			err = fmt.Errorf("unexpected reply %v", v)
		}
	}()
	f := v.([]any)
	r.watch = f[0].(string)
	r.state = f[1].(string)
	r.left = time.Duration(f[2].(int64)) * time.Millisecond
	r.number = f[3].(string)
	r.view.settings = f[4].(string)
	care := f[5].([]any)
	for i := 0; i < len(care); i += 2 {
		r.care = append(r.care, errand{"paced", care[i].(string)})
		r.turns = append(r.turns, time.Duration(care[i+1].(int64))*time.Millisecond)
	}
	for _, name := range f[6].([]any) {
		r.taken = append(r.taken, name.(string))
	}
	return r, nil
}
