package priority

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestUrgency(t *testing.T) {
	for _, tt := range []struct {
		field string // lines, one below the other
		want  int
	}{
		// RFC 9218, sections 4.1, 4.2, 5 and 8.
		{"u=0", 0},
		{"u=7", 7},
		{"u=5, i", 5},
		{"u=1", 1},
		{"u=1, i", 1},
		{"i", Default},
		{"u=2,i=?0", 2},

		// What says nothing of urgency.
		{"", Default},
		{"   ", Default},
		{"i=?1", Default},
		{"U=1", Default}, // no key, and so malformed
		{"urgency=1", Default},
		{"a=b;u=1", Default}, // a parameter

		// Of the wrong type or out of range.
		{"u", Default},
		{"u=8", Default},
		{"u=10", Default},
		{"u=-1", Default},
		{"u=999999999999999", Default},
		{"u=1.0", Default},
		{`u="1"`, Default},
		{"u=?1", Default},
		{"u=a", Default},
		{"u=:MQ==:", Default},
		{"u=(1)", Default},

		// Integers, as section 4.2.4 of RFC 8941 reads them.
		{"u=-0", 0},
		{"u=007", 7},
		{"u=000000000000001", 1},
		{"u=0000000000000001", Default}, // 16 digits
		{"u=-", Default},
		{"u=+1", Default},
		{"u=1.", Default},
		{"u=1.0000", Default},
		{"u=1e0", Default},

		// The last one wins, whatever it is.
		{"u=1, u=2", 2},
		{"u=2, i, u=1", 1},
		{"u=1, u=8", Default},
		{"u=1, u", Default},
		{"u=1, u=(1 2)", Default},
		{"u=(1 2), u=1", 1},

		// Parameters and other members may be anything.
		{"u=1;a", 1},
		{"u=1;a=2; b=3;c=?0", 1},
		{`u=1, x="a, u=2, \"u=3\\"`, 1},
		{"u=1, x=(a \"b c\";d :YQ==: 1.5  ?0 );e=f", 1},
		{"u=1, x=()", 1},
		{"u=1, *a_-.*9=*", 1},
		{"u=1, x=a/b:c", 1},
		{"u=1, x=-123456789012.123", 1},
		{"x=1,u=1", 1},
		{"x=1 \t,\t u=1", 1},
		{"  u=1 \t", 1},

		// An error anywhere is one of the whole field.
		{"u=1,", Default},
		{"u=1, ", Default},
		{",u=1", Default},
		{"u=1,,i", Default},
		{"u=1;", Default},
		{"u=1; =2", Default},
		{"u=1 ;a", Default},
		{"u =1", Default},
		{"u= 1", Default},
		{"\tu=1", Default},
		{"u=1 i", Default},
		{"u=1; \ta", Default},
		{"u=1, x=", Default},
		{`u=1, x="a`, Default},
		{`u=1, x="\a"`, Default},
		{"u=1, x=\"\x7f\"", Default},
		{"u=1, x=\"é\"", Default},
		{"u=1, x=é", Default},
		{"u=1, x=?2", Default},
		{"u=1, x=?", Default},
		{"u=1, x=:YQ", Default},
		{"u=1, x=:Y Q:", Default},
		{"u=1, x=(a", Default},
		{"u=1, x=(a,b)", Default},
		{"u=1, x=(a\"b\")", Default},
		{"u=1, x=((a))", Default},
		{"u=1, x=1234567890123.1", Default},
		{"u=1, x=@1659578233", Default}, // a date of RFC 9651
		{"u=1\x00", Default},

		// Lines are joined.
		{"u=1\ni", 1},
		{"i\nu=1", 1},
		{"u=1\nu=2", 2},
		{"u=1\n!", Default},
		{"x=\"a\nb\", u=1", 1},
		{"u=1\n", Default}, // as a trailing comma

		// Long ones are not read.
		{"u=1" + strings.Repeat(" ", maxField-5), 1},
		{"u=1" + strings.Repeat(" ", maxField), Default},
		{"u=1" + strings.Repeat("\ni", maxField), Default},
	} {
		if got := Urgency(strings.Split(tt.field, "\n")); got != tt.want {
			t.Errorf("%.40q: urgency %d, want %d", tt.field, got, tt.want)
		}
	}
	if got := Urgency(nil); got != Default {
		t.Errorf("no field: urgency %d", got)
	}
	if got := Urgency(http.Header{"Priority": {"u=1"}}["Priority"]); got != 1 {
		t.Errorf("of a header: urgency %d", got)
	}
}

