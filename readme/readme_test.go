//go:build !readme

package readme

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const file = "../README.md"

// blocks returns the fenced blocks of the README of that language, by name.
func blocks(t *testing.T, language string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	fenced := regexp.MustCompile("(?ms)^```" + language + "( \\w+)?\n(.*?)^```$")
	for _, m := range fenced.FindAllStringSubmatch(string(text), -1) {
		name := strings.TrimSpace(m[1])
		if _, twice := found[name]; twice {
			t.Errorf("two blocks of %s are named %q:\n%s", language, name, m[2])
		}
		found[name] = m[2]
	}
	return found
}

// TestGo runs the Go blocks, each in its frame.
func TestGo(t *testing.T) {
	blocks := blocks(t, "go")
	unused := maps.Clone(blocks)
	paths, err := filepath.Glob("frame_*.go")
	if err != nil {
		t.Fatal(err)
	}
	replace := map[string]string{}
	marker := regexp.MustCompile(`(?m)^\s*//readme:(\w+)$`)
	for _, path := range paths {
		frame, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		filled := marker.ReplaceAllFunc(frame, func(m []byte) []byte {
			name := string(marker.FindSubmatch(m)[1])
			block, ok := blocks[name]
			if !ok {
				t.Errorf("%s: the README has no block %q", path, name)
			}
			delete(unused, name)
			return []byte("\n" + block)
		})
		original, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		replace[original] = filepath.Join(t.TempDir(), filepath.Base(path))
		if err := os.WriteFile(replace[original], filled, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(unused) > 0 || len(blocks) == 0 {
		t.Fatalf("no frame for the blocks %q of %d", slices.Sorted(maps.Keys(unused)), len(blocks))
	}
	overlay := filepath.Join(t.TempDir(), "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, ".", "go", "test", "-count=1", "-tags=readme", "-overlay="+overlay, ".")
}

// TestInstall has a module of its own install the package, and build the quick
// start.
func TestInstall(t *testing.T) {
	core, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run(t, dir, "go", "mod", "init", "example.com/user")
	program := "package main\n\nimport (\n\"net/http\"\n\n\"example.com/clarifaihttp\"\n)\n\nfunc main() {\n" +
		blocks(t, "go")["quickstart"] + "_ = client\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	for command := range strings.Lines(blocks(t, "console")[""]) {
		run(t, dir, strings.Fields(strings.ReplaceAll(command, "../clarifaihttp", core))...)
	}
	run(t, dir, "go", "run", ".")
}

// run runs a command, which must succeed.
func run(t *testing.T, dir string, command ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
}
