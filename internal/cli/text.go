package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// text returns a value on one line.
func text(v any) string {
	if v == nil {
		return "unknown"
	}
	return VisibleLine(strings.NewReplacer("\n", " ", "\t", " ").Replace(fmt.Sprint(v)))
}

// Number is a count, printed in groups of three digits as text.
type Number int64

func (n Number) String() string { return Thousands(int64(n)) }

// Round keeps what means something of a measured number.
func Round(x float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(x*scale) / scale
}

// Count returns a count with its noun, in the plural unless it is 1.
func Count[T ~int | ~int64](n T, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if stem, ok := strings.CutSuffix(thing, "y"); ok {
		thing = stem + "ie"
	}
	return Number(n).String() + " " + thing + "s"
}

// CountWere returns Count with the matching verb.
func CountWere[T ~int | ~int64](n T, thing string) string {
	if n == 1 {
		return Count(n, thing) + " was"
	}
	return Count(n, thing) + " were"
}

// Thousands returns a number with its digits in groups of three.
func Thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// OrUnknown returns *n for a table, and the cell "unknown" for nil.
func OrUnknown[T any](n *T) any {
	if n == nil {
		return Cell{Value: nil, Color: Yellow}
	}
	if number, ok := any(*n).(int64); ok {
		return Number(number)
	}
	return fmt.Sprint(*n)
}

// Wrap breaks s at spaces into lines of at most width characters; a longer
// word gets a line of its own.
func Wrap(s string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text(s)) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
