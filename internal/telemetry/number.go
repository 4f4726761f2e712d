package telemetry

import (
	"math"
	"strconv"
)

// Powers of ten that are exact, as Clinger's fast path needs them: one rounding
// of exact operands is the correctly rounded result.
var (
	exact64 = [...]float64{
		1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
		1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
	}
	exact32 = [...]float32{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10}
)

// float64 returns the nearest double; ok is false beyond their range. Minus zero
// becomes zero, which equals it in every comparison but not in print.
func (n *number) float64() (v float64, ok bool) {
	if n.exact && n.mantissa < 1<<53 && n.exp10 <= 0 && -n.exp10 < len(exact64) {
		v = float64(n.mantissa) / exact64[-n.exp10]
		if n.negative && v != 0 {
			v = -v
		}
		return v, true
	}
	v, err := strconv.ParseFloat(n.text, 64)
	if v == 0 {
		v = 0
	}
	return v, err == nil
}

// float32 returns the nearest real, rounded once from the decimal as Postgres does;
// ok is false beyond their range.
func (n *number) float32() (v float32, ok bool) {
	if n.exact && n.mantissa < 1<<24 && n.exp10 <= 0 && -n.exp10 < len(exact32) {
		v = float32(n.mantissa) / exact32[-n.exp10]
		if n.negative && v != 0 {
			v = -v
		}
		return v, true
	}
	wide, err := strconv.ParseFloat(n.text, 32)
	if wide == 0 {
		wide = 0
	}
	return float32(wide), err == nil
}

// integer returns the value of a number without a fractional part, in any
// notation: 1, 1.0 and 1e0 are the same number. A fraction too small for a double
// is none, as in JavaScript.
func (n *number) integer() (v int64, ok bool) {
	if n.exact && n.exp10 == 0 && n.mantissa < 1<<53 {
		v = int64(n.mantissa)
		if n.negative {
			v = -v
		}
		return v, true
	}
	wide, ok := n.float64()
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
func (n *number) isBounded() bool {
	if len(n.text) > maxDigits || -n.exp10 > maxDigitsAfter {
		return false
	}
	if n.exp10 > 0 && len(n.text)+n.exp10 > maxDigitsBefore {
		return false
	}
	if len(n.text)+max(n.exp10, 0) < surelyDouble {
		return true
	}
	_, ok := n.float64()
	return ok
}
