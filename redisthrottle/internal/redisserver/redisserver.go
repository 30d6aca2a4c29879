// Package redisserver runs redis-server processes for tests and examples.
package redisserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrMissing says that there is no redis-server on this machine.
var ErrMissing = errors.New("redis-server is not installed (Debian, Ubuntu: apt install redis-server)")

// A Server is a redis-server on a loopback port of its own, without
// persistence. It ends with the process that started it, however that ends.
type Server struct {
	Addr string // host:port

	port  string
	dir   string
	pid   int
	shell *exec.Cmd
	stdin io.Closer
}

// Start starts a Server, with redis-server's options if there are any. A first
// one without a dash is the name of a configuration file.
func Start(options ...string) (*Server, error) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return nil, ErrMissing
	}
	dir, err := os.MkdirTemp("", "redisserver")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir}
	for range 3 { // another process may take the port, too
		if s.port, err = FreePort(); err != nil {
			break
		}
		s.Addr = net.JoinHostPort("127.0.0.1", s.port)
		if err = s.Restart(options...); err == nil {
			return s, nil
		}
	}
	os.RemoveAll(dir)
	return nil, err
}

// FreePort finds a port outside the range from which outgoing connections get
// theirs, and low enough for a Cluster's second port.
func FreePort() (port string, err error) {
	for range 100 {
		port = strconv.Itoa(20_000 + rand.IntN(12_000))
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			return port, l.Close()
		}
	}
	return "", err
}

// Restart starts the server again after Kill, empty.
func (s *Server) Restart(options ...string) error {
	// The shell outlives this process just long enough to end the server.
	const script = `redis-server "$@" >&2 & echo $!; cat >/dev/null; kill -9 $!; wait $!`
	args := []string{"-c", script, "sh"}
	if len(options) > 0 && !strings.HasPrefix(options[0], "-") {
		args, options = append(args, options[0]), options[1:]
	}
	args = append(args, "--port", s.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.dir)
	s.shell = exec.Command("sh", append(args, options...)...)
	stdin, err := s.shell.StdinPipe()
	if err != nil {
		return err
	}
	s.stdin = stdin
	stdout, err := s.shell.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.shell.Start(); err != nil {
		return err
	}
	first, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil {
		s.pid, err = strconv.Atoi(strings.TrimSpace(first))
	}
	if err == nil {
		err = s.ready()
	}
	if err != nil {
		s.Kill()
		return fmt.Errorf("redis-server at %s: %w", s.Addr, err)
	}
	return nil
}

// Port returns the server's port.
func (s *Server) Port() string { return s.port }

// ready waits until the server answers.
func (s *Server) ready() (err error) {
	for range 100 {
		if err = s.ping(); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func (s *Server) ping() error {
	c, err := net.Dial("tcp", s.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(c, "PING\r\nINFO server\r\n"); err != nil {
		return err
	}
	mine := fmt.Sprintf("process_id:%d\r\n", s.pid)
	for r, first := bufio.NewReader(c), true; ; first = false {
		switch line, err := r.ReadString('\n'); {
		case err != nil:
			return err
		case first && line != "+PONG\r\n":
			return errors.New(strings.TrimSpace(line)) // it is loading, say
		case line == mine:
			return nil
		case strings.HasPrefix(line, "process_id:"):
			return errors.New("another server has the port")
		}
	}
}

// Kill ends the server at once.
func (s *Server) Kill() {
	s.Signal(syscall.SIGCONT)
	s.stdin.Close()
	s.shell.Wait()
}

// Signal sends a signal to the server, SIGSTOP and SIGCONT say.
func (s *Server) Signal(sig syscall.Signal) {
	if s.pid > 0 {
		syscall.Kill(s.pid, sig)
	}
}

// Close ends the server and removes its files.
func (s *Server) Close() {
	s.Kill()
	os.RemoveAll(s.dir)
}
