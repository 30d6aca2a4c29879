package redisthrottle_test

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp/redisthrottle/internal/redisserver"
)

const (
	pool  = "clarifaihttp:{default}:pool"
	free  = "clarifaihttp:{default}:free"
	taken = "clarifaihttp:{default}:taken"
)

// A scene is what a fault can break.
type scene struct {
	*testing.T
	server    *redisserver.Server
	network   *proxy
	client    *redis.Client // past the network
	account   *account
	processes []*exec.Cmd
}

func (s *scene) do(args ...any) {
	s.Helper()
	if err := s.client.Do(s.Context(), args...).Err(); err != nil {
		s.Fatalf("%v: %v", args, err)
	}
}

// quiet fails the test if requests are sent for the time given, after those
// that are on their way.
func (s *scene) quiet(d time.Duration) {
	s.Helper()
	time.Sleep(2 * time.Second)
	if n := s.account.total(); s.account.rate(d) > 0 {
		s.Errorf("%d requests while Redis was away", s.account.total()-n)
	}
}

// TestFaults breaks something in the middle of a run of three processes: the
// limit holds all the time, and everything comes back by itself.
func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name     string
		fault    func(s *scene)
		fallback int
	}{
		{"Redis killed and started again, empty", func(s *scene) {
			s.server.Kill()
			s.quiet(time.Second)
			if err := s.server.Restart(); err != nil {
				s.Fatal(err)
			}
		}, 0},
		{"Redis started from an old snapshot", func(s *scene) {
			s.do("save")
			s.account.await(t, 5, 10*time.Second)
			s.server.Kill()
			if err := s.server.Restart(); err != nil {
				s.Fatal(err)
			}
		}, 0},
		{"Redis frozen", func(s *scene) {
			s.server.Signal(syscall.SIGSTOP)
			s.quiet(4 * time.Second)
			s.server.Signal(syscall.SIGCONT)
		}, 0},
		{"Redis frozen for a moment, many times", func(s *scene) {
			for range 5 {
				s.server.Signal(syscall.SIGSTOP)
				time.Sleep(700 * ms)
				s.server.Signal(syscall.SIGCONT)
				time.Sleep(500 * ms)
			}
		}, 0},
		{"network stuck", func(s *scene) {
			s.network.stick(true)
			s.quiet(4 * time.Second)
			s.network.stick(false)
		}, 0},
		{"connections cut, many times", func(s *scene) {
			for range 30 {
				s.network.cut()
				time.Sleep(100 * ms)
			}
		}, 0},
		{"replies lost", func(s *scene) {
			for range 5 {
				s.network.stick(true)
				time.Sleep(500 * ms)
				s.network.cut()
				s.network.stick(false)
				time.Sleep(300 * ms)
			}
		}, 0},
		{"failover", func(s *scene) {
			replica := startRedis(s.T, "--replicaof", "127.0.0.1", s.server.Port())
			to := connect(s.T, replica.Addr)
			for !strings.Contains(to.Info(s.Context(), "replication").Val(), "master_link_status:up") {
				time.Sleep(10 * ms)
			}
			time.Sleep(500 * ms) // it follows
			s.server.Kill()
			s.network.lead(replica.Addr)
			s.quiet(time.Second) // it is read-only
			if err := to.ReplicaOf(s.Context(), "NO", "ONE").Err(); err != nil {
				s.Fatal(err)
			}
			s.client = to
		}, 0},
		{"failover to an empty replica", func(s *scene) {
			replica := startRedis(s.T)
			s.network.lead(replica.Addr)
			s.client = connect(s.T, replica.Addr)
		}, 0},
		{"FLUSHALL", func(s *scene) { s.do("flushall") }, 0},
		{"FLUSHALL, many times", func(s *scene) {
			for range 10 {
				s.do("flushall")
				time.Sleep(350 * ms)
			}
		}, 0},
		{"SCRIPT FLUSH", func(s *scene) { s.do("script", "flush") }, 0},
		{"a key evicted", func(s *scene) { s.do("del", taken) }, 0},
		{"out of memory", func(s *scene) {
			s.do("config", "set", "maxmemory", "1")
			s.quiet(time.Second)
			s.do("config", "set", "maxmemory", "0")
		}, 0},
		{"wrong type", func(s *scene) {
			s.do("set", free, "x")
			s.quiet(time.Second)
			s.do("del", free)
		}, 0},
		{"Redis killed for long, with a fallback", func(s *scene) {
			s.server.Kill()
			time.Sleep(gone + 1200*ms)
			if r := s.account.rate(4 * time.Second); r < 12 {
				s.Logf("%.1f requests/s in the fallback", r)
			}
			if err := s.server.Restart(); err != nil {
				s.Fatal(err)
			}
		}, 5},
		{"Redis frozen for long, with a fallback", func(s *scene) {
			s.server.Signal(syscall.SIGSTOP)
			time.Sleep(gone + 1200*ms)
			if r := s.account.rate(4 * time.Second); r < 12 {
				s.Logf("%.1f requests/s in the fallback", r)
			}
			s.server.Signal(syscall.SIGCONT)
		}, 5},
		{"a process killed", func(s *scene) { s.processes[0].Process.Kill() }, 0},
		{"a process frozen and woken", func(s *scene) {
			s.processes[0].Process.Signal(syscall.SIGSTOP)
			time.Sleep(gone + 2500*ms)
			s.processes[0].Process.Signal(syscall.SIGCONT)
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := listen(t)
			s := &scene{T: t, server: startRedis(t), account: newAccount(t, 20*ms, -1)}
			s.network = newProxy(t, s.server.Addr)
			s.client = connect(t, s.server.Addr)
			for i := range 3 {
				s.processes = append(s.processes, worker{Number: i, URL: s.account.URL, Redis: s.network.Addr, Workers: 8, Fallback: tt.fallback}.start(t))
			}
			s.account.await(t, 20, 30*time.Second)
			tt.fault(s)
			over := time.Now()
			s.account.await(t, 30, 30*time.Second)
			t.Logf("30 requests %v after it was over", time.Since(over).Round(10*ms))
			time.Sleep(max(0, time.Until(over.Add(gone+3*time.Second)))) // tokens that were lost are back
			if r := s.account.rate(3 * time.Second); r < 12 {
				n.slow(t, "%.1f requests/s", r)
			}
			s.account.check(t)
			conserved(t, s.client)
		})
	}
}

func TestNotStarted(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	server.Kill()
	s := &scene{T: t, account: newAccount(t, 0, -1)}
	worker{URL: s.account.URL, Redis: server.Addr, Workers: 8}.start(t)
	s.quiet(2 * time.Second)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	s.account.await(t, 30, 30*time.Second)
	s.account.check(t)
}
