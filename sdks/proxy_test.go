package sdks

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
)

var listens = regexp.MustCompile(`proxy listens.* address=(\S+)`)

// proxyBinary builds examples/proxy.
var proxyBinary = sync.OnceValues(func() (string, error) {
	name := filepath.Join(scratch, "proxy")
	if out, err := exec.Command("go", "build", "-C", "..", "-o", name, "./examples/proxy").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return name, nil
})

// startProxy runs examples/proxy in front of f, until the test ends, and returns
// its address.
func startProxy(t *testing.T, f *fake) string {
	t.Helper()
	name, err := proxyBinary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, "-listen", "127.0.0.1:0", "-upstream", f.tls.URL, "-grace", "1ms", "-transit", f.transit.String())
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+f.certificate(t))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log sync.WaitGroup
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		log.Wait()
		cmd.Wait()
	})
	address := make(chan string, 1)
	log.Go(func() {
		defer close(address)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := listens.FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
		}
	})
	a, ok := <-address
	if !ok {
		t.Fatal("the proxy did not start")
	}
	return a
}