// The grammar as regular expressions, and what is read with them.
const (
	keyExpr    = `[a-z*][a-z0-9_.*-]*`
	bareExpr   = `(?:-?[0-9]{1,12}\.[0-9]{1,3}|-?[0-9]{1,15}|"(?:[ !#-\[\]-~]|\\["\\])*"|[A-Za-z*][!#$%&'*+.^_|~0-9A-Za-z:/` + "`" + `-]*|:[A-Za-z0-9+/=]*:|\?[01])`
	paramsExpr = `(?:; *` + keyExpr + `(?:=` + bareExpr + `)?)*`
	itemExpr   = bareExpr + paramsExpr
	innerExpr  = `\( *(?:` + itemExpr + `(?: +` + itemExpr + `)* *)?\)` + paramsExpr
	memberExpr = keyExpr + `(?:=(?:` + itemExpr + `|` + innerExpr + `)|` + paramsExpr + `)`
)

var (
	fieldRE  = regexp.MustCompile(`^ *(?:` + memberExpr + `(?:[ \t]*,[ \t]*` + memberExpr + `)*[ \t]*)?$`)
	memberRE = regexp.MustCompile(`^[ \t,]*(` + memberExpr + `)`)
	uRE      = regexp.MustCompile(`^u(?:=(-?[0-9]+))?(?:;|$)`)
	keyRE    = regexp.MustCompile(`^` + keyExpr)
)

// plain is Urgency by the regular expressions.
func plain(lines []string) int {
	field := strings.Join(lines, ", ")
	if !fieldRE.MatchString(field) {
		return Default
	}
	urgency := Default
	for {
		m := memberRE.FindStringSubmatch(field)
		if m == nil {
			return urgency
		}
		field = field[len(m[0]):]
		if keyRE.FindString(m[1]) != "u" {
			continue
		}
		urgency = Default
		if u := uRE.FindStringSubmatch(m[1]); u != nil {
			if n, err := strconv.Atoi(u[1]); err == nil && n >= 0 && n <= 7 {
				urgency = n
			}
		}
	}
}

func FuzzUrgency(f *testing.F) {
	for _, seed := range []string{
		"", "u=1", "u=5, i", "u=1\nu=2;a", `x="a\"";b=:YQ==:, u=4`, "x=(a 1.5 ?0);c, u=0", "u=-0,", "u=1;a=b , i=?0",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, field string) {
		lines := strings.Split(field, "\n")
		got := Urgency(lines)
		if got < 0 || got > least {
			t.Fatalf("urgency %d", got)
		}
		if len(field)+2*len(lines) > maxField {
			return
		}
		if want := plain(lines); got != want {
			t.Errorf("%q: urgency %d, want %d", field, got, want)
		}
	})
}

// TestHostile bounds what a header costs that is made to cost much.
func TestHostile(t *testing.T) {
	for name, lines := range map[string][]string{
		"short": {"u=1, i"},
		"long":  {strings.Repeat("u=1,", 1<<20)},
		"many":  strings.Split(strings.Repeat("u=1 ", 1<<16), " "),
		"full":  {strings.Repeat("u=1,", maxField/4-1) + "u=1"},
		"lists": {"u=1, x=(" + strings.Repeat("(", 500)},
	} {
		if n := testing.AllocsPerRun(10, func() { Urgency(lines) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkUrgency(b *testing.B) {
	for name, lines := range map[string][]string{
		"none":      nil,
		"short":     {"u=1, i"},
		"1 KiB":     {strings.Repeat("u=1,", maxField/4-1) + "u=1"},
		"1 MiB":     {strings.Repeat("u=1,", 1<<18)},
		"100 lines": strings.Split(strings.Repeat("u=1,a;b ", 100), " "),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Urgency(lines)
			}
		})
	}
}
