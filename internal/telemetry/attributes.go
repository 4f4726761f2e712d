package telemetry

import (
	"encoding/base64"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// How the publisher wraps values that JSON has no type for.
const (
	keyBigInt = "__bigint"
	keyBytes  = "__buffer_b64"
	// Keys with this prefix, in any object inside attributes, belong to the
	// publisher: an object that has one and is no known sentinel comes from a newer
	// publisher.
	sentinelPrefix = "__"
)

// arenaChunk is the size of one allocation for converted attributes.
const arenaChunk = 32 << 10

// readAttributes reads the attributes object and sets r.Attributes to its stored
// form.
func (d *Decoder) readAttributes(kind jsontext.Kind, r *Record) *DecodeError {
	if kind != '{' {
		return d.notA("object")
	}
	if err := d.token(); err != nil {
		return err
	}
	start := d.read.at() - 1
	d.members, d.converting, d.copied = 0, false, start
	for d.read.dec.PeekKind() == '"' {
		d.inKey = false
		key, err := d.text()
		if err != nil {
			return err
		}
		d.key, d.inKey = key, true
		if err = d.countMembers(1); err != nil {
			return err
		}
		if key == keyBigInt || key == keyBytes {
			return d.unknownSentinel()
		}
		if _, err = d.skip(true); err != nil {
			return err
		}
	}
	if d.read.atEnd() {
		d.inKey = false
	}
	if err := d.token(); err != nil {
		return err
	}
	end := d.read.at()
	if !d.converting {
		r.Attributes = bytesOf(d.read.src[start:end])
		return nil
	}
	d.out = append(d.out, d.read.src[d.copied:end]...)
	r.Attributes = d.out[:len(d.out):len(d.out)]
	d.arena = d.out[len(d.out):]
	return nil
}

// countMembers adds n keys or elements inside attributes and checks their number.
func (d *Decoder) countMembers(n int) *DecodeError {
	if d.members += n; d.members > d.limits.MaxAttributes {
		d.inKey = false // one fingerprint, whichever attribute exceeds the limit
		return d.err(ClassTooLarge, RuleMaxAttributes, "more than "+itoa(d.limits.MaxAttributes)+" attributes")
	}
	return nil
}

// convert replaces the value from position start to the reader's position by
// what follow-up appends to d.out will write.
func (d *Decoder) convert(start int) {
	if !d.converting {
		d.converting = true
		// The stored form is never longer than the published one.
		if need := len(d.read.src) - d.copied; cap(d.arena) < need {
			d.arena = make([]byte, 0, max(need, arenaChunk))
		}
		d.out = d.arena[:0]
	}
	d.out = append(d.out, d.read.src[d.copied:start]...)
	d.copied = d.read.at()
}

// skip checks the next value and returns it as it is written. Inside attributes it
// also converts sentinels.
func (d *Decoder) skip(stored bool) (string, *DecodeError) {
	switch d.read.dec.PeekKind() {
	case '{':
		return d.skipObject(stored)
	case '[':
		return d.skipArray(stored)
	case '"':
		if d.read.hasNUL {
			return d.text() // compared with nothing
		}
	case '0':
		raw, err := d.raw()
		if err == nil && stored && !isBounded(raw) {
			err = d.invalid(RuleRange, "has a number that is neither a double nor a 64-bit integer")
		}
		return raw, err
	}
	return d.raw()
}

// enter reads the beginning of an object or array and returns its position.
func (d *Decoder) enter() (start int, err *DecodeError) {
	if d.read.dec.StackDepth() >= d.limits.MaxDepth {
		return 0, d.err(ClassTooLarge, RuleDepth, "nested more than "+itoa(d.limits.MaxDepth)+" deep")
	}
	err = d.token()
	return d.read.at() - 1, err
}

// leave reads the end of what began at start.
func (d *Decoder) leave(start int) (string, *DecodeError) {
	if err := d.token(); err != nil {
		return "", err
	}
	return d.read.src[start:d.read.at()], nil
}

func (d *Decoder) skipArray(stored bool) (string, *DecodeError) {
	isBytes := d.bytes // of this array, not of what is inside it
	d.bytes = false
	start, err := d.enter()
	if err != nil {
		return "", err
	}
	elements := 0
	for d.read.dec.PeekKind() != ']' {
		if elements++; stored && !isBytes {
			if err := d.countMembers(1); err != nil {
				return "", err
			}
		}
		if _, err := d.skip(stored); err != nil {
			return "", err
		}
	}
	d.elements = elements
	return d.leave(start)
}

func (d *Decoder) skipObject(stored bool) (string, *DecodeError) {
	start, err := d.enter()
	if err != nil {
		return "", err
	}
	var buffer legacyBuffer
	uncounted := 0
	for first := true; d.read.dec.PeekKind() == '"'; first = false {
		key, err := d.text()
		if err != nil {
			return "", err
		}
		kind := d.read.dec.PeekKind()
		if stored {
			if err = d.countMembers(1); err != nil {
				return "", err
			}
			if strings.HasPrefix(key, sentinelPrefix) {
				if !first || kind != '"' || key != keyBigInt && key != keyBytes {
					return "", d.unknownSentinel()
				}
				return "", d.readSentinel(start, key)
			}
		}
		// The bytes of a legacy buffer become one value, so they are not counted.
		isBytes := stored && buffer.typed && key == "data" && kind == '['
		d.bytes, d.elements = isBytes, 0
		value, err := d.skip(stored)
		if err != nil {
			return "", err
		}
		if isBytes {
			uncounted += d.elements
		}
		buffer.member(key, value)
	}
	raw, err := d.leave(start)
	switch {
	case err != nil:
		return "", err
	case stored && buffer.is():
		return raw, d.convertBuffer(start, buffer.data)
	}
	return raw, d.countMembers(uncounted)
}

// readSentinel reads value and end of a sentinel that begins at start.
func (d *Decoder) readSentinel(start int, key string) *DecodeError {
	text, err := d.text()
	if err != nil {
		return err
	}
	if d.read.dec.PeekKind() == '"' {
		return d.unknownSentinel()
	}
	if err = d.token(); err != nil {
		return err
	}
	if key == keyBigInt {
		if !isDecimal(text) {
			return d.invalid(RuleDigits, "has a __bigint that is not a decimal integer")
		}
	} else if !isBase64(text) {
		return d.invalid(RuleBase64, "has a __buffer_b64 that is not padded standard base64")
	}
	d.convert(start)
	d.out = append(d.out, '"')
	d.out = append(d.out, text...)
	d.out = append(d.out, '"')
	return nil
}

// isDecimal reports whether s is an integer as BigInt prints it.
func isDecimal(s string) bool {
	if len(s) > 0 && s[0] == '-' {
		if s = s[1:]; s == "0" {
			return false
		}
	}
	if len(s) == 0 || s[0] == '0' && len(s) > 1 {
		return false
	}
	for i := range len(s) {
		if s[i]-'0' > 9 {
			return false
		}
	}
	return true
}

var base64Digits = func() (digits [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		digits[c] = true
	}
	return digits
}()

// isBase64 reports whether s is the one padded standard encoding of some bytes.
func isBase64(s string) bool {
	if len(s)%4 != 0 {
		return false
	}
	body := strings.TrimSuffix(strings.TrimSuffix(s, "="), "=")
	for i := range len(body) {
		if !base64Digits[body[i]] {
			return false
		}
	}
	if len(body) == len(s) {
		return true
	}
	// The unused bits of the last digit must be zero.
	var last [3]byte
	_, err := base64.StdEncoding.Strict().Decode(last[:], bytesOf(s[len(s)-4:]))
	return err == nil
}

// legacyBuffer recognises {"type":"Buffer","data":[…]}, which Node.js prints for
// bytes by default.
type legacyBuffer struct {
	members int
	typed   bool
	data    string
}

func (b *legacyBuffer) member(key, value string) {
	b.members++
	switch key {
	case "type":
		b.typed = value == `"Buffer"`
	case "data":
		b.data = value
	}
}

func (b *legacyBuffer) is() bool { return b.members == 2 && b.typed && b.data != "" }

// convertBuffer replaces the legacy buffer that begins at start by the base64
// of data, its array, which is known to be good JSON.
func (d *Decoder) convertBuffer(start int, data string) *DecodeError {
	if data[0] != '[' {
		return d.unknownSentinel()
	}
	d.octets = d.octets[:0]
	for element := range strings.SplitSeq(data[1:len(data)-1], ",") {
		element = strings.Trim(element, " \t\r\n")
		if element == "" && len(d.octets) == 0 {
			break // an empty array
		}
		if c := element[0]; c != '-' && c-'0' > 9 {
			return d.unknownSentinel()
		}
		v, ok := asInteger(element)
		if !ok || v < 0 || v > 255 {
			return d.invalid(RuleByte, "has a Buffer with something other than a byte")
		}
		d.octets = append(d.octets, byte(v))
	}
	d.convert(start)
	d.out = append(d.out, '"')
	d.out = base64.StdEncoding.AppendEncode(d.out, d.octets)
	d.out = append(d.out, '"')
	return nil
}

func (d *Decoder) unknownSentinel() *DecodeError {
	return d.err(ClassDecode, RuleSentinel, "has a sentinel that this version does not know")
}

func (d *Decoder) duplicateKey() *DecodeError {
	return d.invalid(RuleDuplicateKey, "has a key twice")
}

func (d *Decoder) invalid(rule, reason string) *DecodeError { return d.err(ClassInvalid, rule, reason) }

// err returns a DecodeError at the field being read.
func (d *Decoder) err(class Class, rule, reason string) *DecodeError {
	field := d.field
	if d.inKey {
		field = indexed(field, d.key)
	}
	return &DecodeError{class, field, rule, reason}
}

// notA returns the error of the next value, which is of another type.
func (d *Decoder) notA(kind string) *DecodeError {
	if _, err := d.skip(false); err != nil {
		return err // not even JSON, or beyond a limit
	}
	return d.err(ClassDecode, RuleType, "is not "+article(kind))
}

func article(kind string) string {
	if kind == "object" {
		return "an object"
	}
	return "a " + kind
}
