package report

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

// The size of a chart in pixels, and of its margins.
const (
	chartWidth  = 960
	chartHeight = 220
	marginLeft  = 70
	marginRight = 16
	marginTop   = 14
	marginFoot  = 26
)

// palette colours slots; the last is for unowned ones.
func palette(slot int) string {
	colors := []string{"#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#76b7b2", "#edc948", "#9c755f", "#ff9da7"}
	if slot < 0 {
		return "#d9d9d9"
	}
	return colors[slot%len(colors)]
}

// series is one line, or one layer of a stack; NaN is unknown.
type series struct {
	color  string
	values []float64
}

// chart draws series over the time of a run as SVG.
type chart struct {
	title   string
	at      []time.Duration
	lines   []series
	stacked bool
	log     bool // scale of the values
	marks   []scenarios.Mark
	until   time.Duration
}

func (c chart) x(at time.Duration) float64 {
	return marginLeft + (chartWidth-marginLeft-marginRight)*at.Seconds()/max(1e-9, c.until.Seconds())
}

// span returns the least and the greatest value to be shown.
func (c chart) span() (low, high float64) {
	for i := range c.at {
		sum := 0.0
		for _, l := range c.lines {
			v := l.values[i]
			if math.IsNaN(v) {
				continue
			}
			sum += v
			if !c.stacked {
				high = max(high, v)
			}
			if v > 0 && (low == 0 || v < low) {
				low = v
			}
		}
		if c.stacked {
			high = max(high, sum)
		}
	}
	if c.log {
		low = math.Pow(10, math.Floor(math.Log10(max(low, 1e-3))))
		return low, math.Pow(10, math.Ceil(math.Log10(max(high, 10*low))))
	}
	return 0, nice(high)
}

// nice returns the next round number.
func nice(x float64) float64 {
	if x <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(x)))
	for _, m := range []float64{1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10} { // their quarters are round, too
		if x <= m*unit {
			return m * unit
		}
	}
	return 10 * unit
}

// steady returns the next round time between two ticks of a clock, in seconds.
func steady(seconds float64) float64 {
	for _, step := range []float64{.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600} {
		if seconds <= step {
			return step
		}
	}
	return 7200
}

// SVG draws the chart.
func (c chart) SVG() template.HTML {
	var b strings.Builder
	low, high := c.span()
	foot := float64(chartHeight - marginFoot)
	y := func(v float64) float64 {
		if c.log {
			v = math.Log10(max(v, low)/low) / math.Log10(high/low)
		} else {
			v /= high
		}
		return foot - (foot-marginTop)*v
	}
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, chartHeight, template.HTMLEscapeString(c.title))
	c.faults(&b, marginTop, foot)
	for _, v := range c.ticks(low, high) {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`,
			marginLeft, chartWidth-marginRight, y(v), y(v), marginLeft-6, y(v)+4, short(v))
	}
	c.clock(&b, foot)
	if c.stacked {
		c.layers(&b, y)
	} else {
		for _, l := range c.lines {
			fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.6"/>`, c.path(l.values, y), l.color)
		}
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String()) //nolint:gosec // built here; all text in it is escaped
}

func (c chart) ticks(low, high float64) []float64 {
	var at []float64
	if c.log {
		for v := low; v <= high*1.001; v *= 10 {
			at = append(at, v)
		}
		return at
	}
	for i := range 5 {
		at = append(at, high*float64(i)/4)
	}
	return at
}

// clock draws the axis of time.
func (c chart) clock(b *strings.Builder, foot float64) {
	step := steady(c.until.Seconds() / 10)
	for s := 0.0; s <= c.until.Seconds(); s += step {
		x := c.x(time.Duration(s * float64(time.Second)))
		fmt.Fprintf(b, `<text class="tick" x="%.1f" y="%.1f" text-anchor="middle">%gs</text>`, x, foot+17, cli.Round(s, 1))
	}
}

// numberedFaults is up to how many faults have room for their numbers.
const numberedFaults = 40

// faults shades the time of each fault and numbers it as the list of events does.
func (c chart) faults(b *strings.Builder, top, foot float64) {
	for n, m := range c.marks {
		x := c.x(m.At)
		width := 1.5
		if m.Until > m.At {
			width = max(width, c.x(m.Until)-x)
		}
		fmt.Fprintf(b, `<rect class="fault" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>%s at %.1f s</title></rect>`,
			x, top, width, foot-top, template.HTMLEscapeString(m.What), m.At.Seconds())
		c.number(b, n, top)
	}
}

// begins draws a line where each fault begins: shades would change the colours
// of what is below.
func (c chart) begins(b *strings.Builder, top, foot float64) {
	for n, m := range c.marks {
		fmt.Fprintf(b, `<line class="begin" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"><title>%s at %.1f s</title></line>`,
			c.x(m.At), c.x(m.At), top-3, foot, template.HTMLEscapeString(m.What), m.At.Seconds())
		c.number(b, n, top)
	}
}

func (c chart) number(b *strings.Builder, n int, top float64) {
	if len(c.marks) <= numberedFaults {
		fmt.Fprintf(b, `<text class="number" x="%.1f" y="%.1f">%d</text>`, c.x(c.marks[n].At), top-4, n+1)
	}
}

// path returns a line with gaps where values are unknown.
func (c chart) path(values []float64, y func(float64) float64) string {
	var b strings.Builder
	pen := "M"
	for i, v := range values {
		if math.IsNaN(v) {
			pen = "M"
			continue
		}
		fmt.Fprintf(&b, "%s%.1f %.1f", pen, c.x(c.at[i]), y(v))
		pen = "L"
	}
	return b.String()
}

func (c chart) layers(b *strings.Builder, y func(float64) float64) {
	below := make([]float64, len(c.at))
	for _, l := range c.lines {
		var up, down strings.Builder
		for i, at := range c.at {
			v := l.values[i]
			if math.IsNaN(v) {
				v = 0
			}
			pen := "L"
			if i == 0 {
				pen = "M"
			}
			fmt.Fprintf(&up, "%s%.1f %.1f", pen, c.x(at), y(below[i]+v))
		}
		for i := len(c.at) - 1; i >= 0; i-- {
			fmt.Fprintf(&down, "L%.1f %.1f", c.x(c.at[i]), y(below[i]))
			if !math.IsNaN(l.values[i]) {
				below[i] += l.values[i]
			}
		}
		fmt.Fprintf(b, `<path d="%s%sZ" fill="%s" fill-opacity=".85"/>`, up.String(), down.String(), l.color)
	}
}

// short returns a number as an axis shows it.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", cli.Round(v/1e6, 2))
	case v >= 1e4:
		return fmt.Sprintf("%gk", cli.Round(v/1e3, 1))
	}
	return fmt.Sprintf("%g", cli.Round(v, 3))
}
