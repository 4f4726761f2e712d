package oracle

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"github.com/trmtracking/processor/loadtest/fleet"
)

// attributesOf returns what the attributes of a message are stored as: numbers
// with the digits that identify the double, null for what JSON has no number
// for, big integers as their decimal digits, bytes as base64 text.
func attributesOf(m *fleet.Message) map[string]any {
	stored := make(map[string]any, len(m.Attributes))
	for _, a := range m.Attributes {
		var v any
		switch a.Kind {
		case fleet.KindNumber:
			if !math.IsNaN(a.Number) && !math.IsInf(a.Number, 0) {
				v = json.Number(strconv.FormatFloat(a.Number, 'g', -1, 64))
			}
		case fleet.KindBytes, fleet.KindLegacyBytes:
			v = base64.StdEncoding.EncodeToString(a.Bytes)
		default:
			v = text(a.Text)
		}
		stored[text(a.Key)] = v
	}
	return stored
}

// text returns a string as the publisher reads it: each byte that is no UTF-8
// becomes U+FFFD.
func text(s string) string {
	var b strings.Builder
	for _, c := range s {
		b.WriteRune(c)
	}
	return b.String()
}

// sameAttributes reports whether a stored object has exactly these members.
func sameAttributes(want map[string]any, stored []byte) bool {
	got, err := parseJSON(stored)
	return err == nil && sameValue(want, got)
}
