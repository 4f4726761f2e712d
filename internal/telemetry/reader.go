package telemetry

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/go-json-experiment/json/jsontext"
)

// reader reads a payload from left to right. jsontext takes RFC 8259, strictly:
// duplicate keys, text that is not UTF-8 and lone surrogates are errors. NUL, which
// jsonb has no place for, is one here.
type reader struct {
	src     string
	buf     bytes.Buffer // over src; jsontext reads from it in place and never writes
	dec     *jsontext.Decoder
	escapes bool // an escape may be in a string
	hasNUL  bool // one of NUL
}

func newReader() *reader {
	r := &reader{}
	r.dec = jsontext.NewDecoder(&r.buf)
	return r
}

// reset begins a payload.
func (r *reader) reset(src string) {
	r.src, r.escapes = src, strings.IndexByte(src, '\\') >= 0
	r.hasNUL = r.escapes && strings.Contains(src, `\u0000`)
	r.buf = *bytes.NewBuffer(bytesOf(src))
	r.dec.Reset(&r.buf)
}

// at is the position behind what was read last.
func (r *reader) at() int { return int(r.dec.InputOffset()) }

// atEnd reports whether the object's last member is complete: what follows is its
// end, or a comma.
func (r *reader) atEnd() bool {
	rest := strings.TrimLeft(r.src[r.at():], " \t\r\n")
	return rest == "" || rest[0] == '}' || rest[0] == ','
}

// view returns b as a string without a copy; b must not be written to any more.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf returns the memory of s, which must not be written to.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

func itoa(n int) string { return strconv.Itoa(n) }

// raw reads a value as it is written.
func (d *Decoder) raw() (string, *DecodeError) {
	v, err := d.read.dec.ReadValue()
	if err != nil {
		return "", d.fault(err)
	}
	return view(v), nil
}

// token reads the beginning or the end of an object or array.
func (d *Decoder) token() *DecodeError {
	if _, err := d.read.dec.ReadToken(); err != nil {
		return d.fault(err)
	}
	return nil
}

// text reads a string, which may be a key, and returns what it denotes.
func (d *Decoder) text() (string, *DecodeError) {
	raw, err := d.raw()
	if err != nil {
		return "", err
	}
	text := raw[1 : len(raw)-1]
	if !d.read.escapes || strings.IndexByte(text, '\\') < 0 {
		return text, nil
	}
	b, _ := jsontext.AppendUnquote(nil, raw) // it was read as a good string
	if d.read.hasNUL && bytes.IndexByte(b, 0) >= 0 {
		return "", d.invalid(RuleNUL, "has a NUL before byte "+itoa(d.read.at()))
	}
	return view(b), nil
}

// fault tells what is wrong with the JSON. A duplicate key is at the key.
func (d *Decoder) fault(err error) *DecodeError {
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) || errors.Is(err, io.ErrUnexpectedEOF) {
		return d.err(ClassDecode, RuleTruncated, "ends early")
	}
	at := int(syntax.ByteOffset)
	where := " at byte " + itoa(at)
	rest := d.read.src[min(at, len(d.read.src)):]
	first, size := utf8.DecodeRuneInString(rest)
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		if !d.inKey {
			d.at(syntax.JSONPointer.LastToken())
		}
		return d.duplicateKey()
	case len(rest) >= 4 && rest[0] == '\\' && rest[1] == 'u' && rest[2]|0x20 == 'd' && rest[3]|0x20 >= '8':
		return d.invalid(RuleSurrogate, "has a lone surrogate"+where)
	case first == utf8.RuneError && size == 1:
		return d.err(ClassDecode, RuleUTF8, "is not UTF-8"+where)
	}
	return d.err(ClassDecode, RuleSyntax, "is not JSON"+where)
}
