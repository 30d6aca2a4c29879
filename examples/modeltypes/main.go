// Command modeltypes lists Clarifai's model types, page by page, through an
// http.Client whose only change is its Transport.
//
//	go run ./examples/modeltypes             a table, from a built-in server
//	go run ./examples/modeltypes -neighbour  the same, throttled first
//	CLARIFAI_PAT=... go run ./examples/modeltypes -json
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"example.com/clarifaihttp"
)

const usage = `usage: modeltypes [-json] [-neighbour] [-per-page n]

Lists Clarifai's model types, all pages of them, within the API's rate limit.

  -json        print a JSON array of all that the API says, titles and
               descriptions for example, instead of a table
  -neighbour   let another user of the account use up the built-in server's
               limit first
  -per-page n  ask for n model types in a page, 1 to 1000 (default 20)

environment:
  CLARIFAI_PAT       personal access token; without it a built-in server answers
  CLARIFAI_API_BASE  where the API is (default https://api.clarifai.com); the
                     token goes over plain http to this machine only

exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted
`

const (
	maxPerPage = 1000
	maxBody    = 16 << 20

	// An ID of 28 characters, two gaps and these make a table of 80 columns.
	maxInput  = 20
	maxOutput = 28
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program. It returns the exit status.
func run(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) int {
	p := &program{env: env, stdout: stdout, screen: newScreen(stderr, env("TERM")), serve: serve}
	return p.run(ctx, args)
}

type program struct {
	env    func(string) string
	stdout io.Writer
	screen *screen
	serve  func(http.Handler) (site, error) // starts the built-in server
}

func (p *program) run(ctx context.Context, args []string) int {
	o, err := parse(args, p.env)
	switch {
	case errors.Is(err, flag.ErrHelp):
		io.WriteString(p.stdout, usage)
		return 0
	case err != nil:
		p.screen.line("modeltypes: %v\n\n%s", err, strings.TrimSpace(usage))
		return 2
	}
	types, err := p.list(ctx, o)
	if err == nil {
		err = o.print(p.stdout, types)
	}
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		p.screen.line("modeltypes: interrupted")
		return 130
	}
	p.screen.line("modeltypes: %v", err)
	return 1
}

// options are what the command line and the environment say.
type options struct {
	print     func(io.Writer, []listed) error
	neighbour bool
	perPage   int
	pat, base string // no pat: the built-in server
}

func parse(args []string, env func(string) string) (o options, err error) {
	flags := flag.NewFlagSet("modeltypes", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // run prints
	asJSON := flags.Bool("json", false, "")
	flags.BoolVar(&o.neighbour, "neighbour", false, "")
	flags.IntVar(&o.perPage, "per-page", 20, "")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.print = printTable
	if *asJSON {
		o.print = printJSON
	}
	o.pat = strings.TrimSpace(env("CLARIFAI_PAT"))
	o.base = strings.TrimSpace(env("CLARIFAI_API_BASE"))
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.perPage < 1 || o.perPage > maxPerPage:
		return o, fmt.Errorf("-per-page is %d, must be 1 to %d", o.perPage, maxPerPage)
	case o.pat == "":
		return o, nil
	case o.neighbour:
		return o, errors.New("-neighbour is for the built-in server: unset CLARIFAI_PAT to use it")
	}
	o.base = cmp.Or(o.base, "https://api.clarifai.com")
	return o, checkBase(o.base)
}

// checkBase makes sure that the token can be sent to base. Its errors do not
// quote what may hold a password.
func checkBase(base string) error {
	u, err := url.Parse(base)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("CLARIFAI_API_BASE is no http or https URL with a host")
	case u.User != nil || strings.ContainsAny(base, "?#"):
		return errors.New("CLARIFAI_API_BASE must be a URL without user, query and fragment")
	case u.Scheme == "http" && u.Hostname() != "localhost" && !net.ParseIP(u.Hostname()).IsLoopback():
		return fmt.Errorf("CLARIFAI_API_BASE is %s: the token would go over the network in the clear, use https", u)
	}
	return nil
}

