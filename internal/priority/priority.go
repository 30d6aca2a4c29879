// Package priority reads the Priority header of RFC 9218.
package priority

// Default is the urgency of a request that says nothing (RFC 9218, section 4.1).
const Default = 3

const (
	least    = 7    // urgent: background
	maxField = 1024 // bytes; a longer field counts as malformed
)

// Urgency returns the urgency that the lines of a Priority field ask for: from
// 0, the most urgent, to 7, background. It is [Default] where the field is
// absent or malformed, and where u is absent, not an integer or out of range.
//
// The field is a dictionary of RFC 8941. Section 4.2.2 has the grammar and the
// two rules that matter here: the last u wins, and an error anywhere makes the
// whole field malformed.
func Urgency(lines []string) int {
	if len(lines) == 0 {
		return Default
	}
	var joined [maxField]byte
	field := joined[:0]
	for i, line := range lines {
		if len(field)+len(", ")+len(line) > maxField {
			return Default
		}
		if i > 0 {
			field = append(field, ", "...)
		}
		field = append(field, line...)
	}
	p := parser{rest: field}
	return p.dictionary()
}

// A parser reads a field from its start. Each method reads what it is named
// after, by the algorithm of RFC 8941, section 4.2, and reports whether it is
// there.
type parser struct{ rest []byte }

// dictionary returns the urgency.
func (p *parser) dictionary() int {
	p.skip(" ")
	urgency := Default
	for len(p.rest) > 0 {
		key, ok := p.key()
		if !ok {
			return Default
		}
		value := Default
		if p.next('=') {
			value, ok = p.member()
		} else {
			ok = p.parameters()
		}
		if !ok {
			return Default
		}
		if string(key) == "u" {
			urgency = value
		}
		p.skip(" \t")
		if len(p.rest) == 0 {
			break
		}
		if !p.next(',') {
			return Default
		}
		p.skip(" \t")
		if len(p.rest) == 0 { // after a comma
			return Default
		}
	}
	return urgency
}

// member returns the urgency that a dictionary's member stands for.
func (p *parser) member() (urgency int, ok bool) {
	if p.next('(') {
		return Default, p.innerList()
	}
	urgency, ok = p.bareItem()
	return urgency, ok && p.parameters()
}

// innerList reads an inner list after its parenthesis.
func (p *parser) innerList() bool {
	for {
		p.skip(" ")
		if p.next(')') {
			return p.parameters()
		}
		if _, ok := p.bareItem(); !ok || !p.parameters() {
			return false
		}
		if c := p.peek(); c != ' ' && c != ')' {
			return false
		}
	}
}

func (p *parser) parameters() bool {
	for p.next(';') {
		p.skip(" ")
		if _, ok := p.key(); !ok {
			return false
		}
		if p.next('=') {
			if _, ok := p.bareItem(); !ok {
				return false
			}
		}
	}
	return true
}

func (p *parser) key() (key []byte, ok bool) {
	if c := p.peek(); !isLower(c) && c != '*' {
		return nil, false
	}
	return p.while(func(c byte) bool {
		return isLower(c) || isDigit(c) || c == '_' || c == '-' || c == '.' || c == '*'
	}), true
}

// bareItem returns the urgency that an item stands for: itself, if it is an
// integer in range.
func (p *parser) bareItem() (urgency int, ok bool) {
	switch c := p.peek(); {
	case c == '-' || isDigit(c):
		return p.number()
	case c == '"':
		return Default, p.string()
	case c == '*' || isAlpha(c):
		p.while(isToken)
		return Default, true
	case c == ':':
		p.next(':')
		p.while(isBase64)
		return Default, p.next(':')
	case c == '?':
		p.next('?')
		return Default, p.next('0') || p.next('1')
	}
	return Default, false
}

func (p *parser) number() (urgency int, ok bool) {
	negative := p.next('-')
	digits := p.while(isDigit)
	if p.next('.') {
		fraction := p.while(isDigit)
		return Default, inRange(len(digits), 1, 12) && inRange(len(fraction), 1, 3)
	}
	if !inRange(len(digits), 1, 15) {
		return Default, false
	}
	n := 0
	for _, c := range digits {
		n = min(10*n+int(c-'0'), least+1)
	}
	if n > least || negative && n > 0 {
		n = Default
	}
	return n, true
}

func (p *parser) string() bool {
	p.next('"')
	for len(p.rest) > 0 {
		switch c := p.rest[0]; {
		case p.next('"'):
			return true
		case p.next('\\'):
			if !p.next('"') && !p.next('\\') {
				return false
			}
		case c < ' ' || c > '~':
			return false
		default:
			p.rest = p.rest[1:]
		}
	}
	return false
}

// peek returns the next byte, or 0, which no rule allows.
func (p *parser) peek() byte {
	if len(p.rest) == 0 {
		return 0
	}
	return p.rest[0]
}

// next reads c, if it is next.
func (p *parser) next(c byte) bool {
	if len(p.rest) == 0 || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// skip reads what is in set.
func (p *parser) skip(set string) {
	for len(p.rest) > 0 && (p.rest[0] == set[0] || p.rest[0] == set[len(set)-1]) {
		p.rest = p.rest[1:]
	}
}

// while reads and returns the bytes up to the first that is not is.
func (p *parser) while(is func(byte) bool) (read []byte) {
	n := 0
	for n < len(p.rest) && is(p.rest[n]) {
		n++
	}
	read, p.rest = p.rest[:n], p.rest[n:]
	return read
}

func inRange(n, low, high int) bool { return low <= n && n <= high }

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }

func isAlpha(c byte) bool { return isLower(c | 0x20) }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isToken is for what follows a token's first character: tchar of RFC 9110,
// section 5.6.2, and two more.
func isToken(c byte) bool {
	if isAlpha(c) || isDigit(c) {
		return true
	}
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~', ':', '/':
		return true
	}
	return false
}

func isBase64(c byte) bool {
	return isAlpha(c) || isDigit(c) || c == '+' || c == '/' || c == '='
}
