package cli

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// unsafeRune reports whether a terminal or a reader would take r for something
// other than a character: control characters of both sets (ESC, BEL, CR, CSI),
// line and paragraph separators, bidirectional overrides and isolates, and other
// invisible characters such as zero-width spaces. Newline and tab are allowed in
// text of several lines.
func unsafeRune(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co) || r == '\u034f' || r == '\u115f' || r == '\u1160' || r == '\u3164' || r == '\uffa0' ||
		'\ufe00' <= r && r <= '\ufe0f'
}

// Visible returns text from outside in a form that is safe on a terminal: what is
// not a visible character is escaped, \x1b or \u202e. Newlines and tabs stay.
func Visible(s string) string {
	return visible(s, func(r rune) bool { return r == '\n' || r == '\t' })
}

// VisibleLine is Visible on one line: newlines and tabs are escaped too.
func VisibleLine(s string) string { return visible(s, func(rune) bool { return false }) }

func visible(s string, keep func(rune) bool) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return unsafeRune(r) && !keep(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case !unsafeRune(r) || keep(r):
			b.WriteString(s[:n])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		s = s[n:]
	}
	return b.String()
}

// paint matches the sequences with which a program colours its own text.
var paint = regexp.MustCompile("\x1b\\[[0-9]{0,2}m")

// VisiblePainted is Visible for text that the program has coloured: sequences
// that set a colour stay.
func VisiblePainted(s string) string {
	var b strings.Builder
	at := 0
	for _, m := range paint.FindAllStringIndex(s, -1) {
		b.WriteString(Visible(s[at:m[0]]))
		b.WriteString(s[m[0]:m[1]])
		at = m[1]
	}
	b.WriteString(Visible(s[at:]))
	return b.String()
}

// JSON returns a writer for encoded JSON that escapes what a terminal would act
// upon as \u: programs read the same values. Each call must pass whole
// characters.
func JSON(w io.Writer) io.Writer { return jsonWriter{w} }

type jsonWriter struct{ w io.Writer }

func (j jsonWriter) Write(p []byte) (int, error) {
	s := string(p)
	if strings.IndexFunc(s, func(r rune) bool { return r > 0x7e && unsafeRune(r) || r == 0x7f }) < 0 {
		return j.w.Write(p)
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r < 0x7f || !unsafeRune(r):
			b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	if _, err := io.WriteString(j.w, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}
