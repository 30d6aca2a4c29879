// Command compare sends the same requests through clarifaihttp and through
// what one might use instead, against servers that throttle as Clarifai does. It
// shows what came of it: RESULTS.md, three pictures, and the section of the README
// that is made of them.
//
//	go -C compare run .     prints the section, writes the rest to a new folder
//	go -C compare run . -w  writes all of it into the checkout
//
// All of it but the images happens in virtual time, from seeded randomness.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const usage = `usage: go -C compare run . [-w]

Compares clarifaihttp with other clients, in simulated networks. Prints a summary;
tables and pictures go to a new folder, whose name is printed.

  -w  write README, RESULTS.md and pictures anew, in the checkout
`

// period is how long floods last.
const period = 300 * time.Second

// main runs in the frame of package testing, since virtual time
// (testing/synctest) is to be had by a *testing.T alone.
func main() {
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	write := flags.Bool("w", false, "")
	err := flags.Parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
		return
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
		fallthrough
	case err != nil:
		fmt.Fprintf(os.Stderr, "compare: %v\n\n%s", err, usage)
		os.Exit(2)
	}
	os.Args = os.Args[:1] // package testing has flags of its own
	everything := func(string, string) (bool, error) { return true, nil }
	testing.Main(everything, []testing.InternalTest{{Name: "compare", F: func(t *testing.T) { compare(t, *write) }}}, nil, nil)
}

// compare measures, and writes into the checkout or shows.
func compare(t *testing.T, write bool) {
	readme := filepath.Join("..", "README.md")
	old, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	oldSection, ok := section(string(old))
	if !ok {
		t.Fatalf("%s has no section between %q and %q", readme, strings.TrimSpace(sectionBegin), strings.TrimSpace(sectionEnd))
	}
	oldResults, _ := os.ReadFile("RESULTS.md")                              // none: all is new
	uploads := images(t, write, sectionOf(string(oldResults), imagesTitle)) // first: nothing else runs
	fmt.Printf("Simulating all else for %d clients: about a minute of two processors\n", len(clients))
	records := measureAll(t, clients, period)
	if t.Failed() {
		return
	}
	files := map[string]string{
		"RESULTS.md":      report(records, uploads),
		"served.svg":      plotServed(records),
		"goodput.svg":     plotGoodput(records),
		"interactive.svg": plotInteractive(records),
	}
	dir := "."
	if write {
		files[readme] = withSection(string(old), readmeSection(records))
	} else {
		if dir, err = os.MkdirTemp("", "compare-"); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\n%s\n%s\n", summary(records), words())
		showDifference("README.md", oldSection, readmeSection(records))
		showDifference("RESULTS.md", string(oldResults), files["RESULTS.md"])
		fmt.Print("Some differ a little from run to run: images are uploaded in real time, and some\nclients draw their delays anew each time.\n\n")
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Error(err)
			continue
		}
		fmt.Println("Wrote", path)
	}
	if !write {
		fmt.Println("Nothing in the checkout was changed; -w writes it anew.")
	}
}

// images returns the section on images. When writing on a machine that is too busy
// to measure them, it returns the old section.
func images(t *testing.T, write bool, old string) string {
	fmt.Printf("Uploading images over real sockets: %v\n", imagesFor)
	for tries := 1; ; tries++ {
		uploads, late := measureImages(t, clients, imagesFor)
		if late < usual.jitter {
			return imagesSection(clients, uploads, late)
		}
		fmt.Printf("This machine is busy: goroutines ran up to %v late, more than the jitter of %v.\n", late.Round(time.Millisecond), usual.jitter)
		switch {
		case !write || old == "":
			return imagesSection(clients, uploads, late)
		case tries == 2:
			fmt.Println("The section on images stays as it was.")
			return old
		}
		fmt.Println("Trying again.")
	}
}

// showDifference says whether what was measured is what the checkout has.
func showDifference(what, old, measured string) {
	gone, come := missing(old, measured), missing(measured, old)
	switch n := max(len(gone), len(come)); {
	case n == 0:
		fmt.Printf("%s has the same figures.\n", what)
	case n > 30:
		fmt.Printf("%s HAS OTHER FIGURES. Lines that differ: %d.\n", what, n)
	default:
		fmt.Printf("%s HAS OTHER FIGURES. Lines that differ: %d.\n- %s\n+ %s\n", what, n, strings.Join(gone, "\n- "), strings.Join(come, "\n+ "))
	}
}

// missing returns the lines of text that are not among those of other.
func missing(text, other string) (lines []string) {
	others := strings.Split(other, "\n")
	for line := range strings.SplitSeq(text, "\n") {
		if !slices.Contains(others, line) {
			lines = append(lines, line)
		}
	}
	return lines
}

// measureAll measures clients side by side, as many parts at a time as there are
// processors.
func measureAll(t *testing.T, clients []client, d time.Duration) records {
	all := make(records, len(clients))
	for i, c := range clients {
		all[i].client = c
	}
	t.Run("clients", func(t *testing.T) {
		for _, part := range parts { // the longest first, so that none is left alone at the end
			for i, c := range clients {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					part(t, &all[i], d)
				})
			}
		}
	})
	return all
}
