package telemetry

import (
	"unicode"
	"unicode/utf8"
)

// Limits bound the cost of one entry.
type Limits struct {
	MaxPayloadBytes int // length of the payload field
	MaxDepth        int // objects and arrays inside each other, the payload itself included
	MaxAttributes   int // members of attributes, those of objects inside it included
}

// DefaultLimits are far above the messages of a tracker.
func DefaultLimits() Limits {
	return Limits{MaxPayloadBytes: 1 << 20, MaxDepth: 16, MaxAttributes: 1024}
}

// Decoder turns entries into records. It belongs to one goroutine; its buffers
// are reused from entry to entry.
type Decoder struct {
	limits Limits
	read   *reader
	arena  []byte // tail of the chunk that converted attributes are appended to
	octets []byte // of a legacy buffer

	// Position of the scan, for errors.
	field string // "" inside an unknown payload field
	key   string // of the attribute or the unknown payload field
	inKey bool

	// The attributes being scanned.
	members    int  // keys and array elements, at most Limits.MaxAttributes
	bytes      bool // the next array is the data of a legacy buffer
	elements   int  // of the array that ended last
	converting bool
	out        []byte
	copied     int // position up to which out is complete
}

// NewDecoder returns a Decoder; a limit of 0 means the default.
func NewDecoder(limits Limits) *Decoder {
	def := DefaultLimits()
	if limits.MaxPayloadBytes <= 0 {
		limits.MaxPayloadBytes = def.MaxPayloadBytes
	}
	if limits.MaxDepth <= 0 {
		limits.MaxDepth = def.MaxDepth
	}
	if limits.MaxAttributes <= 0 {
		limits.MaxAttributes = def.MaxAttributes
	}
	return &Decoder{limits: limits, read: newReader()}
}

// Decode fills r from e, or returns a *DecodeError and leaves r undefined. The
// same entry always gives the same outcome.
//
// r.DeviceID and r.Attributes may share the memory of the entry's fields, and
// r.Attributes may lie in a chunk shared with other records of this decoder.
// Neither is ever overwritten, so a record stays valid as long as it is held; clone
// either to keep it for long, or it pins that memory. r.Attributes is read-only.
//
// The payload is authoritative. Of the entry's own fields device_id must equal
// the payload's, codec is taken unchanged, and ts is ignored: it is a copy for
// tools, and neither its absence nor its value changes a record. Where a field
// occurs twice the first counts.
func (d *Decoder) Decode(e *Entry, r *Record) error {
	if err := d.decode(e, r); err != nil {
		return err // a nil *DecodeError must not become a non-nil error
	}
	return nil
}

func (d *Decoder) decode(e *Entry, r *Record) *DecodeError {
	device, ok := e.Field(FieldDeviceID)
	if !ok {
		return missingField(FieldDeviceID)
	}
	if err := checkDeviceID(device); err != nil {
		return err
	}
	codec, ok := e.Field(FieldCodec)
	if !ok {
		return missingField(FieldCodec)
	}
	codec, err := checkCodec(codec)
	if err != nil {
		return err
	}
	payload, ok := e.Field(FieldPayload)
	if !ok {
		return missingField(FieldPayload)
	}
	if len(payload) > d.limits.MaxPayloadBytes {
		return &DecodeError{
			ClassTooLarge, FieldPayload, RulePayloadBytes,
			"longer than the limit of " + itoa(d.limits.MaxPayloadBytes) + " bytes",
		}
	}
	*r = Record{ID: e.ID, DeviceID: device, Codec: codec, StreamUS: e.streamTime().UnixMicro()}
	err = d.decodePayload(payload, r)
	d.read.reset("") // do not pin the entry's memory
	d.key, d.out = "", nil
	return err
}

func missingField(name string) *DecodeError {
	return &DecodeError{ClassInvalid, name, RuleMissing, "the entry has no such field"}
}

const (
	maxDeviceIDRunes = 64
	maxCodecRunes    = 16
)

func checkDeviceID(s string) *DecodeError {
	n := 0
	for i := 0; i < len(s); n++ {
		c := s[i]
		if c < utf8.RuneSelf {
			if c < ' ' || c == 0x7f {
				return &DecodeError{ClassInvalid, FieldDeviceID, RuleText, "has a control character"}
			}
			i++
			continue
		}
		c32, size := utf8.DecodeRuneInString(s[i:])
		if c32 == utf8.RuneError && size == 1 {
			return &DecodeError{ClassInvalid, FieldDeviceID, RuleUTF8, "is not valid UTF-8"}
		}
		if unicode.IsControl(c32) {
			return &DecodeError{ClassInvalid, FieldDeviceID, RuleText, "has a control character"}
		}
		if i += size; n > maxDeviceIDRunes {
			break
		}
	}
	if n == 0 || n > maxDeviceIDRunes {
		return &DecodeError{ClassInvalid, FieldDeviceID, RuleText, "must have 1 to 64 characters"}
	}
	return nil
}

// checkCodec returns a constant for known codecs, so that records do not
// pin a server reply for two bytes. Other vendors bring codecs of their own.
func checkCodec(s string) (string, *DecodeError) {
	switch s {
	case "8":
		return "8", nil
	case "8E":
		return "8E", nil
	case "16":
		return "16", nil
	}
	n := 0
	for i, c := range s {
		if c == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return "", &DecodeError{ClassInvalid, FieldCodec, RuleUTF8, "is not valid UTF-8"}
			}
		}
		if n++; !unicode.IsPrint(c) || n > maxCodecRunes {
			n = 0
			break
		}
	}
	if n == 0 {
		return "", &DecodeError{ClassInvalid, FieldCodec, RuleText, "must have 1 to 16 printable characters"}
	}
	return s, nil
}
