package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/trmtracking/processor/loadtest/demo"
)

// maxColumns is how wide help and tables may be.
const maxColumns = 100

// color is what a terminal paints a text with.
type color string

const (
	green  color = "32"
	yellow color = "33"
	red    color = "31"
	bold   color = "1"
	plain  color = ""
)

// output is where a command prints its result: JSON for programs, text for
// people. Colours, and tables cut to maxColumns, only where somebody watches: a
// file or another program gets all of it.
type output struct {
	w        io.Writer
	json     bool
	terminal bool
	colors   bool
}

func outputOf(cmd *cobra.Command) *output {
	w := cmd.OutOrStdout()
	asJSON, err := cmd.Flags().GetBool("json")
	terminal := onTerminal(w)
	return &output{
		w:        w,
		json:     err == nil && asJSON,
		terminal: terminal,
		colors:   terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
}

// onTerminal tells whether somebody watches what is written to w.
func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// result prints v as one line of JSON, or calls text where people read.
func (o *output) result(v any, text func() error) error {
	if !o.json {
		return text()
	}
	enc := json.NewEncoder(o.w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// line prints one line of text.
func (o *output) line(format string, args ...any) error {
	if _, err := fmt.Fprintf(o.w, format+"\n", args...); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// paint colours s where colours are on.
func (o *output) paint(c color, s string) string {
	if !o.colors || c == plain {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

// cell is a table cell with a colour; any other value is printed as it is, and
// nil as "unknown".
type cell struct {
	value any
	color color
}

// table is a list of rows under a header, on a terminal at most maxColumns wide.
// Columns of numbers are aligned to the right; where there is not enough room the
// widest columns are cut, which an ellipsis shows, but not those in uncut.
type table struct {
	header []string
	rows   [][]any
}

// uncut are the columns that are copied into the next command.
var uncut = []string{"ID", "ENTRY", "DEVICE", "FINGERPRINT"}

func newTable(header ...string) *table { return &table{header: header} }

// row adds one row; missing cells are empty.
func (t *table) row(cells ...any) { t.rows = append(t.rows, cells) }

// table prints t.
func (o *output) table(t *table) error {
	widths := make([]int, len(t.header))
	right := make([]bool, len(t.header))
	for j, name := range t.header {
		widths[j] = utf8.RuneCountInString(name)
		right[j] = len(t.rows) > 0
		for _, row := range t.rows {
			c := at(row, j)
			widths[j] = max(widths[j], utf8.RuneCountInString(text(c.value)))
			right[j] = right[j] && (c.value == nil || isNumber(c.value))
		}
	}
	if o.terminal {
		fit(widths, t.header)
	}

	var b strings.Builder
	put := func(j int, s string, c color) {
		s = cut(s, widths[j])
		pad := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(s))
		last := j == len(widths)-1
		if right[j] {
			b.WriteString(pad)
		}
		b.WriteString(o.paint(c, s))
		if !last && !right[j] {
			b.WriteString(pad)
		}
		if !last {
			b.WriteString("  ")
		}
	}
	for j, name := range t.header {
		put(j, name, bold)
	}
	b.WriteByte('\n')
	for _, row := range t.rows {
		for j := range t.header {
			c := at(row, j)
			put(j, text(c.value), c.color)
		}
		b.WriteByte('\n')
	}
	if _, err := io.WriteString(o.w, b.String()); err != nil {
		return fmt.Errorf("print table: %w", err)
	}
	return nil
}

func at(row []any, j int) cell {
	if j >= len(row) {
		return cell{value: ""}
	}
	if c, ok := row[j].(cell); ok {
		return c
	}
	return cell{value: row[j]}
}

// text is a value on one line.
func text(v any) string {
	if v == nil {
		return "unknown"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, fmt.Sprint(v))
}

// count is a number of things, in groups of three digits for people.
type count int64

func (n count) String() string { return demo.Thousands(int64(n)) }

// many is a number of things with their name, in the plural for several.
func many[T ~int | ~int64](n T, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if stem, ok := strings.CutSuffix(thing, "y"); ok {
		thing = stem + "ie"
	}
	return count(n).String() + " " + thing + "s"
}

// were is so many things with their verb.
func were[T ~int | ~int64](n T, thing string) string {
	if n == 1 {
		return many(n, thing) + " was"
	}
	return many(n, thing) + " were"
}

func isNumber(v any) bool {
	rv := reflect.ValueOf(v)
	return rv.CanInt() || rv.CanUint() || rv.CanFloat()
}

// fit narrows the widest columns that may be cut until all of them fit.
func fit(widths []int, header []string) {
	const narrowest = 6
	for {
		total, widest := 2*(len(widths)-1), -1
		for j, w := range widths {
			total += w
			if !slices.Contains(uncut, header[j]) && (widest < 0 || w > widths[widest]) {
				widest = j
			}
		}
		if total <= maxColumns || widest < 0 || widths[widest] <= narrowest {
			return
		}
		widths[widest]--
	}
}

func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}
