package redisthrottle_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/redisthrottle"
)

func TestCluster(t *testing.T) {
	t.Parallel()
	server := startRedis(t, "--cluster-enabled", "yes")
	single := connect(t, server.Addr)
	if err := single.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); single.Set(t.Context(), "up", 1, time.Minute).Err() != nil; time.Sleep(50 * ms) {
		if time.Now().After(end) {
			t.Fatal("the cluster does not come up")
		}
	}
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Addr}})
	defer client.Close()
	l := redisthrottle.New(client, fast)
	wait(t, l, 10*time.Second)
	l.Arrived()
	for range 20 {
		wait(t, l, time.Second)
		l.Arrived()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
