package redisthrottle_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/redisthrottle"
)

// TestSentinel has Sentinel replace the master.
func TestSentinel(t *testing.T) {
	t.Parallel()
	master := startRedis(t)
	startRedis(t, "--replicaof", "127.0.0.1", master.Port())
	file := filepath.Join(t.TempDir(), "sentinel.conf")
	conf := fmt.Sprintf("sentinel monitor main 127.0.0.1 %s 1\nsentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n", master.Port())
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := startRedis(t, file, "--sentinel")
	client := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: []string{sentinel.Addr}})
	defer client.Close()
	l := redisthrottle.New(client, fast)
	send := func(within time.Duration) {
		t.Helper()
		wait(t, l, within)
		time.AfterFunc(10*ms, l.Arrived)
	}
	for range 20 {
		send(10 * time.Second)
	}
	s := redis.NewSentinelClient(&redis.Options{Addr: sentinel.Addr})
	defer s.Close()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(100 * ms) { // it finds the replica
		if r, err := s.Replicas(context.Background(), "main").Result(); err == nil && len(r) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("Sentinel finds no replica")
		}
	}
	time.Sleep(time.Second)
	idle(t, l)
	master.Kill()
	begin := time.Now()
	send(100 * time.Second)
	d := time.Since(begin)
	t.Logf("the first token %v after the master's death", d)
	if d < 3*time.Second {
		t.Errorf("tokens were used without a silence, after %v", d)
	}
	for range 20 {
		send(10 * time.Second)
	}
}
