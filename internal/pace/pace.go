// Package pace spaces starts after throttles, for others use the account, too.
package pace

import (
	"time"

	"golang.org/x/time/rate"
)

// The figures are for Clarifai's 15 requests per second; other limits scale
// the rates.
const (
	ceiling = 14.0 // requests per second
	floor   = 0.5
	growth  = 1e-6             // requests per s^4: the least c beyond wmax
	back    = 140.0            // s: K, until the rate before a cut is reached again
	lift    = time.Hour        // without a throttle
	soon    = 30 * time.Second // a cut so soon after another is a deep one
	cut     = 0.8
	deepCut = 0.5
)

// A Pace is a rate with a burst of 1. There is none before the first cut. After
// a cut at rate wmax, t seconds after the pause, it is
//
//	w(t) = c (t-K)^3 + wmax
//
// as in RFC 9438, section 4.2, where w(0) is the rate just after the cut. A
// Pace is not safe for concurrent use.
type Pace struct {
	scale     float64
	limiter   *rate.Limiter
	throttled time.Time
	resumed   time.Time // end of the latest pause
	cutAt     time.Time // zero: never
	wmax, low float64   // rate just before and just after the latest cut
}

// New returns a Pace for a limit of so many requests per window.
func New(limit int, window time.Duration) *Pace {
	return &Pace{
		scale:   float64(limit) / 15 / window.Seconds(),
		limiter: rate.NewLimiter(rate.Inf, 1),
	}
}

// Throttled notes a throttle.
func (p *Pace) Throttled(now time.Time) { p.throttled = now }

// Cut lowers the rate.
func (p *Pace) Cut(now time.Time) {
	factor := cut
	if !p.cutAt.IsZero() && now.Sub(p.cutAt) < soon {
		factor = deepCut
	}
	p.wmax = min(float64(p.rate(now)), ceiling*p.scale)
	p.low = max(factor*p.wmax, floor*p.scale)
	p.cutAt = now
}

// Resume notes when the latest pause ends: the rate grows from then on.
func (p *Pace) Resume(at time.Time) { p.resumed = at }

// Wait returns how long the next start is away: 0 if it may be now.
func (p *Pace) Wait(now time.Time) time.Duration {
	perSecond := p.rate(now)
	p.limiter.SetLimitAt(now, perSecond)
	missing := 1 - p.limiter.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	// Rounded up, or whoever asks again in virtual time asks for ever.
	return time.Duration(missing/float64(perSecond)*float64(time.Second)) + time.Microsecond
}

// Start takes the token for a start, after Wait returned 0.
func (p *Pace) Start(now time.Time) { p.limiter.AllowN(now, 1) }

// rate returns the rate now, in requests per second.
func (p *Pace) rate(now time.Time) rate.Limit {
	if p.cutAt.IsZero() || now.Sub(p.throttled) >= lift {
		return rate.Inf
	}
	c := (p.wmax - p.low) / (back * back * back)
	x := max(now.Sub(p.resumed).Seconds(), 0) - back
	if x > 0 {
		c = max(c, growth*p.scale)
	}
	return rate.Limit(min(c*x*x*x+p.wmax, ceiling*p.scale))
}
