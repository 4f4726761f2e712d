package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// Columns is the maximum width of help, and of text that is not on a terminal.
const Columns = 100

// Color is an escape sequence for a text on a terminal.
type Color string

// The colours of findings and tables.
const (
	Green  Color = "32"
	Yellow Color = "33"
	Red    Color = "31"
	Bold   Color = "1"
	Plain  Color = ""
)

// Output is where a command prints its result: JSON for programs, text for
// people. Colours, and tables cut to its width, only on a terminal: a file or
// another program gets everything.
type Output struct {
	W        io.Writer
	JSON     bool
	Terminal bool
	Colors   bool
	Width    int // of the terminal, 0 if it is not known
}

// New returns an output on w, JSON if asJSON.
func New(w io.Writer, asJSON bool) *Output {
	terminal, width := IsTerminal(w), 0
	if f, ok := w.(*os.File); ok && terminal {
		width, _, _ = term.GetSize(int(f.Fd())) // 0 if it does not tell
	}
	return &Output{
		Width:    width,
		W:        w,
		JSON:     asJSON,
		Terminal: terminal,
		Colors:   terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
}

// Columns returns the width to fill.
func (o *Output) Columns() int {
	const narrowest = 40
	if !o.Terminal || o.Width <= 0 {
		return Columns
	}
	return max(narrowest, o.Width)
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Result prints v as one line of JSON, or calls text.
func (o *Output) Result(v any, text func() error) error {
	if !o.JSON {
		return text()
	}
	enc := json.NewEncoder(JSON(o.W))
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// Line prints one line of text.
func (o *Output) Line(format string, args ...any) error {
	if _, err := io.WriteString(o.W, VisiblePainted(fmt.Sprintf(format, args...))+"\n"); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// Say prints a line for people beside the result.
func Say(w io.Writer, format string, args ...any) {
	_, _ = io.WriteString(w, VisiblePainted(fmt.Sprintf(format, args...))+"\n")
}

// Paint colours s where colours are on.
func (o *Output) Paint(c Color, s string) string {
	if !o.Colors || c == Plain {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

// Cell is a table cell with a colour; any other value is printed unchanged, and
// nil as "unknown".
type Cell struct {
	Value any
	Color Color
}

// Colored returns a cell that shows value in the colour c.
func Colored(value any, c Color) Cell { return Cell{Value: value, Color: c} }

// Table is a list of rows under a header, on a terminal at most as wide as that.
// Numeric columns are aligned to the right. If there is not enough room the
// widest columns are cut, marked by an ellipsis, except those in uncut.
type Table struct {
	header []string
	rows   [][]any
}

// uncut are the columns whose values are copied into the next command.
var uncut = []string{"ID", "ENTRY", "DEVICE", "FINGERPRINT"}

// NewTable returns a table without rows.
func NewTable(header ...string) *Table { return &Table{header: header} }

// Row adds one row; missing cells are empty.
func (t *Table) Row(cells ...any) { t.rows = append(t.rows, cells) }

// Table prints t.
func (o *Output) Table(t *Table) error {
	widths := make([]int, len(t.header))
	right := make([]bool, len(t.header))
	for j, name := range t.header {
		widths[j] = utf8.RuneCountInString(name)
		right[j] = len(t.rows) > 0
		for _, row := range t.rows {
			c := at(row, j)
			widths[j] = max(widths[j], utf8.RuneCountInString(text(c.Value)))
			right[j] = right[j] && (c.Value == nil || isNumber(c.Value))
		}
	}
	if o.Terminal {
		fit(widths, t.header, o.Columns())
	}

	var b strings.Builder
	put := func(j int, s string, c Color) {
		s = cut(s, widths[j])
		pad := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(s))
		last := j == len(widths)-1
		if right[j] {
			b.WriteString(pad)
		}
		b.WriteString(o.Paint(c, s))
		if !last && !right[j] {
			b.WriteString(pad)
		}
		if !last {
			b.WriteString("  ")
		}
	}
	for j, name := range t.header {
		put(j, name, Bold)
	}
	b.WriteByte('\n')
	for _, row := range t.rows {
		for j := range t.header {
			c := at(row, j)
			put(j, text(c.Value), c.Color)
		}
		b.WriteByte('\n')
	}
	if _, err := io.WriteString(o.W, b.String()); err != nil {
		return fmt.Errorf("print table: %w", err)
	}
	return nil
}

func at(row []any, j int) Cell {
	if j >= len(row) {
		return Cell{Value: ""}
	}
	if c, ok := row[j].(Cell); ok {
		return c
	}
	return Cell{Value: row[j]}
}

func isNumber(v any) bool {
	rv := reflect.ValueOf(v)
	return rv.CanInt() || rv.CanUint() || rv.CanFloat()
}

// fit narrows the widest columns that may be cut until all of them fit.
func fit(widths []int, header []string, columns int) {
	const narrowest = 6
	for {
		total, widest := 2*(len(widths)-1), -1
		for j, w := range widths {
			total += w
			if !slices.Contains(uncut, header[j]) && (widest < 0 || w > widths[widest]) {
				widest = j
			}
		}
		if total <= columns || widest < 0 || widths[widest] <= narrowest {
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
