package redisthrottle

import (
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/redisthrottle/internal/redisserver"
)

// TestRestartSeenFromOutside restarts Redis from a snapshot, where scripts must
// not call INFO: the tokens of the snapshot are not used.
func TestRestartSeenFromOutside(t *testing.T) {
	t.Parallel()
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
	l := New(c, Config{Logger: slog.New(slog.DiscardHandler)})
	l.outside.Store(true)
	for range 20 {
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Arrived()
	}
	if err := c.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		l.Wait(t.Context())
		l.Arrived()
	}
	for !l.Idle() {
		time.Sleep(time.Millisecond)
	}
	s.Kill()
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := l.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d < 3*time.Second {
		t.Errorf("a token of the snapshot was used after %v", d)
	}
}
