package telemetry

import (
	"encoding/base64"
	"strconv"
	"strings"
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

// readAttributes scans the attributes object, which begins with c, and sets
// r.Attributes to its stored form.
func (d *Decoder) readAttributes(c byte, r *Record) *DecodeError {
	if c != '{' {
		return d.notA("object")
	}
	s := &d.scan
	start := s.pos
	s.pos++
	d.members, d.converting, d.copied = 0, false, start
	if s.peek() == '}' {
		s.pos++
	} else {
		object := d.keys.next()
		for more := true; more; {
			d.inKey = false
			at, key, err := d.readKey()
			if err != nil {
				return err
			}
			d.key, d.inKey = key, true
			if err = d.countMember(object, key, at); err != nil {
				return err
			}
			if key == keyBigInt || key == keyBytes {
				return d.unknownSentinel()
			}
			if s.peek(); !s.plainInteger() {
				if err = d.skip(2, true); err != nil {
					return err
				}
			}
			if more, err = d.readMore('}'); err != nil {
				return err
			}
		}
		d.inKey = false
	}
	if !d.converting {
		r.Attributes = bytesOf(s.src[start:s.pos])
		return nil
	}
	d.out = append(d.out, s.src[d.copied:s.pos]...)
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

// countMember checks a key inside attributes against limits and duplicates.
func (d *Decoder) countMember(object uint32, key string, at int) *DecodeError {
	if err := d.countMembers(1); err != nil {
		return err
	}
	if !d.keys.add(object, key, at, d.scan.src, d.escaped) {
		return d.duplicateKey()
	}
	return nil
}

// convert replaces the value from position start to the scanner's position by
// what follow-up appends to d.out will write.
func (d *Decoder) convert(start int) {
	s := &d.scan
	if !d.converting {
		d.converting = true
		// The stored form is never longer than the published one.
		if need := len(s.src) - d.copied; cap(d.arena) < need {
			d.arena = make([]byte, 0, max(need, arenaChunk))
		}
		d.out = d.arena[:0]
	}
	d.out = append(d.out, s.src[d.copied:start]...)
	d.copied = s.pos
}

// skip checks the value at the scanner's position, which stands inside depth
// objects and arrays. Inside attributes it also converts sentinels.
func (d *Decoder) skip(depth int, stored bool) *DecodeError {
	s := &d.scan
	if s.pos >= len(s.src) {
		return d.fault(faultTruncated)
	}
	var f fault
	switch c := s.src[s.pos]; c {
	case '"':
		_, _, _, f = s.text()
	case '{':
		return d.skipObject(depth+1, stored)
	case '[':
		return d.skipArray(depth+1, stored)
	case 't':
		f = s.literal("true")
	case 'f':
		f = s.literal("false")
	case 'n':
		f = s.literal("null")
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return d.skipNumber(stored)
	default:
		f = faultSyntax
	}
	if f != faultNone {
		return d.fault(f)
	}
	return nil
}

func (d *Decoder) skipNumber(stored bool) *DecodeError {
	s := &d.scan
	var n number
	if f := s.number(&n); f != faultNone {
		return d.fault(f)
	}
	if stored && !n.isBounded() {
		return d.invalid(RuleRange, "has a number that is neither a double nor a 64-bit integer")
	}
	return nil
}

func (d *Decoder) skipArray(depth int, stored bool) *DecodeError {
	if depth > d.limits.MaxDepth {
		return d.tooDeep()
	}
	isBytes := d.bytes // of this array, not of what is inside it
	d.bytes = false
	s := &d.scan
	s.pos++
	if s.peek() == ']' {
		s.pos++
		return nil
	}
	elements := 0
	for more := true; more; {
		if elements++; stored && !isBytes {
			if err := d.countMembers(1); err != nil {
				return err
			}
		}
		s.peek()
		err := d.skip(depth, stored)
		if err != nil {
			return err
		}
		if more, err = d.readMore(']'); err != nil {
			return err
		}
	}
	d.elements = elements
	return nil
}

func (d *Decoder) skipObject(depth int, stored bool) *DecodeError {
	if depth > d.limits.MaxDepth {
		return d.tooDeep()
	}
	s := &d.scan
	start := s.pos
	s.pos++
	if s.peek() == '}' {
		s.pos++
		return nil
	}
	object := d.keys.next()
	var buffer legacyBuffer
	uncounted := 0
	for more, first := true, true; more; first = false {
		at, key, err := d.readKey()
		if err != nil {
			return err
		}
		c := s.peek()
		if stored {
			if err = d.countMember(object, key, at); err != nil {
				return err
			}
			if strings.HasPrefix(key, sentinelPrefix) {
				if !first || c != '"' || key != keyBigInt && key != keyBytes {
					return d.unknownSentinel()
				}
				return d.readSentinel(start, key)
			}
		} else if !d.keys.add(object, key, at, s.src, d.escaped) {
			return d.duplicateKey()
		}
		from := s.pos
		// The bytes of a legacy buffer become one value, so they are not counted.
		isBytes := stored && buffer.typed && key == "data" && c == '['
		d.bytes, d.elements = isBytes, 0
		if err = d.skip(depth, stored); err != nil {
			return err
		}
		if isBytes {
			uncounted += d.elements
		}
		if stored {
			buffer.member(key, s.src[from:s.pos])
		}
		if more, err = d.readMore('}'); err != nil {
			return err
		}
	}
	if buffer.is() {
		return d.convertBuffer(start, buffer.data)
	}
	return d.countMembers(uncounted)
}

// readSentinel reads value and end of a sentinel that begins at start.
func (d *Decoder) readSentinel(start int, key string) *DecodeError {
	text, err := d.readText('"')
	if err != nil {
		return err
	}
	if d.scan.peek() == ',' {
		return d.unknownSentinel()
	}
	if _, err = d.readMore('}'); err != nil {
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
	at := len(d.escaped)
	array := scanner{src: data, pos: 1}
	for array.peek() != ']' {
		if c := array.peek(); c != '-' && c-'0' > 9 {
			return d.unknownSentinel()
		}
		var n number
		array.number(&n)
		v, ok := n.integer()
		if !ok || v < 0 || v > 255 {
			return d.invalid(RuleByte, "has a Buffer with something other than a byte")
		}
		d.escaped = append(d.escaped, byte(v))
		if array.peek() == ',' {
			array.pos++
		}
	}
	d.convert(start)
	d.out = append(d.out, '"')
	d.out = base64.StdEncoding.AppendEncode(d.out, d.escaped[at:])
	d.out = append(d.out, '"')
	return nil
}

func (d *Decoder) unknownSentinel() *DecodeError {
	return d.err(ClassDecode, RuleSentinel, "has a sentinel that this version does not know")
}

func (d *Decoder) duplicateKey() *DecodeError {
	return d.invalid(RuleDuplicateKey, "has a key twice")
}

func (d *Decoder) tooDeep() *DecodeError {
	return d.err(ClassTooLarge, RuleDepth, "nested more than "+itoa(d.limits.MaxDepth)+" deep")
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

// notA returns the error of a value, at the scanner's position, of another type.
func (d *Decoder) notA(kind string) *DecodeError {
	at := d.scan.pos
	if err := d.skip(1, false); err != nil {
		return err // not even JSON, or beyond a limit
	}
	d.scan.pos = at
	return d.err(ClassDecode, RuleType, "is not "+article(kind))
}

func article(kind string) string {
	if kind == "object" {
		return "an object"
	}
	return "a " + kind
}

// fault returns a fault at the scanner's position as an error.
func (d *Decoder) fault(f fault) *DecodeError {
	at := " at byte " + strconv.Itoa(d.scan.pos)
	switch f {
	case faultTruncated:
		return d.err(ClassDecode, RuleTruncated, "ends early"+at)
	case faultUTF8:
		return d.err(ClassDecode, RuleUTF8, "is not UTF-8"+at)
	case faultNUL:
		return d.invalid(RuleNUL, "has a NUL"+at)
	case faultSurrogate:
		return d.invalid(RuleSurrogate, "has a lone surrogate"+at)
	default:
		return d.err(ClassDecode, RuleSyntax, "is not JSON"+at)
	}
}
