//go:build readme

package readme

import (
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"

	"github.com/redis/go-redis/v9"

	"example.com/clarifaihttp"
	"example.com/clarifaihttp/redisthrottle"
)

func TestRedis(t *testing.T) {
	f := clarifai(t, nil)
	t.Setenv("REDIS_URL", "redis://"+startRedis(t))
	//readme:redis
	throttled(t, client, f)
	if s := account.Stats(); s.Attempts != 2 {
		t.Errorf("the account has %+v", s)
	}
}

// startRedis starts a redis-server and returns its address.
func startRedis(t *testing.T) (address string) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("needs redis-server")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	l.Close()
	server := exec.CommandContext(t.Context(), path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir())
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	return address
}