// list gets all pages.
func (p *program) list(ctx context.Context, o options) (types []listed, err error) {
	api := site{base: o.base}
	if o.pat == "" {
		o.pat = "built-in"
		account := newAccount()
		if api, err = p.serve(account); err != nil {
			return nil, fmt.Errorf("built-in server: %w", err)
		}
		defer api.stop()
		p.screen.line("No CLARIFAI_PAT is set: a built-in server answers at %s", api.base)
		p.screen.line("It throttles as Clarifai does: beyond %d requests a second it halts for %v", limit, halt)
		if o.base != "" {
			p.screen.line("CLARIFAI_API_BASE is not used without CLARIFAI_PAT")
		}
		if o.neighbour {
			p.screen.line("Neighbour: another user sends %d requests and uses up the limit", account.Take(limit))
		}
	} else {
		p.screen.line("Asking %s", api.base)
	}

	throttle := new(clarifaihttp.Throttle)
	client := &http.Client{Transport: clarifaihttp.NewTransport(api.via,
		clarifaihttp.WithThrottle(throttle), // to show its Stats
		clarifaihttp.WithLogger(slog.New(pauses{p.screen})))}
	defer client.CloseIdleConnections()
	defer p.screen.follow(throttle)()

	for page := 1; ; page++ {
		batch, err := getPage(ctx, client, p.screen, api.base, o.pat, page, o.perPage)
		if err != nil {
			return nil, fmt.Errorf("page %d: %w", page, err)
		}
		if page > 1 && len(batch) > 0 && batch[0].ID == types[0].ID {
			return nil, fmt.Errorf("page %d: the same as page 1", page)
		}
		types = append(types, batch...)
		p.screen.line("Page %d: %d model types", page, len(batch))
		if len(batch) < o.perPage {
			s := throttle.Stats()
			p.screen.line("%d model types by %d requests: %d throttled, %v waited\n",
				len(types), s.Attempts, s.Throttled, s.Waited.Round(100*time.Millisecond))
			return types, nil
		}
	}
}

// getPage sends one GET. Nothing in it knows of limits; the trace only shows
// when the Transport sends it again.
func getPage(ctx context.Context, client *http.Client, s *screen, base, pat string, page, perPage int) ([]listed, error) {
	query := url.Values{"page": {strconv.Itoa(page)}, "per_page": {strconv.Itoa(perPage)}}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: func(string) { s.sending(page) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/v2/models/types?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Key "+pat)
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxBody))
	if err != nil {
		return nil, fmt.Errorf("answer broke off: %w", err)
	}

	unexpected := func(err error) error {
		return fmt.Errorf("HTTP %s, but this is no list of model types: %w\n  %.200s", resp.Status, err, clean(string(body)))
	}
	var a answer
	err = json.Unmarshal(body, &a)
	switch {
	case err != nil:
		return nil, unexpected(err)
	case a.Status.Code == nil:
		return nil, unexpected(errors.New("no status code in it"))
	case resp.StatusCode != http.StatusOK || !slices.Contains([]string{"10000", "SUCCESS"}, fmt.Sprint(a.Status.Code)):
		a.Status.ReqID = cmp.Or(a.Status.ReqID, resp.Header.Get("X-Clarifai-Request-Id"))
		return nil, fmt.Errorf("HTTP %s%v", resp.Status, a.Status)
	case page == 1 && len(a.ModelTypes) == 0:
		return nil, unexpected(errors.New("there are none in it"))
	}
	return a.ModelTypes, nil
}

// An answer is the body of GET /v2/models/types.
type answer struct {
	Status     status   `json:"status"`
	ModelTypes []listed `json:"model_types"`
}

type status struct {
	Code        any    `json:"code"` // a number, a numeric string or a name
	Description string `json:"description"`
	Details     string `json:"details"`
	ReqID       string `json:"req_id"`
}

func (s status) String() (lines string) {
	for _, l := range [][2]string{
		{"code", fmt.Sprint(s.Code)}, {"description", s.Description}, {"details", s.Details}, {"request id", s.ReqID},
	} {
		lines += fmt.Sprintf("\n  %-11s  %s", l[0], clean(cmp.Or(l[1], "-")))
	}
	return lines
}

// listed is a model type with all that the API says of it.
type listed struct {
	modelType
	raw json.RawMessage
}

func (t *listed) UnmarshalJSON(b []byte) error {
	t.raw = append(t.raw[:0], b...)
	err := json.Unmarshal(b, &t.modelType)
	if err == nil && t.ID == "" {
		err = errors.New("a model type without id")
	}
	return err
}

func (t listed) MarshalJSON() ([]byte, error) { return t.raw, nil }

func printJSON(w io.Writer, types []listed) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(types)
}

// printTable shows what tells model types apart: a title repeats its ID.
func printTable(w io.Writer, types []listed) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tINPUT\tOUTPUT")
	for _, m := range types {
		fmt.Fprintf(t, "%s\t%s\t%s\n", clean(m.ID), paths(m.InputFields, maxInput), paths(m.OutputFields, maxOutput))
	}
	return t.Flush()
}

// shorter makes of "regions[...].data.concepts" what says as much.
var shorter = strings.NewReplacer("[...]", "[]", ".data.", ".")

// paths joins the paths of fields, cut to at most so many characters.
func paths(fields []field, most int) string {
	var names []string
	for _, f := range fields {
		names = append(names, shorter.Replace(clean(f.Path)))
	}
	s := []rune(strings.Join(names, ", "))
	if len(s) > most {
		s = append(s[:most-3], []rune("...")...)
	}
	return cmp.Or(string(s), "-")
}
