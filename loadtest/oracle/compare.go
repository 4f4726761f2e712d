package oracle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// differences names the fields in which a row differs from the one that a
// message makes, as "field: want …, got …".
func differences(want *Row, attributes map[string]any, got *Row) []string {
	var d []string
	field := func(name string, same bool, want, got any) {
		if !same {
			d = append(d, fmt.Sprintf("%s: want %v, got %v", name, want, got))
		}
	}
	field("ingested_at", want.IngestedUS == got.IngestedUS, clock(want.IngestedUS), clock(got.IngestedUS))
	field("latitude", want.Latitude == got.Latitude, want.Latitude, got.Latitude)
	field("longitude", want.Longitude == got.Longitude, want.Longitude, got.Longitude)
	field("altitude", want.Altitude == got.Altitude, want.Altitude, got.Altitude)
	field("angle", want.Angle == got.Angle, want.Angle, got.Angle)
	field("speed", want.Speed == got.Speed, want.Speed, got.Speed)
	field("satellites", want.Satellites == got.Satellites, want.Satellites, got.Satellites)
	field("priority", want.Priority == got.Priority, want.Priority, got.Priority)
	field("codec", want.Codec == got.Codec, want.Codec, got.Codec)
	field("faulty", want.Faulty == got.Faulty, want.Faulty, got.Faulty)
	if !sameAttributes(attributes, got.Attributes) {
		field("attributes", false, string(want.Attributes), string(got.Attributes))
	}
	return d
}

func parseJSON(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return v, nil
}

func sameValue(a, b any) bool {
	switch x := a.(type) {
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for key, v := range x {
			w, ok := y[key]
			if !ok || !sameValue(v, w) {
				return false
			}
		}
		return true
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for i := range x {
			if !sameValue(x[i], y[i]) {
				return false
			}
		}
		return true
	case json.Number:
		y, ok := b.(json.Number)
		return ok && sameNumber(string(x), string(y))
	default:
		return a == b
	}
}

// sameNumber compares two JSON numbers as decimal fractions, without rounding
// either.
func sameNumber(a, b string) bool {
	return a == b || decimalOf(a) == decimalOf(b)
}

// decimal is 0.digits times ten to the exponent; digits neither begin nor end
// with a zero.
type decimal struct {
	negative bool
	digits   string
	exponent int
}

func decimalOf(s string) decimal {
	var d decimal
	s, d.negative = strings.CutPrefix(s, "-")
	if at := strings.IndexAny(s, "eE"); at >= 0 {
		e, err := strconv.Atoi(s[at+1:])
		if err != nil {
			return decimal{digits: s} // beyond any sense: equal to the same text only
		}
		d.exponent, s = e, s[:at]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	d.exponent += len(whole)
	digits := whole + fraction
	trimmed := strings.TrimLeft(digits, "0")
	d.exponent -= len(digits) - len(trimmed)
	d.digits = strings.TrimRight(trimmed, "0")
	if d.digits == "" {
		return decimal{}
	}
	return d
}
