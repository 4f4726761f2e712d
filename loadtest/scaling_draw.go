package loadtest

import (
	"encoding/csv"
	"fmt"
	"html/template"
	"strconv"
	"strings"
)

// CSV returns the curve as a table, a line for each point.
func (c ScalingCurve) CSV() string {
	var b strings.Builder
	w := csv.NewWriter(&b)
	_ = w.Write(append([]string{"at", "devices", "entries"}, measuredColumns...)) // into memory, it cannot fail
	for _, p := range c.Points {
		row := []string{strings.ReplaceAll(p.At, ",", ""), strconv.Itoa(p.Devices), strconv.Itoa(p.Entries)}
		for _, v := range p.fields() {
			row = append(row, strconv.FormatFloat(round(*v, 3), 'f', -1, 64))
		}
		_ = w.Write(row)
	}
	w.Flush()
	return b.String()
}

// The places of a curve in pixels.
const (
	curveWidth  = 760
	curveHeight = 340
	curveTop    = 62
	curveFoot   = 62
)

// curveLayers are what a bar is made of, from below: Postgres where COPY is
// beside it.
var curveLayers = []struct {
	name string
	of   func(m *Measured) float64
}{
	{"Postgres", func(m *Measured) float64 { return m.Postgres }},
	{"Redis", func(m *Measured) float64 { return m.Redis }},
	{"service", func(m *Measured) float64 { return m.Service }},
}

// SVG draws a bar for each point: microseconds of CPU a record, and below it the
// rate and the memory.
func (c ScalingCurve) SVG() string {
	var b strings.Builder
	high, copied := 0.0, false
	for _, p := range c.Points {
		high, copied = max(high, p.Total, p.Copy), copied || p.Copy > 0
	}
	high = nice(high)
	foot := float64(curveHeight - curveFoot)
	y := func(v float64) float64 { return foot - (foot-curveTop)*v/high }
	text := func(x, y float64, anchor, class, format string, args ...any) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s" class="%s">%s</text>`+"\n",
			x, y, anchor, class, template.HTMLEscapeString(fmt.Sprintf(format, args...)))
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n",
		curveWidth, curveHeight, template.HTMLEscapeString(c.About))
	b.WriteString(`<style>text{font:12px sans-serif;fill:#222}.title{font-weight:bold;font-size:14px}.small{fill:#666;font-size:11px}</style>` + "\n")
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", curveWidth, curveHeight)
	text(marginLeft, 20, "start", "title", "microseconds of CPU a record, by %s", c.Axis)
	x := float64(marginLeft)
	for i, l := range curveLayers {
		fmt.Fprintf(&b, `<rect x="%.1f" y="31" width="10" height="10" fill="%s"/>`+"\n", x, palette(i))
		text(x+14, 40, "start", "small", "%s", l.name)
		x += 80
	}
	if copied {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="36" y2="36" stroke="#222" stroke-width="2"/>`+"\n", x, x+14)
		text(x+18, 40, "start", "small", "Postgres in COPY of the same rows")
	}
	for i := range 5 {
		v := high * float64(i) / 4
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", marginLeft, curveWidth-marginRight, y(v), y(v))
		text(marginLeft-8, y(v)+4, "end", "small", "%s", short(v))
	}
	step := float64(curveWidth-marginLeft-marginRight) / float64(max(1, len(c.Points)))
	for i := range c.Points {
		p := &c.Points[i]
		left, middle, below := marginLeft+step*(float64(i)+.2), marginLeft+step*(float64(i)+.5), 0.0
		for n, l := range curveLayers {
			v := l.of(&p.Measured)
			fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"><title>%s %.1f us</title></rect>`+"\n",
				left, y(below+v), .6*step, y(below)-y(below+v), palette(n), l.name, v)
			below += v
		}
		if p.Copy > 0 {
			fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#222" stroke-width="2"/>`+"\n",
				left-.08*step, left+.68*step, y(p.Copy), y(p.Copy))
		}
		text(middle, y(below)-5, "middle", "", "%.1f", below)
		text(middle, foot+17, "middle", "", "%s", p.At)
		text(middle, foot+33, "middle", "small", "%s/s", short(round(p.Rate, -2)))
		text(middle, foot+48, "middle", "small", "%.0f MB", p.PeakMB)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
