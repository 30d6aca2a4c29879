package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/clarifaihttp/internal/simnet"
)

// Beside: an interactive user beside a batch, on one account. All requests of
// the batch are there at once; one that fails comes again after what Clarifai
// recommends. The user's are marked as urgent, and one that fails comes again
// after a second.

const (
	batchSize   = 6_000
	askEvery    = 500 * time.Millisecond
	askFor      = time.Minute
	urgentest   = "u=0"
	patience    = 5 * time.Minute // for the user's requests, as they are measured
	withoutName = nameOurs + ", no Priority header"
)

// A side is what came of both.
type side struct {
	waits []time.Duration // until the user's requests were served, sorted; patience: not by then
	done  int             // of the batch, within askFor + patience
}

func beside(t *testing.T, c client, batch int, priority string) (s side) {
	t.Helper()
	play(t, c, usual, func(w *world) {
		for i := range batch {
			w.workers.Go(func() {
				for !w.call(w.ctx, i) && w.ctx.Err() == nil {
					simnet.Sleep(w.ctx, backoff)
				}
			})
		}
		waits := make(chan time.Duration, askFor/askEvery)
		for i := range cap(waits) {
			time.Sleep(askEvery)
			w.workers.Go(func() {
				ctx, cancel := context.WithTimeout(w.ctx, patience)
				defer cancel()
				begin := time.Now()
				for ask(ctx, w.clients[i%len(w.clients)], priority) != nil && ctx.Err() == nil {
					simnet.Sleep(ctx, afterError)
				}
				waits <- min(time.Since(begin), patience)
			})
		}
		for range cap(waits) {
			s.waits = append(s.waits, <-waits)
		}
		slices.Sort(s.waits)
		time.Sleep(askFor + patience - time.Since(w.begin))
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, call := range w.calls {
			if call.ok {
				s.done++
			}
		}
	})
	return s
}

// ask sends one of the user's requests.
func ask(ctx context.Context, c *http.Client, priority string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server/", nil)
	if err != nil {
		return err
	}
	if priority != "" {
		req.Header.Set("Priority", priority)
	}
	return do(c, req)
}

func (s side) quantile(q float64) time.Duration {
	return s.waits[min(int(q*float64(len(s.waits))), len(s.waits)-1)]
}

// sides returns what is shown: all clients, and ours without the header.
func (rs records) sides() (names []string, sides []side) {
	for _, r := range rs {
		if r.ours {
			names, sides = append(names, withoutName), append(sides, r.besideUsual)
		}
		names, sides = append(names, r.name), append(sides, r.beside)
	}
	return names, sides
}

func besideSection(b *strings.Builder, rs records) {
	fmt.Fprintf(b, "\n## An interactive user beside a batch\n\nThe batch has %d requests, all there at once. The user sends %d, one each %.1f s, with Priority: %s: how long until they are served, a failed one being sent again after %.0f s.\n\n",
		batchSize, askFor/askEvery, askEvery.Seconds(), urgentest, afterError.Seconds())
	head(b, "client", "user: p50, s", "p99, s", fmt.Sprintf("served of the batch within %.0f s", (askFor+patience).Seconds()))
	names, sides := rs.sides()
	ours := rs.ours().beside
	for i, s := range sides {
		cell := func(q float64) string {
			wait := s.quantile(q)
			if wait == patience {
				return fmt.Sprintf("over %.0f", patience.Seconds())
			}
			return bold(seconds(wait), wait < ours.quantile(q))
		}
		row(b, names[i], cell(0.50), cell(0.99), fmt.Sprint(s.done))
	}
	b.WriteString("\n![how long an interactive user waits beside a batch](interactive.svg)\n")
}
