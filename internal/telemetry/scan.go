package telemetry

import (
	"strconv"
	"unicode/utf8"
	"unsafe"
)

// scanner reads JSON (RFC 8259) once from left to right, strictly; what Postgres
// rejects in jsonb (NUL, lone surrogates) is rejected here too. A fuzz test
// compares it with another implementation.
type scanner struct {
	src string
	pos int
}

// fault is the kind of error at the scanner's position.
type fault uint8

const (
	faultNone fault = iota
	faultSyntax
	faultTruncated
	faultUTF8
	faultNUL
	faultSurrogate
)

// Kinds of bytes inside a string.
const (
	bytePlain = iota
	byteQuote
	byteEscape
	byteControl
	byteWide
)

// stringBytes classifies bytes inside a string.
var stringBytes = func() (kinds [256]uint8) {
	for c := range kinds {
		switch {
		case c < ' ':
			kinds[c] = byteControl
		case c == '"':
			kinds[c] = byteQuote
		case c == '\\':
			kinds[c] = byteEscape
		case c >= utf8.RuneSelf:
			kinds[c] = byteWide
		}
	}
	return kinds
}()

// view returns b as a string without a copy; b must not be written to any more.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf returns the memory of s, which must not be written to.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

func itoa(n int) string { return strconv.Itoa(n) }

// peek skips white space and returns the next byte, or 0 at the end (a NUL
// byte is no JSON, so that nothing is confused).
func (s *scanner) peek() byte {
	for s.pos < len(s.src) {
		c := s.src[s.pos]
		if c > ' ' || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
		s.pos++
	}
	return 0
}

// unexpected returns the fault of a byte that is not allowed here.
func (s *scanner) unexpected() fault {
	if s.pos >= len(s.src) {
		return faultTruncated
	}
	return faultSyntax
}

// expect skips white space and consumes c.
func (s *scanner) expect(c byte) fault {
	if s.pos < len(s.src) && s.src[s.pos] == c || s.peek() == c {
		s.pos++
		return faultNone
	}
	return s.unexpected()
}

// text consumes a string from its opening quote, and returns the bounds of what
// is between the quotes and whether it has escapes.
func (s *scanner) text() (start, end int, escapes bool, f fault) {
	src := s.src
	start = s.pos + 1
	wide := false
	for i := start; i < len(src); {
		switch stringBytes[src[i]] {
		case bytePlain:
			i++
		case byteQuote:
			if wide && !utf8.ValidString(src[start:i]) {
				s.pos = start
				return 0, 0, false, faultUTF8
			}
			s.pos = i + 1
			return start, i, escapes, faultNone
		case byteWide:
			wide = true
			i++
		case byteEscape:
			escapes = true
			n, f := escapeLength(src[i:])
			if f != faultNone {
				s.pos = i
				return 0, 0, false, f
			}
			i += n
		default:
			s.pos = i
			return 0, 0, false, faultSyntax
		}
	}
	s.pos = len(src)
	return 0, 0, false, faultTruncated
}

