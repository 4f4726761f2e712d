package telemetry

import (
	"errors"
	"io"
	"math"

	"github.com/go-json-experiment/json/jsontext"
)

// The keys of the payload, one bit each.
const (
	seenDeviceID = 1 << iota
	seenTimestamp
	seenLatitude
	seenLongitude
	seenAltitude
	seenAngle
	seenSpeed
	seenSatellites
	seenPriority
	seenAttributes
	seenAll = 1<<iota - 1
)

// payloadFields are the names in errors, in the order of the bits.
var payloadFields = [...]string{
	"payload.device_id", "payload.timestamp", "payload.latitude", "payload.longitude", "payload.altitude",
	"payload.angle", "payload.speed", "payload.satellites", "payload.priority", "payload.attributes",
}

// payloadKey returns the bit of a key and its index, or 0 for unknown keys.
func payloadKey(key string) (bit uint, index int) {
	switch key {
	case "device_id":
		return seenDeviceID, 0
	case "timestamp":
		return seenTimestamp, 1
	case "latitude":
		return seenLatitude, 2
	case "longitude":
		return seenLongitude, 3
	case "altitude":
		return seenAltitude, 4
	case "angle":
		return seenAngle, 5
	case "speed":
		return seenSpeed, 6
	case "satellites":
		return seenSatellites, 7
	case "priority":
		return seenPriority, 8
	case "attributes":
		return seenAttributes, 9
	}
	return 0, 0
}

func (d *Decoder) decodePayload(payload string, r *Record) *DecodeError {
	d.read.reset(payload)
	d.field, d.inKey = FieldPayload, false
	if d.read.dec.PeekKind() != '{' {
		return d.notA("object")
	}
	if err := d.token(); err != nil {
		return err
	}
	var seen uint
	for d.read.dec.PeekKind() == '"' {
		d.field, d.inKey = FieldPayload, false
		key, err := d.text()
		if err != nil {
			return err
		}
		d.at(key)
		if bit, _ := payloadKey(key); bit != 0 {
			seen |= bit
			err = d.readField(bit, r)
		} else {
			_, err = d.skip(false)
		}
		if err != nil {
			return err
		}
	}
	if d.read.atEnd() {
		d.field, d.inKey = FieldPayload, false
	}
	if err := d.token(); err != nil {
		return err
	}
	if _, err := d.read.dec.ReadToken(); err == nil {
		return d.err(ClassDecode, RuleSyntax, "is not JSON: more than one value")
	} else if !errors.Is(err, io.EOF) {
		return d.fault(err)
	}
	if seen != seenAll {
		for i, field := range payloadFields {
			if seen&(1<<i) == 0 {
				return &DecodeError{ClassDecode, field, RuleMissing, "is missing"}
			}
		}
	}
	return nil
}

// at makes a member the place that errors name: the payload's own or an unknown
// one, or an attribute.
func (d *Decoder) at(key string) {
	if bit, index := payloadKey(key); bit != 0 && d.field == FieldPayload {
		d.field = payloadFields[index]
		return
	}
	d.key, d.inKey = key, true
}

// readField reads the value of the payload's own key into r.
func (d *Decoder) readField(key uint, r *Record) *DecodeError {
	kind := d.read.dec.PeekKind()
	switch key {
	case seenDeviceID:
		text, err := d.readText(kind)
		if err != nil {
			return err
		}
		if text != r.DeviceID {
			return d.invalid(RuleMismatch, "differs from the entry's device_id")
		}
		return nil
	case seenTimestamp:
		text, err := d.readText(kind)
		if err != nil {
			return err
		}
		us, ok := parseTime(text)
		if !ok {
			return d.invalid(RuleTime, "is not a time by RFC 3339")
		}
		if us < minTime || us >= maxTime {
			return d.invalid(RuleRange, "must lie from 1970 up to 2100")
		}
		r.TimeUS = us
		return nil
	case seenAttributes:
		return d.readAttributes(kind, r)
	}
	if kind != '0' {
		return d.notA("number")
	}
	n, err := d.raw()
	if err != nil {
		return err
	}
	switch key {
	case seenLatitude:
		return d.degrees(n, 90, "must lie from -90 to 90", &r.Latitude)
	case seenLongitude:
		return d.degrees(n, 180, "must lie from -180 to 180", &r.Longitude)
	case seenAltitude:
		return d.single(n, &r.Altitude)
	case seenAngle:
		return d.single(n, &r.Angle)
	case seenSpeed:
		return d.single(n, &r.Speed)
	case seenSatellites:
		return d.small(n, math.MaxInt16, "must lie from 0 to 32767", &r.Satellites)
	default:
		return d.small(n, 2, "must be 0, 1 or 2", &r.Priority)
	}
}

func (d *Decoder) degrees(n string, limit float64, rule string, to *float64) *DecodeError {
	v, ok := asDouble(n)
	if !ok || v < -limit || v > limit {
		return d.invalid(RuleRange, rule)
	}
	*to = v
	return nil
}

func (d *Decoder) single(n string, to *float32) *DecodeError {
	v, ok := asReal(n)
	if !ok {
		return d.invalid(RuleRange, "does not fit a real")
	}
	*to = v
	return nil
}

func (d *Decoder) small(n string, limit int64, rule string, to *int16) *DecodeError {
	v, ok := asInteger(n)
	if !ok {
		return d.invalid(RuleInteger, "is not a whole number, or too large for one")
	}
	if v < 0 || v > limit {
		return d.invalid(RuleRange, rule)
	}
	*to = int16(v)
	return nil
}

// readText reads a string value.
func (d *Decoder) readText(kind jsontext.Kind) (string, *DecodeError) {
	if kind != '"' {
		return "", d.notA("string")
	}
	return d.text()
}
