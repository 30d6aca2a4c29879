package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/clarifaihttp/throttletest"
)

// env is an environment.
type env map[string]string

func (e env) get(name string) string { return e[name] }

// A result is what a run left behind.
type result struct {
	status         int
	stdout, stderr string
	took           time.Duration
}

// do runs the program over real sockets.
func do(t *testing.T, e env, args ...string) result {
	var stdout, stderr bytes.Buffer
	start := time.Now()
	status := run(t.Context(), args, e.get, &stdout, &stderr)
	return result{status, stdout.String(), stderr.String(), time.Since(start)}
}

// inBubble runs the program with its built-in server in virtual time. It
// returns what the server counted, too.
func inBubble(ctx context.Context, terminal bool, args ...string) (r result, counted throttletest.Stats) {
	var stdout, stderr bytes.Buffer
	var account *throttletest.Handler
	p := &program{env: env{}.get, stdout: &stdout, screen: newScreen(&stderr, "")}
	p.screen.terminal = terminal
	p.serve = func(h http.Handler) (site, error) {
		account = h.(*throttletest.Handler)
		srv := throttletest.NewServer(h)
		return site{srv.URL, srv.Client().Transport, srv.Close}, nil
	}
	start := time.Now()
	r.status = p.run(ctx, args)
	r.stdout, r.stderr, r.took = stdout.String(), stderr.String(), time.Since(start)
	return r, account.Stats()
}

func (r result) check(t *testing.T, status int, stderr ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d", r.status, status)
	}
	rest := r.stderr
	for _, want := range stderr {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Errorf("stderr lacks %q, or not in this order:\n%s", want, r.stderr)
			return
		}
		rest = after
	}
	if status != 0 && r.stdout != "" {
		t.Errorf("stdout of a failure: %q", r.stdout)
	}
}

func TestTable(t *testing.T) {
	r := do(t, nil)
	r.check(t, 0, "built-in server answers at http://127.0.0.1:", "Page 1: 20", "Page 2: 20", "Page 3: 6", "46 model types by 3 requests: 0 throttled, 0s waited")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != 1+len(builtin) {
		t.Fatalf("%d lines, want a head and %d model types:\n%s", len(lines), len(builtin), r.stdout)
	}
	for i, m := range builtin {
		want := []string{m.ID, paths(m.InputFields, maxInput), paths(m.OutputFields, maxOutput)}
		if got := regexp.MustCompile(`  +`).Split(lines[i+1], -1); !slices.Equal(got, want) {
			t.Errorf("line %q has cells %q, want %q", lines[i+1], got, want)
		}
		if strings.Contains(lines[i+1], "...") {
			t.Errorf("line %q is cut", lines[i+1])
		}
	}
	narrow(t, r)
}

