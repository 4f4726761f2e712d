package console

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
)

// functions are what the templates format with. What is unknown is shown as
// unknown.
var functions = template.FuncMap{
	"num":     number,
	"dec":     decimals,
	"ago":     ago,
	"utc":     func(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.999Z") },
	"seconds": seconds,
	"bytes":   byteCount,
	"text":    visible,
	"cut":     cutText,
	"lines":   func(s string) []string { return strings.Split(strings.TrimSuffix(s, "\n"), "\n") },
	"dict":    dict,
	"count":   func(n int, thing string) string { return cli.Count(n, thing) },
	"yes":     func(b *bool) bool { return b != nil && *b },
	"root":    func() string { return Root }, // each console has its own
	"inc":     func(n int) int { return n + 1 },
}

const unknown = "unknown"

// number groups digits; nil is unknown.
func number(v any) string {
	switch n := v.(type) {
	case int:
		return cli.Thousands(int64(n))
	case int64:
		return cli.Thousands(n)
	case uint64:
		return cli.Thousands(int64(min(n, math.MaxInt64)))
	case *int64:
		if n == nil {
			return unknown
		}
		return cli.Thousands(*n)
	case *int:
		if n == nil {
			return unknown
		}
		return cli.Thousands(int64(*n))
	case float64:
		return cli.Thousands(int64(math.Round(n)))
	case *float64:
		if n == nil {
			return unknown
		}
		return cli.Thousands(int64(math.Round(*n)))
	}
	return unknown
}

func decimals(digits int, v any) string {
	switch n := v.(type) {
	case float64:
		return strconv.FormatFloat(n, 'f', digits, 64)
	case *float64:
		if n != nil {
			return strconv.FormatFloat(*n, 'f', digits, 64)
		}
	case *float32:
		if n != nil {
			return strconv.FormatFloat(float64(*n), 'f', digits, 64)
		}
	}
	return unknown
}

// ago returns a moment: a script shows it as an age, the absolute time on hover.
// The zero time and nil are unknown.
func ago(v any) template.HTML {
	var at time.Time
	switch t := v.(type) {
	case time.Time:
		at = t
	case *time.Time:
		if t != nil {
			at = *t
		}
	case int64:
		at = time.UnixMilli(t)
	}
	if at.IsZero() || at.UnixMilli() == 0 {
		return template.HTML(`<span class="unknown">` + unknown + `</span>`) //nolint:gosec // constant
	}
	at = at.UTC()
	return template.HTML(`<time datetime="` + at.Format(time.RFC3339Nano) + `" title="` + at.Format("2006-01-02 15:04:05.000 UTC") + `">` + //nolint:gosec // digits
		at.Format("15:04:05") + `</time>`)
}

// seconds returns a duration in words for people.
func seconds(v any) string {
	var s float64
	switch d := v.(type) {
	case time.Duration:
		s = d.Seconds()
	case *time.Duration:
		if d == nil {
			return unknown
		}
		s = d.Seconds()
	case float64:
		s = d
	case *float64:
		if d == nil {
			return unknown
		}
		s = *d
	default:
		return unknown
	}
	switch {
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1000)
	case s < 10:
		return fmt.Sprintf("%.1f s", s)
	case s < 120:
		return fmt.Sprintf("%.0f s", s)
	case s < 7200:
		return fmt.Sprintf("%.0f min", s/60)
	case s < 172800:
		return fmt.Sprintf("%.0f h", s/3600)
	}
	return fmt.Sprintf("%.0f d", s/86400)
}

func byteCount(n uint64) string {
	switch {
	case n == 0:
		return unknown
	case n < 1<<20:
		return fmt.Sprintf("%d kB", n>>10)
	case n < 10<<30:
		return fmt.Sprintf("%d MB", n>>20)
	}
	return fmt.Sprintf("%d GB", n>>30)
}

// visible escapes what is no visible character, in particular what changes the
// direction of text: html/template escapes markup only.
func visible(v any) string { return cli.Visible(plain(v)) }

// plain returns a value as text; nil pointers are empty.
func plain(v any) string {
	if s, ok := v.(*string); ok {
		if s == nil {
			return ""
		}
		return *s
	}
	return fmt.Sprint(v)
}

// cutText is visible, and shortened to n characters.
func cutText(n int, v any) string {
	runes := []rune(cli.VisibleLine(plain(v)))
	if len(runes) <= n {
		return string(runes)
	}
	return string(runes[:n-1]) + "…"
}

func dict(pairs ...any) map[string]any {
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		m[fmt.Sprint(pairs[i])] = pairs[i+1]
	}
	return m
}
