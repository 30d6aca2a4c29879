package gate

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
	lift    = time.Hour        // without a throttled response
	soon    = 30 * time.Second // a cut so soon after another is a deep one
	cut     = 0.8
	deepCut = 0.5
)

// A Pace spaces starts after throttled responses, for others use the account,
// too. It is a rate with a burst of 1. There is none before the first cut. After
// a cut at rate wmax, t seconds after the pause, it is
//
//	w(t) = c (t-K)^3 + wmax
//
// as in RFC 9438, section 4.2, where w(0) is the rate just after the cut. A
// Pace is not safe for concurrent use.
type Pace struct {
	State
	scale   float64
	limiter *rate.Limiter
}

// A State is what the rate of a Pace depends on.
type State struct {
	ThrottledAt time.Time // the latest throttled response
	ResumedAt   time.Time // end of the latest pause
	CutAt       time.Time // zero: never
	Max, Low    float64   // rate just before and just after the latest cut
}

// NewPace returns a Pace for a limit of so many requests per window.
func NewPace(limit int, window time.Duration) *Pace {
	return &Pace{
		scale:   float64(limit) / 15 / window.Seconds(),
		limiter: rate.NewLimiter(rate.Inf, 1),
	}
}

// Throttled notes a throttled response.
func (p *Pace) Throttled(now time.Time) { p.ThrottledAt = now }

// Cut lowers the rate.
func (p *Pace) Cut(now time.Time) {
	factor := cut
	if !p.CutAt.IsZero() && now.Sub(p.CutAt) < soon {
		factor = deepCut
	}
	p.Max = min(p.Rate(now), ceiling*p.scale)
	p.Low = max(factor*p.Max, floor*p.scale)
	p.CutAt = now
}

// Resume notes when the latest pause ends: the rate grows from then on.
func (p *Pace) Resume(at time.Time) { p.ResumedAt = at }

// Wait returns how long the next start is away: 0 if it may be now.
func (p *Pace) Wait(now time.Time) time.Duration {
	perSecond := p.Rate(now)
	p.limiter.SetLimitAt(now, rate.Limit(perSecond))
	missing := 1 - p.limiter.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	// Rounded up, or whoever asks again in virtual time asks for ever.
	return time.Duration(missing/perSecond*float64(time.Second)) + time.Microsecond
}

// Start takes the token for a start, after Wait returned 0.
func (p *Pace) Start(now time.Time) { p.limiter.AllowN(now, 1) }

// Rate returns the rate at the instant given, in requests per second, if there
// is no cut until then: it never falls by itself.
func (p *Pace) Rate(at time.Time) float64 {
	if p.CutAt.IsZero() || at.Sub(p.ThrottledAt) >= lift {
		return float64(rate.Inf)
	}
	c := (p.Max - p.Low) / (back * back * back)
	x := max(at.Sub(p.ResumedAt).Seconds(), 0) - back
	if x > 0 {
		c = max(c, growth*p.scale)
	}
	return min(c*x*x*x+p.Max, ceiling*p.scale)
}
