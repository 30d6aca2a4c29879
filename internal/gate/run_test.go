package gate

import (
	"testing"
	"time"
)

// TestRun tells which answers make a run of bare 429s. In the script, a letter
// is a ticket let go, in order; then comes what happens to them: "a!" is a bare
// 429, "a." another answer, "a-" a failure, "a_" its being written, "+" that the
// window passes.
func TestRun(t *testing.T) {
	for _, tt := range []struct {
		tickets, script string
		want            bool // at the last step, and only there
	}{
		{"abc", "a!b!c!", true},
		{"abc", "c!a!b!", true},
		{"ab", "a!b!", false},
		{"abcd", "a!b!d!", true}, // c may come back so, too
		{"abcd", "a!b!c.d!", false},
		{"abcd", "c.a!b!d!", false},
		{"abcde", "c.a!b!d!e!", false},
		{"abcdef", "c.a!b!d!e!f!", true},
		{"abcd", "a!b!c_d!", true},
		{"abcd", "a!b!c_+d!", false},
		{"abcd", "c_a!+b!d!", false},
		{"abcd", "a!b!c_+c!", true},
		{"abcd", "a!c-b!d!", true},
		{"abcde", "a!b.c!d.e!", false},
		{"aBc", "a!B!c!", false}, // its call had one before
		{"aBcd", "a!B.c!d!", true},
	} {
		t.Run(tt.tickets+" "+tt.script, func(t *testing.T) {
			r := newRun(15, time.Second)
			now := time.Now()
			tickets := map[byte]*Ticket{}
			for _, name := range []byte(tt.tickets) {
				tickets[name] = &Ticket{suspect: name < 'a'}
				r.letGo(tickets[name])
			}
			got := false
			for i := 0; i < len(tt.script); i++ {
				if got {
					t.Fatalf("a run after %q", tt.script[:i])
				}
				if tt.script[i] == '+' {
					now = now.Add(time.Second)
					continue
				}
				tk := tickets[tt.script[i]]
				i++
				switch tt.script[i] {
				case '!':
					got = r.throttled(tk, now)
				case '.':
					r.served(tk)
				case '-':
					r.remove(tk)
				case '_':
					tk.written = now
				}
			}
			if got != tt.want {
				t.Errorf("a run: %v, want %v", got, tt.want)
			}
		})
	}
}

// TestRunIsShort has a run watch for a long time.
func TestRunIsShort(t *testing.T) {
	r := newRun(15, time.Second)
	for i := range 100_000 {
		tk := new(Ticket)
		r.letGo(tk)
		switch {
		case i%3 == 0:
			r.throttled(tk, time.Now())
		case i%3 == 1 || i > 50_000:
			r.served(tk)
		}
	}
	if r.n > r.most {
		t.Errorf("%d tickets are kept", r.n)
	}
	for range 1000 {
		tk := new(Ticket)
		r.letGo(tk)
		r.served(tk)
	}
	if r.last.outcome == other && r.prev(r.last) != nil && r.prev(r.last).outcome == other {
		t.Error("neighbours that end a run are kept")
	}
	r.clear()
	if r.n != 0 || r.first != nil || r.last != nil {
		t.Error("not cleared")
	}
}
