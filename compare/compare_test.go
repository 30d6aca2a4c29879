package main

import (
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// shortPeriod is how long the tests' floods last.
const shortPeriod = 60 * time.Second

// oneProcessor keeps the race detector sound: in Go 1.26 the timers of a
// synctest bubble share one of its contexts, which it cannot bear when two
// processors run them at once.
func oneProcessor(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// TestFlood floods every server over every network, through every client. It
// fails if ours is throttled once, or if a peer's worst case is as good. Who gives
// up a part of the limit may be as good as long as nothing else happens.
func TestFlood(t *testing.T) {
	oneProcessor(t)
	floods := make([]map[condition]figures, len(clients))
	for i, c := range clients {
		floods[i] = measureFlood(t, c, shortPeriod)
	}
	worst := map[string]float64{}
	for i, c := range clients {
		worst[c.name] = record{flood: floods[i]}.worst().goodput
		t.Logf("%s: goodput %s %% at worst", c.name, percent(worst[c.name]))
		if !c.ours && c.name != nameShares {
			continue
		}
		for cond, f := range floods[i] {
			if f.throttled != 0 || f.peak > limit || f.lost != 0 {
				t.Errorf("%s, %+v: %.0f of 1000 throttled, %d arrivals in a second, %d failed calls", c.name, cond, f.throttled, f.peak, f.lost)
			}
		}
	}
	for _, c := range peers() {
		if !c.margin && worst[c.name] >= worst[nameOurs] {
			t.Errorf("%s: goodput %.3f at worst, ours %.3f", c.name, worst[c.name], worst[nameOurs])
		}
	}
}

// peers are the clients that are not made of this package.
func peers() (all []client) {
	for _, c := range clients {
		if c.module != "example.com/clarifaihttp" {
			all = append(all, c)
		}
	}
	return all
}

// TestOrder has each client do each of the other workloads but the images. It
// fails if a peer does better than ours, unless the work is steady and the peer
// gives up a part of the limit for it.
func TestOrder(t *testing.T) {
	oneProcessor(t)
	ours := clients[slices.IndexFunc(clients, func(c client) bool { return c.ours })]
	for name, tt := range map[string]struct {
		play   func(*testing.T, client) *world
		better func(peer, ours figures) bool
		steady bool
	}{
		"job": {steady: true, play: job, better: func(peer, ours figures) bool {
			return ours.lost > 0 || peer.lost == 0 && peer.time <= ours.time
		}},
		"burst of the limit": {
			play:   func(t *testing.T, c client) *world { return burst(t, c, limit) },
			better: func(peer, ours figures) bool { return ours.lost > 0 || peer.lost == 0 && peer.p99 < ours.p99 },
		},
		"burst of twice the limit": {
			play:   func(t *testing.T, c client) *world { return burst(t, c, 2*limit) },
			better: func(peer, ours figures) bool { return ours.lost > 0 || peer.lost == 0 && peer.p99 <= ours.p99 },
		},
		"inference": {
			play:   func(t *testing.T, c client) *world { return inference(t, c, shortPeriod) },
			better: func(peer, ours figures) bool { return len(peer.served) >= len(ours.served) },
			steady: true,
		},
		"deadline": {play: deadlines, better: func(peer, ours figures) bool {
			return peer.known < ours.known || peer.arrived < ours.arrived
		}},
		"neighbour": {
			play:   func(t *testing.T, c client) *world { return neighbour(t, c, usual, workers, period) },
			better: func(peer, ours figures) bool { return len(peer.served) >= len(ours.served) },
		},
		"inference beside a neighbour": {
			play:   func(t *testing.T, c client) *world { return neighbour(t, c, slow, inferenceWorkers, period) },
			better: func(peer, ours figures) bool { return len(peer.served) >= len(ours.served) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			best := figuresOf(tt.play(t, ours), 0)
			for _, c := range peers() {
				if tt.steady && c.margin {
					continue
				}
				if f := figuresOf(tt.play(t, c), 0); tt.better(f, best) {
					t.Errorf("%s is better: %v, ours %v", c.name, f, best)
				}
			}
		})
	}
}

// TestBodies fails if ours loses a body. What becomes of the others' is for
// RESULTS.md: under the race detector, resty frees its buffer while net/http may
// still be sending it.
func TestBodies(t *testing.T) {
	for _, c := range clients {
		if !c.ours {
			continue
		}
		for _, stream := range []bool{false, true} {
			if fate := bodyFate(t, c, stream); fate != "served" {
				t.Errorf("%s, stream %v: %s", c.name, stream, fate)
			}
		}
	}
}

// TestImages has ours and a peer upload for a moment, over real sockets.
func TestImages(t *testing.T) {
	var two []client
	for _, c := range clients {
		if c.ours || c.name == nameMargin {
			two = append(two, c)
		}
	}
	all, late := measureImages(t, two, 4*time.Second)
	for i, f := range all {
		t.Logf("%s: %v, goroutines ran up to %v late", two[i].name, f, late)
		if bad := f.throttled > 0 || f.peak > limit || f.lost > 0 || f.goodput < 0.5; !bad {
			continue
		}
		if late > defaultTransit/4 {
			t.Skip("this machine is too busy")
		}
		t.Errorf("%s: goodput %.2f, %.0f of 1000 throttled, %d arrivals in a second, %d failed calls", two[i].name, f.goodput, f.throttled, f.peak, f.lost)
	}
}

// TestResults holds what is written down against what it is made from: the
// versions are those of go.mod, and the README's figures those of RESULTS.md.
func TestResults(t *testing.T) {
	b, err := os.ReadFile("RESULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	results := string(b)
	rs := make(records, len(clients))
	for i, c := range clients {
		rs[i].client = c
	}
	var table strings.Builder
	clientTable(&table, rs)
	if !strings.Contains(results, table.String()) {
		t.Errorf("RESULTS.md was made of other versions or clients than\n%s", table.String())
	}

	short, ok := strings.CutPrefix(sectionOf(results, summaryTitle), summaryTitle)
	if !ok {
		t.Fatal("RESULTS.md has no section " + summaryTitle)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if text, ok := section(string(readme)); !ok || !strings.HasPrefix(text, short) {
		t.Errorf("README.md does not begin its section with this one of RESULTS.md:\n%s", short)
	}
}

func TestWithSection(t *testing.T) {
	for name, tt := range map[string]struct{ readme, want string }{
		"filled":   {"a\n" + sectionBegin + sectionEnd + "b\n", "a\n" + sectionBegin + "new\n" + sectionEnd + "b\n"},
		"replaced": {"a\n" + sectionBegin + "old\n" + sectionEnd + "b\n", "a\n" + sectionBegin + "new\n" + sectionEnd + "b\n"},
		"no place": {"a\nb\n", "a\nb\n"},
		"no end":   {"a\n" + sectionBegin + "b\n", "a\n" + sectionBegin + "b\n"},
	} {
		if got := withSection(tt.readme, "new\n"); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestMissing(t *testing.T) {
	for _, tt := range []struct {
		text, other string
		want        []string
	}{
		{"a\nb\n", "a\nb\n", nil},
		{"a\nc\n", "a\nb\n", []string{"c"}},
		{"a\n", "a\nb\n", nil},
	} {
		if got := missing(tt.text, tt.other); !slices.Equal(got, tt.want) {
			t.Errorf("%q, not in %q: %q, want %q", tt.text, tt.other, got, tt.want)
		}
	}
}

func TestFill(t *testing.T) {
	long := strings.Repeat("x", 40)
	for text, want := range map[string]string{
		"- " + long + long[3:] + " 5 %":       "- " + long + long[3:] + "\n  5 %\n",
		"- a b":                               "- a b\n",
		"- " + long + " " + long + " a":       "- " + long + "\n  " + long + " a\n",
		"- " + long[2:] + " " + long + " abc": "- " + long[2:] + " " + long + "\n  abc\n",
	} {
		if got := fill(text, "  "); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestVersions fails where the build does not know the versions that the
// report names.
func TestVersions(t *testing.T) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("no build info")
	}
	known := map[string]string{}
	for _, m := range info.Deps {
		known[m.Path] = m.Version
	}
	for _, c := range clients {
		if c.module != "" && known[c.module] == "" {
			t.Errorf("no version of %s among %v", c.module, slices.Sorted(maps.Keys(known)))
		}
	}
}
