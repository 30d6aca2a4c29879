package sdks

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// node is the process that runs nodejs/driver.js for all tests. It gets
// commands and sends results, each a line of JSON.
var node struct {
	start sync.Once
	err   error // why there is none
	stdin io.WriteCloser
	cmd   *exec.Cmd

	mu      sync.Mutex
	last    int
	results map[int]chan nodeResult
}

type nodeCommand struct {
	ID      int    `json:"id"`
	Op      string `json:"op"`
	Address string `json:"address,omitempty"`
	Size    int    `json:"size,omitempty"`
}

type nodeResult struct {
	ID    int     `json:"id"`
	Error string  `json:"error"`
	MS    float64 `json:"ms"`
}

func startNode() error {
	if _, err := exec.LookPath("node"); err != nil {
		return err
	}
	if _, err := os.Stat("nodejs/node_modules"); err != nil {
		return fmt.Errorf("run npm ci in sdks/nodejs: %w", err)
	}
	cmd := exec.Command("node", "driver.js")
	cmd.Dir = "nodejs"
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	node.stdin, node.cmd, node.results = stdin, cmd, make(map[int]chan nodeResult)
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var r nodeResult
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				fmt.Fprintln(os.Stderr, "node:", lines.Text())
				continue
			}
			node.mu.Lock()
			node.results[r.ID] <- r
			delete(node.results, r.ID)
			node.mu.Unlock()
		}
	}()
	return nil
}

// stopNode ends the process, if there is one.
func stopNode() {
	if node.cmd != nil {
		node.stdin.Close()
		node.cmd.Wait()
	}
}

// A nodeAddress is clarifai-nodejs-grpc's client of a server.
type nodeAddress string

func nodeClient(t *testing.T, address string) caller {
	node.start.Do(func() { node.err = startNode() })
	if node.err != nil {
		t.Skip("no Node client:", node.err)
	}
	return nodeAddress(address)
}

func (a nodeAddress) do(ctx context.Context, op string, size int) (time.Duration, error) {
	result := make(chan nodeResult, 1)
	node.mu.Lock()
	node.last++
	id := node.last
	node.results[id] = result
	send(nodeCommand{id, op, string(a), size})
	node.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		node.mu.Lock()
		defer node.mu.Unlock()
		send(nodeCommand{ID: id, Op: "cancel"})
	})
	defer stop()
	r := <-result
	if r.Error != "" {
		return 0, errors.New(r.Error)
	}
	return time.Duration(r.MS * float64(time.Millisecond)), nil
}

// send requires node.mu.
func send(c nodeCommand) {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	node.stdin.Write(append(b, '\n'))
}

func (a nodeAddress) list(ctx context.Context) error {
	_, err := a.do(ctx, "list", 0)
	return err
}

func (a nodeAddress) post(ctx context.Context, size int) error {
	_, err := a.do(ctx, "post", size)
	return err
}

func (a nodeAddress) generate(ctx context.Context) (time.Duration, error) {
	return a.do(ctx, "generate", 0)
}

func (a nodeAddress) stream(ctx context.Context) (time.Duration, error) {
	return a.do(ctx, "stream", 0)
}
