package telemetry

import "math"

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
	d.scan = scanner{src: payload}
	d.escaped = d.escaped[:0]
	d.field, d.inKey = FieldPayload, false
	d.keys.start()

	if d.scan.peek() != '{' {
		return d.notA("object")
	}
	d.scan.pos++
	var seen uint
	object := d.keys.next()
	if d.scan.peek() == '}' {
		d.scan.pos++
	} else {
		for more := true; more; {
			d.field, d.inKey = FieldPayload, false
			at, key, err := d.readKey()
			if err != nil {
				return err
			}
			if bit, index := payloadKey(key); bit != 0 {
				d.field = payloadFields[index]
				if seen&bit != 0 {
					return d.duplicateKey()
				}
				seen |= bit
				err = d.readField(bit, r)
			} else {
				d.key, d.inKey = key, true
				if !d.keys.add(object, key, at, payload, d.escaped) {
					return d.duplicateKey()
				}
				d.scan.peek()
				err = d.skip(1, false)
			}
			if err != nil {
				return err
			}
			if more, err = d.readMore('}'); err != nil {
				return err
			}
		}
	}
	d.field, d.inKey = FieldPayload, false
	if d.scan.peek(); d.scan.pos < len(payload) {
		return d.fault(faultSyntax)
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

// readField reads the value of the payload's own key into r.
func (d *Decoder) readField(key uint, r *Record) *DecodeError {
	c := d.scan.peek()
	switch key {
	case seenDeviceID:
		text, err := d.readText(c)
		if err != nil {
			return err
		}
		if text != r.DeviceID {
			return d.invalid(RuleMismatch, "differs from the entry's device_id")
		}
		return nil
	case seenTimestamp:
		text, err := d.readText(c)
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
		return d.readAttributes(c, r)
	}
	if c != '-' && c-'0' > 9 {
		return d.notA("number")
	}
	var n number
	if f := d.scan.number(&n); f != faultNone {
		return d.fault(f)
	}
	switch key {
	case seenLatitude:
		return d.degrees(&n, 90, "must lie from -90 to 90", &r.Latitude)
	case seenLongitude:
		return d.degrees(&n, 180, "must lie from -180 to 180", &r.Longitude)
	case seenAltitude:
		return d.real(&n, &r.Altitude)
	case seenAngle:
		return d.real(&n, &r.Angle)
	case seenSpeed:
		return d.real(&n, &r.Speed)
	case seenSatellites:
		return d.small(&n, math.MaxInt16, "must lie from 0 to 32767", &r.Satellites)
	default:
		return d.small(&n, 2, "must be 0, 1 or 2", &r.Priority)
	}
}

func (d *Decoder) degrees(n *number, limit float64, rule string, to *float64) *DecodeError {
	v, ok := n.float64()
	if !ok || v < -limit || v > limit {
		return d.invalid(RuleRange, rule)
	}
	*to = v
	return nil
}

func (d *Decoder) real(n *number, to *float32) *DecodeError {
	v, ok := n.float32()
	if !ok {
		return d.invalid(RuleRange, "does not fit a real")
	}
	*to = v
	return nil
}

func (d *Decoder) small(n *number, limit int64, rule string, to *int16) *DecodeError {
	v, ok := n.integer()
	if !ok {
		return d.invalid(RuleInteger, "is not a whole number, or too large for one")
	}
	if v < 0 || v > limit {
		return d.invalid(RuleRange, rule)
	}
	*to = int16(v)
	return nil
}

// readText reads a string value that begins with c.
func (d *Decoder) readText(c byte) (string, *DecodeError) {
	if c != '"' {
		return "", d.notA("string")
	}
	start, end, escapes, f := d.scan.text()
	if f != faultNone {
		return "", d.fault(f)
	}
	text, _ := d.unescape(start, end, escapes)
	return text, nil
}

// unescape returns the text between two positions, and its position for the keySet.
func (d *Decoder) unescape(start, end int, escapes bool) (string, int) {
	if !escapes {
		return d.scan.src[start:end], start
	}
	at := len(d.escaped)
	d.escaped = appendUnescaped(d.escaped, d.scan.src[start:end])
	return view(d.escaped[at:]), ^at
}

// readKey reads a key and its colon.
func (d *Decoder) readKey() (at int, key string, err *DecodeError) {
	if d.scan.peek() != '"' {
		return 0, "", d.fault(d.scan.unexpected())
	}
	start, end, escapes, f := d.scan.text()
	if f != faultNone {
		return 0, "", d.fault(f)
	}
	key, at = d.unescape(start, end, escapes)
	if f = d.scan.expect(':'); f != faultNone {
		return 0, "", d.fault(f)
	}
	return at, key, nil
}

// readMore reads what follows a member: a comma, or the end.
func (d *Decoder) readMore(end byte) (more bool, err *DecodeError) {
	switch d.scan.peek() {
	case ',':
		d.scan.pos++
		return true, nil
	case end:
		d.scan.pos++
		return false, nil
	}
	return false, d.fault(d.scan.unexpected())
}