// escapeLength returns the length of the escape that s begins with; a surrogate
// pair is one escape.
func escapeLength(s string) (int, fault) {
	if len(s) < 2 {
		return 0, faultTruncated
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, faultNone
	case 'u':
	default:
		return 0, faultSyntax
	}
	c, f := hex4(s[2:])
	switch {
	case f != faultNone:
		return 0, f
	case c == 0:
		return 0, faultNUL
	case c < 0xd800 || c > 0xdfff:
		return 6, faultNone
	case c < 0xdc00 && (len(s) == 6 || s[6:] == `\`):
		return 0, faultTruncated
	case c >= 0xdc00 || s[6] != '\\' || s[7] != 'u':
		return 0, faultSurrogate
	}
	if c, f = hex4(s[8:]); f != faultNone {
		return 0, f
	}
	if c < 0xdc00 || c > 0xdfff {
		return 0, faultSurrogate
	}
	return 12, faultNone
}

func hex4(s string) (rune, fault) {
	var v rune
	for i := range 4 {
		if i >= len(s) {
			return 0, faultTruncated
		}
		c := rune(s[i])
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | (c - '0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			v = v<<4 | (c | 0x20 - 'a' + 10)
		default:
			return 0, faultSyntax
		}
	}
	return v, faultNone
}

// appendUnescaped appends the text that raw, the valid inside of a JSON string,
// denotes.
func appendUnescaped(dst []byte, raw string) []byte {
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			dst = append(dst, raw[i])
			i++
			continue
		}
		switch c := raw[i+1]; c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r, _ := hex4(raw[i+2:])
			if r >= 0xd800 && r <= 0xdfff {
				low, _ := hex4(raw[i+8:])
				r = (r-0xd800)<<10 | (low - 0xdc00) + 0x10000
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
			i += 4
		default:
			dst = append(dst, c)
		}
		i += 2
	}
	return dst
}

// literal consumes word, one of true, false and null.
func (s *scanner) literal(word string) fault {
	rest := s.src[s.pos:]
	for i := range len(word) {
		if i >= len(rest) {
			s.pos = len(s.src)
			return faultTruncated
		}
		if rest[i] != word[i] {
			s.pos += i
			return faultSyntax
		}
	}
	s.pos += len(word)
	return faultNone
}

// number is a JSON number as scanned. Its value is ±mantissa × 10^exp10,
// exactly, unless it has too many digits for that.
type number struct {
	text     string
	mantissa uint64
	exp10    int
	negative bool
	exact    bool
}

// number consumes a number from its first byte.
func (s *scanner) number(n *number) fault {
	src, i := s.src, s.pos
	*n = number{negative: src[i] == '-'}
	if n.negative {
		i++
	}
	first := i
	i, n.mantissa = digits(src, i, 0)
	count := i - first
	if count == 0 || src[first] == '0' && count > 1 {
		s.pos = min(i, first+1)
		return s.unexpected()
	}
	if i < len(src) && src[i] == '.' {
		first = i + 1
		i, n.mantissa = digits(src, first, n.mantissa)
		if i == first {
			s.pos = i
			return s.unexpected()
		}
		n.exp10 = first - i
		count -= n.exp10
	}
	if i < len(src) && src[i]|0x20 == 'e' {
		power, end, ok := exponent(src, i+1)
		if !ok {
			s.pos = end
			return s.unexpected()
		}
		n.exp10 += power
		i = end
	}
	n.exact = count <= 19
	n.text = src[s.pos:i]
	s.pos = i
	return faultNone
}

// digits accumulates the digits at position i into v, which may overflow.
func digits(src string, i int, v uint64) (int, uint64) {
	for i < len(src) && src[i]-'0' <= 9 {
		v = v*10 + uint64(src[i]-'0')
		i++
	}
	return i, v
}

// exponent reads what follows the letter of an exponent; ok is false if that
// is no digit.
func exponent(src string, i int) (v, end int, ok bool) {
	sign := 1
	if i < len(src) && (src[i] == '-' || src[i] == '+') {
		if src[i] == '-' {
			sign = -1
		}
		i++
	}
	for ; i < len(src) && src[i]-'0' <= 9; i++ {
		v = min(v*10+int(src[i]-'0'), maxExponent)
		ok = true
	}
	return sign * v, i, ok
}

// plainInteger consumes a positive whole number if a comma or a brace follows it
// directly. Nearly every attribute is one.
func (s *scanner) plainInteger() bool {
	src, i := s.src, s.pos
	for i < len(src) && src[i]-'0' <= 9 {
		i++
	}
	if i == s.pos || i-s.pos > 19 || i == len(src) || src[s.pos] == '0' && i-s.pos > 1 || src[i] != ',' && src[i] != '}' {
		return false
	}
	s.pos = i
	return true
}

// maxExponent is where exponents saturate: far beyond every range that is
// checked, even after a mebibyte of digits.
const maxExponent = 1 << 30
