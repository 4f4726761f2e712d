package telemetry

import (
	"math"
	"strconv"
	"strings"
)

// asDouble returns the nearest double of a JSON number; ok is false beyond their
// range. Minus zero becomes zero, which equals it in every comparison but not in print.
func asDouble(n string) (v float64, ok bool) {
	v, err := strconv.ParseFloat(n, 64)
	return v + 0, err == nil
}

// asReal returns the nearest real, rounded once from the decimal as Postgres does;
// ok is false beyond their range.
func asReal(n string) (v float32, ok bool) {
	wide, err := strconv.ParseFloat(n, 32)
	return float32(wide + 0), err == nil
}

// asInteger returns the value of a number without a fractional part, in any
// notation: 1, 1.0 and 1e0 are the same number. A fraction too small for a double
// is none, as in JavaScript.
func asInteger(n string) (v int64, ok bool) {
	wide, ok := asDouble(n)
	if !ok || wide != math.Trunc(wide) || math.Abs(wide) >= 1<<53 {
		return 0, false
	}
	return int64(wide), true
}

// Bounds of a number inside attributes: what a double or a 64-bit integer can be.
// jsonb keeps numbers as numeric, which stores 1e131000 in a few bytes and prints
// it in 131,001: a row of such numbers could be written and never read again.
const (
	maxDigits       = 400 // of a number as written; the smallest double needs 341 after the point
	maxDigitsAfter  = 345
	maxDigitsBefore = 330
	surelyDouble    = 300 // fewer digits than this cannot leave the range of a double
)

// isBounded reports whether a number prints in at most maxDigits characters and
// lies within the range of a double. It counts digits as written.
func isBounded(n string) bool {
	e := max(strings.IndexByte(n, 'e'), strings.IndexByte(n, 'E'))
	if e < 0 && len(n) < surelyDouble {
		return true
	}
	mantissa, power := n, 0
	if e >= 0 {
		mantissa = n[:e]
		power, _ = strconv.Atoi(n[e+1:]) // saturates
		power = max(-maxExponent, min(power, maxExponent))
	}
	if _, fraction, ok := strings.Cut(mantissa, "."); ok {
		power -= len(fraction)
	}
	if len(n) > maxDigits || -power > maxDigitsAfter || power > 0 && len(n)+power > maxDigitsBefore {
		return false
	}
	if len(n)+max(power, 0) < surelyDouble {
		return true
	}
	_, ok := asDouble(n)
	return ok
}

// maxExponent is where exponents saturate: far beyond every range that is
// checked, even after a mebibyte of digits.
const maxExponent = 1 << 30