// narrow makes sure that a screen of 80 columns shows r without wrapping.
func narrow(t *testing.T, r result) {
	t.Helper()
	for line := range strings.Lines(r.stderr + r.stdout) {
		if n := len(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}

func TestJSON(t *testing.T) {
	r := do(t, nil, "-json")
	r.check(t, 0)
	var types []modelType
	if err := json.Unmarshal([]byte(r.stdout), &types); err != nil {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	if !reflect.DeepEqual(types, builtin) {
		t.Errorf("got %+v", types)
	}
}

// What the API says and this program does not know comes through, too.
func TestJSONKeepsAll(t *testing.T) {
	const body = `{"status":{"code":"SUCCESS"},"model_types":[{"id":"a<b","creatable":true,"input_fields":null,"new":{"n":12345678901234567890}}]}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) }))
	defer srv.Close()
	r := do(t, env{"CLARIFAI_PAT": "secret", "CLARIFAI_API_BASE": srv.URL}, "-json")
	r.check(t, 0)
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(r.stdout)); err != nil {
		t.Fatal(err)
	}
	if want := body[strings.Index(body, "["):strings.LastIndex(body, "}")]; compact.String() != want {
		t.Errorf("got %s, want %s", &compact, want)
	}
}

func TestBuiltinTypes(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range builtin {
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(m.ID) || seen[m.ID] || m.Title == "" || !strings.HasSuffix(m.Description, ".") {
			t.Errorf("%+v", m)
		}
		seen[m.ID] = true
	}
	if len(builtin) < 40 {
		t.Errorf("%d model types, want 40 at least", len(builtin))
	}
}

// The limit holds for any size of pages, and costs no throttle.
func TestPages(t *testing.T) {
	n := len(builtin)
	for _, test := range []struct{ perPage, requests int }{
		{n + 1, 1}, {n, 2}, {n - 1, 2}, {n / 2, 3}, {20, n/20 + 1}, {1, n + 1}, {maxPerPage, 1},
	} {
		t.Run(fmt.Sprint(test.perPage), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, counted := inBubble(t.Context(), false, "-json", "-per-page", fmt.Sprint(test.perPage))
				r.check(t, 0, fmt.Sprintf("%d model types by %d requests: 0 throttled", n, test.requests))
				if want := (throttletest.Stats{Served: test.requests, Peak: min(test.requests, limit)}); counted != want {
					t.Errorf("server counted %+v, want %+v", counted, want)
				}
				if least := time.Duration((test.requests-1)/limit) * time.Second; r.took < least || r.took > least+time.Second {
					t.Errorf("took %v, want %v", r.took, least)
				}
				var types []modelType
				if err := json.Unmarshal([]byte(r.stdout), &types); err != nil || len(types) != n {
					t.Errorf("%d types, %v", len(types), err)
				}
			})
		})
	}
}

// A server that gives the same page for ever does not keep us.
func TestSamePageAgain(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		io.WriteString(w, `{"status":{"code":10000},"model_types":[{"id":"a"},{"id":"b"}]}`)
	}))
	defer srv.Close()
	r := do(t, env{"CLARIFAI_PAT": "secret", "CLARIFAI_API_BASE": srv.URL}, "-per-page", "2")
	r.check(t, 1, "Page 1: 2 model types", "page 2: the same as page 1")
	if asked != 2 {
		t.Errorf("%d requests, want 2", asked)
	}
}

func TestNeighbour(t *testing.T) {
	neighbour := func(t *testing.T, terminal bool) (r result) {
		synctest.Test(t, func(t *testing.T) {
			var counted throttletest.Stats
			r, counted = inBubble(t.Context(), terminal, "-neighbour")
			if counted != (throttletest.Stats{Served: 3, Throttled: 1, Peak: counted.Peak, Taken: limit}) {
				t.Errorf("server counted %+v", counted)
			}
			if r.took < 15*time.Second || r.took > 16*time.Second {
				t.Errorf("took %v, want about 15 s", r.took)
			}
			if strings.Count(r.stdout, "\n") != 1+len(builtin) {
				t.Errorf("stdout:\n%s", r.stdout)
			}
		})
		return r
	}
	plain, terminal := neighbour(t, false), neighbour(t, true)
	narrow(t, plain)
	plain.check(t, 0,
		"Neighbour: another user sends 15 requests",
		"CONN_THROTTLED (11005): exceeded limit of 15 requests per second\n",
		"Paused: all requests wait 15 s (request id 0",
		"Paused: 10 s left\n", "Paused: 5 s left\n", "Probe: ", "Answered: ",
		"Page 1: 20", "Page 2: 20", "Page 3: 6", "46 model types by 4 requests: 1 throttled, 15.")
	terminal.check(t, 0, "Paused: all requests wait 15 s", "\rPaused: 14 s left", "\rPaused: 13 s left", "\rPaused: 1 s left", "Probe: ")

	// What is rewritten leaves nothing behind.
	want := regexp.MustCompile(`Paused: \d+ s left\n`).ReplaceAllString(plain.stderr, "")
	if got := render(terminal.stderr); got != want {
		t.Errorf("terminal shows\n%s\nwant\n%s", got, want)
	}
}

// render returns what a terminal shows in the end, without spaces at line ends.
func render(s string) string {
	var shown strings.Builder
	for line := range strings.Lines(s) {
		var cells []byte
		column := 0
		for _, c := range []byte(strings.TrimSuffix(line, "\n")) {
			switch {
			case c == '\r':
				column = 0
				continue
			case column < len(cells):
				cells[column] = c
			default:
				cells = append(cells, c)
			}
			column++
		}
		shown.WriteString(strings.TrimRight(string(cells), " ") + "\n")
	}
	return shown.String()
}

func TestCancelInPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		time.AfterFunc(5*time.Second, interrupt)
		r, _ := inBubble(ctx, true, "-neighbour")
		r.check(t, 130, "Paused: 11 s left", "modeltypes: interrupted\n")
		if r.took != 5*time.Second {
			t.Errorf("took %v, want 5s", r.took)
		}
	})
}

// The same over real sockets: interrupted as soon as the pause is seen.
func TestCancelInPauseOverSockets(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stderr := &interruptingWriter{at: "Paused: ", interrupt: interrupt}
	start := time.Now()
	status := run(ctx, []string{"-neighbour"}, env{}.get, io.Discard, stderr)
	if status != 130 || !strings.HasSuffix(stderr.String(), "modeltypes: interrupted\n") {
		t.Errorf("exit status %d:\n%s", status, stderr)
	}
	if took := time.Since(start); took > halt/2 {
		t.Errorf("took %v", took)
	}
}

type interruptingWriter struct {
	bytes.Buffer // its user locks
	at           string
	interrupt    func()
}

func (w *interruptingWriter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(w.at)) {
		w.interrupt()
	}
	return w.Buffer.Write(b)
}

func TestFailures(t *testing.T) {
	const token = "secret-token"
	for _, test := range []struct {
		name   string
		status int
		body   string
		want   []string // on stderr
	}{
		{"wrong token", 401, `{"status":{"code":11009,"description":"API key not found","details":"Please provide a valid API key","req_id":"f00d"}}`,
			[]string{"page 1: HTTP 401 Unauthorized\n", "code         11009\n", "description  API key not found\n", "details      Please provide a valid API key\n", "request id   f00d\n"}},
		{"named code, id in header", 403, `{"status":{"code":"CONN_INSUFFICIENT_SCOPES","description":"Insufficient scopes"}}`,
			[]string{"HTTP 403 Forbidden\n", "CONN_INSUFFICIENT_SCOPES", "Insufficient scopes", "details      -\n", "request id   of-the-header"}},
		{"quota, not to be waited for", 429, `{"status":{"code":11004,"description":"Monthly limit reached","req_id":"q"}}`,
			[]string{"HTTP 429", "11004", "Monthly limit reached"}},
		{"failure under 200", 200, `{"status":{"code":"10020","description":"Failure","req_id":"r"},"model_types":[{"id":"a"}]}`,
			[]string{"HTTP 200 OK", "10020", "Failure"}},
		{"success under 500", 500, `{"status":{"code":10000,"description":"Ok"}}`, []string{"HTTP 500"}},
		{"escapes", 400, `{"status":{"code":11102,"description":"\u001b[31mred\r\nline","req_id":"r"}}`, []string{"description   [31mred  line\n"}},
		{"no JSON", 502, "<html>\n\x1b[2J<b>Bad Gateway</b>", []string{"HTTP 502 Bad Gateway, but this is no list of model types: invalid character '<'", "\n  <html>  [2J<b>Bad Gateway</b>\n"}},
		{"empty", 200, ``, []string{"HTTP 200 OK, but this is no list of model types: unexpected end of JSON input"}},
		{"truncated", 200, `{"status":{"code":10000},"model_types":[{"id":"a"`, []string{"unexpected end"}},
		{"null", 200, `null`, []string{"no status code"}},
		{"no status", 200, `{"model_types":[{"id":"a"}]}`, []string{"no status code"}},
		{"no list", 200, `{"status":{"code":10000},"models":[]}`, []string{"page 1: HTTP 200 OK, but this is no list of model types: there are none in it"}},
		{"no ids", 200, `{"status":{"code":10000},"model_types":[{"title":"A"}]}`, []string{"a model type without id"}},
		{"wrong types", 200, `{"status":{"code":10000},"model_types":[{"id":7}]}`, []string{"cannot unmarshal number"}},
		{"endless", 200, strings.Repeat(" ", maxBody+1), []string{"answer broke off: http: request body too large"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var requests []string
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				requests = append(requests, r.Method+" "+r.RequestURI+" "+r.Header.Get("Authorization"))
				mu.Unlock()
				w.Header().Set("X-Clarifai-Request-Id", "of-the-header")
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
			defer srv.Close()
			r := do(t, env{"CLARIFAI_PAT": " " + token + "\n", "CLARIFAI_API_BASE": srv.URL + "/"})
			r.check(t, 1, test.want...)
			if strings.Contains(r.stderr, token) || strings.ContainsAny(r.stderr, "\x1b\r") {
				t.Errorf("stderr: %q", r.stderr)
			}
			mu.Lock()
			defer mu.Unlock()
			if want := []string{"GET /v2/models/types?page=1&per_page=20 Key " + token}; !reflect.DeepEqual(requests, want) {
				t.Errorf("requests %q, want %q", requests, want)
			}
		})
	}
}

// A gateway's 429, short enough for real time: it pauses nobody.
func TestThrottleWithoutStatus(t *testing.T) {
	first := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		io.WriteString(w, `{"status":{"code":10000},"model_types":[{"id":"a"}]}`)
	}))
	defer srv.Close()
	r := do(t, env{"CLARIFAI_PAT": "secret", "CLARIFAI_API_BASE": srv.URL})
	r.check(t, 0, "1 model types by 2 requests: 1 throttled")
	if strings.Contains(r.stderr, "Paused") {
		t.Errorf("stderr: %s", r.stderr)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := do(t, env{"CLARIFAI_PAT": "secret", "CLARIFAI_API_BASE": "http://" + l.Addr().String()})
	r.check(t, 1, "modeltypes: page 1: Get", "refused")
}

func TestBrokenConnection(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, `{"status":{"code":10000}`)
	}))
	defer srv.Close()
	r := do(t, env{"CLARIFAI_PAT": "secret", "CLARIFAI_API_BASE": srv.URL})
	r.check(t, 1, "page 1: answer broke off: unexpected EOF")
}

func TestUsage(t *testing.T) {
	pat := func(base string) env { return env{"CLARIFAI_PAT": "secret", "CLARIFAI_API_BASE": base} }
	for _, test := range []struct {
		args string
		env  env
		want string
	}{
		{"-nonsense", nil, "flag provided but not defined: -nonsense"},
		{"-json=perhaps", nil, "invalid boolean value"},
		{"-per-page", nil, "flag needs an argument"},
		{"-per-page x", nil, "invalid value"},
		{"-per-page 0", nil, "-per-page is 0, must be 1 to 1000"},
		{"-per-page 1001", nil, "must be 1 to 1000"},
		{"more", nil, `unexpected argument "more"`},
		{"-neighbour", pat(""), "unset CLARIFAI_PAT"},
		{"", pat("api.clarifai.com"), "no http or https URL"},
		{"", pat("ftp://api.clarifai.com"), "no http or https URL"},
		{"", pat("https:///v2"), "no http or https URL"},
		{"", pat("https://%zz:hidden@host"), "no http or https URL"},
		{"", pat("https://user:hidden@host"), "without user"},
		{"", pat("https://host?"), "without user, query"},
		{"", pat("http://api.clarifai.com"), "in the clear, use https"},
		{"", pat("http://192.0.2.1:80"), "in the clear, use https"},
	} {
		r := do(t, test.env, strings.Fields(test.args)...)
		r.check(t, 2, "modeltypes: ", test.want, "usage: modeltypes [-json]")
		if strings.Contains(r.stderr, "hidden") || strings.Contains(r.stderr, "secret") {
			t.Errorf("stderr: %s", r.stderr)
		}
	}
	for _, arg := range []string{"-h", "-help", "--help"} {
		if r := do(t, nil, arg); r.status != 0 || r.stdout != usage || r.stderr != "" {
			t.Errorf("%s: %+v", arg, r)
		}
	}
}

func TestBase(t *testing.T) {
	for _, base := range []string{"", "https://api.clarifai.com", "https://host:8443/prefix/", "http://localhost:1", "http://127.0.0.2", "http://[::1]:80"} {
		o, err := parse(nil, env{"CLARIFAI_PAT": "secret", "CLARIFAI_API_BASE": base}.get)
		if want := cmp.Or(base, "https://api.clarifai.com"); err != nil || o.base != want {
			t.Errorf("%q: %q, %v", base, o.base, err)
		}
	}
	do(t, env{"CLARIFAI_API_BASE": "https://api.clarifai.com"}).check(t, 0, "CLARIFAI_API_BASE is not used without CLARIFAI_PAT")
	if _, err := parse([]string{"-h"}, env{}.get); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}

func TestStdoutFails(t *testing.T) {
	for _, args := range [][]string{nil, {"-json"}} {
		var stderr bytes.Buffer
		if status := run(t.Context(), args, env{}.get, full{}, &stderr); status != 1 || !strings.Contains(stderr.String(), "modeltypes: no space") {
			t.Errorf("exit status %d:\n%s", status, &stderr)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestPaths(t *testing.T) {
	for _, test := range []struct {
		fields []field
		most   int
		want   string
	}{
		{nil, 9, "-"},
		{fields("image, text"), 11, "image, text"},
		{fields("image, text"), 10, "image, ..."},
		{[]field{{"\x1b[1mbold\t"}}, 9, " [1mbold "},
		{fields("frames[...].data.regions[...].data.concepts, frames[...].data"), 28, "frames[].regions[].concep..."},
		{fields("frames[...].data.regions[...].data.concepts"), 28, "frames[].regions[].concepts"},
	} {
		if got := paths(test.fields, test.most); got != test.want {
			t.Errorf("%v, at most %d: %q, want %q", test.fields, test.most, got, test.want)
		}
	}
}
