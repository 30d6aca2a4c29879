package redisthrottle_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/redisthrottle"
)

// TestCluster moves the account's slot from one node of three to another, under
// load, for a user with the rights that are documented.
func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var nodes []*redis.Client
	var addrs []string
	for i := range 3 {
		server := startRedis(t, "--cluster-enabled", "yes")
		nodes, addrs = append(nodes, connect(t, server.Addr)), append(addrs, server.Addr)
		if err := nodes[i].ClusterAddSlotsRange(ctx, i*5461, min((i+1)*5461-1, 16383)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := nodes[2].ClusterAddSlotsRange(ctx, 16383, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	ids := make([]string, 3)
	for i, node := range nodes {
		ids[i] = node.Do(ctx, "cluster", "myid").Val().(string)
		grant(t, node, append(slices.Clone(rights), "+cluster|slots", "+asking")...)
		if err := nodes[0].ClusterMeet(ctx, "127.0.0.1", addrs[i][strings.IndexByte(addrs[i], ':')+1:]).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for begin := time.Now(); ; time.Sleep(50 * ms) {
		up := 0
		for _, node := range nodes {
			info := node.ClusterInfo(ctx).Val()
			if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3") {
				up++
			}
		}
		if up == 3 {
			break
		}
		if time.Since(begin) > 60*time.Second {
			t.Fatal("the cluster does not come up")
		}
	}
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, Username: "app", Password: "secret"})
	t.Cleanup(func() { cluster.Close() })
	ld := load{answer: 20 * ms}
	for range 2 {
		ld.run(t, redisthrottle.New(cluster, redisthrottle.Config{Logger: quiet}))
	}
	ld.await(t, time.Now(), 30, 30*time.Second)

	slot := nodes[0].ClusterKeySlot(ctx, "clarifaihttp:{default}:pool").Val()
	from := min(int(slot)/5461, 2)
	to := (from + 1) % 3
	must := func(node int, args ...any) {
		t.Helper()
		if err := nodes[node].Do(ctx, args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	must(to, "cluster", "setslot", slot, "importing", ids[from])
	must(from, "cluster", "setslot", slot, "migrating", ids[to])
	time.Sleep(500 * ms) // keys that are not there are asked for at the other
	keys := nodes[from].ClusterGetKeysInSlot(ctx, int(slot), 100).Val()
	for _, key := range keys {
		must(from, "migrate", "127.0.0.1", addrs[to][strings.IndexByte(addrs[to], ':')+1:], key, 0, 5000)
		time.Sleep(200 * ms)
	}
	for _, node := range []int{to, from, 3 - to - from} {
		must(node, "cluster", "setslot", slot, "node", ids[to])
	}
	moved := time.Now()
	ld.await(t, moved.Add(100*ms), 30, 30*time.Second)
	t.Logf("%d keys moved, 30 requests %v later", len(keys), time.Since(moved))
	n := listen(t)
	if r := ld.rate(4*time.Second, 15); r < 12 {
		n.slow(t, "%.1f requests/s", r)
	}
	ld.check(t, time.Time{}, 15)
	for i, node := range nodes {
		if denied := node.Do(ctx, "acl", "log").Val(); fmt.Sprint(denied) != "[]" {
			t.Errorf("node %d denied %v", i, denied)
		}
	}
}

// TestClusterNodes has the application make the clients of the nodes.
func TestClusterNodes(t *testing.T) {
	t.Parallel()
	server := startRedis(t, "--cluster-enabled", "yes")
	connect(t, server.Addr).ConfigSet(t.Context(), "requirepass", "secret")
	admin := redis.NewClient(&redis.Options{Addr: server.Addr, Password: "secret"})
	t.Cleanup(func() { admin.Close() })
	if err := admin.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(admin.ClusterInfo(t.Context()).Val(), "cluster_state:ok") {
		time.Sleep(10 * ms)
	}
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Addr}, NewClient: func(o *redis.Options) *redis.Client {
		o.Password = "secret"
		return redis.NewClient(o)
	}})
	t.Cleanup(func() { cluster.Close() })
	wait(t, redisthrottle.New(cluster, redisthrottle.Config{Logger: quiet}), 10*time.Second)
}
