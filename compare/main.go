// Command compare sends the same requests through clarifaihttp and through
// what one might use instead, against servers that throttle as Clarifai does,
// and writes down what came of it: RESULTS.md, three pictures, and the section of
// the README that is made of them.
//
//	go -C compare run .
//
// All of it but the images happens in virtual time, from seeded randomness.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// period is how long floods last.
const period = 300 * time.Second

// main runs in the frame of package testing, since virtual time
// (testing/synctest) is to be had by a *testing.T alone.
func main() {
	everything := func(string, string) (bool, error) { return true, nil }
	testing.Main(everything, []testing.InternalTest{{Name: "compare", F: compare}}, nil, nil)
}

// compare measures and writes in the current directory.
func compare(t *testing.T) {
	images, late := measureImages(t, clients, imagesFor) // first: nothing else runs
	for range 2 {
		if late < usual.jitter {
			break
		}
		fmt.Printf("this machine is busy: goroutines ran up to %v late; trying again\n", late.Round(time.Millisecond))
		if again, l := measureImages(t, clients, imagesFor); l < late {
			images, late = again, l
		}
	}
	records := measureAll(t, clients, period)
	if t.Failed() {
		return
	}
	for i := range records {
		records[i].images = images[i]
	}
	files := map[string]string{
		"RESULTS.md":  report(records, late),
		"served.svg":  plotServed(records),
		"goodput.svg": plotGoodput(records),

		"interactive.svg": plotInteractive(records),
	}
	readme := filepath.Join("..", "README.md")
	if old, err := os.ReadFile(readme); err == nil {
		if text := withSection(string(old), whyNot(records)); text != string(old) {
			files[readme] = text
		}
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			t.Error(err)
			continue
		}
		fmt.Println("wrote", name)
	}
}

// measureAll measures clients side by side, as many at a time as there are
// processors.
func measureAll(t *testing.T, clients []client, d time.Duration) records {
	all := make(records, len(clients))
	t.Run("clients", func(t *testing.T) {
		for i, c := range clients {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				all[i] = measure(t, c, d)
			})
		}
	})
	return all
}
