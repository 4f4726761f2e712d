package fleet

import (
	"math"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/trmtracking/processor/internal/telemetry"
)

// ClassOf returns the class under which a message has to be dead-lettered because it
// says what cannot be, or "" for one that has to be stored. Recorded tracks
// hold both. The rules are written down here a second time on purpose: they are
// what the service is held against.
func ClassOf(m *Message) telemetry.Class {
	earliest, latest := time.Unix(0, 0), time.Date(2100, time.January, 1, 0, 0, 0, 0, time.UTC)
	for _, x := range [...]float64{m.Latitude, m.Longitude, m.Altitude, m.Angle, m.Speed} {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return telemetry.ClassDecode // JSON has null for it
		}
	}
	valid := textOf(m.DeviceID, 64) && textOf(m.Codec, 16) &&
		!m.Time.Before(earliest) && m.Time.Before(latest) &&
		math.Abs(m.Latitude) <= 90 && math.Abs(m.Longitude) <= 180 &&
		fitsReal(m.Altitude) && fitsReal(m.Angle) && fitsReal(m.Speed) &&
		m.Satellites >= 0 && m.Satellites <= math.MaxInt16 &&
		m.Priority >= 0 && m.Priority <= 2
	if !valid {
		return telemetry.ClassInvalid
	}
	return ""
}

// fitsReal reports whether x is a finite number after rounding to a column of
// type real.
func fitsReal(x float64) bool { return !math.IsInf(float64(float32(x)), 0) }

// textOf reports whether s is 1 to longest characters without control
// characters.
func textOf(s string, longest int) bool {
	if !utf8.ValidString(s) {
		return false
	}
	n := 0
	for _, c := range s {
		if unicode.IsControl(c) {
			return false
		}
		n++
	}
	return n >= 1 && n <= longest
}
