package console

import (
	"fmt"
	"html/template"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/history"
)

// chart is curves over at most the last hour. It is drawn as SVG without inline styles,
// which the policy forbids: x in percent of the width, a curve in a view box of
// its own that is stretched.
type chart struct {
	Title  string
	Unit   string
	Curves []curve
	Marks  []history.Mark
	Until  time.Time
	Span   time.Duration
	svg    template.HTML
}

type curve struct {
	Name   string
	Class  string
	Points []history.Point
}

// maxStep is the distance in milliseconds of two samples above which the line is
// broken.
const maxStep = 6 * int64(history.Every/time.Millisecond)

// spans are what a reader can choose of the past.
var spans = []time.Duration{5 * time.Minute, 20 * time.Minute, history.Span}

// ranges offers the spans on a page.
type ranges struct {
	Path   string // below Root
	Chosen time.Duration
}

// rangesOf returns the ranges of a page with the one that is asked for.
func rangesOf(r *http.Request, path string) ranges {
	if asked, err := time.ParseDuration(r.URL.Query().Get("span")); err == nil && slices.Contains(spans, asked) {
		return ranges{path, asked}
	}
	return ranges{path, 0}
}

// All returns what can be chosen.
func (ranges) All() []time.Duration { return spans }

// Link returns the page with a span, below the root.
func (x ranges) Link(span time.Duration) string { return x.Path + "?span=" + span.String() }

// spanOf returns how much of the past is shown: what is chosen, an hour, or less of a
// fleet that is younger.
func spanOf(chosen time.Duration, w *history.Window, now time.Time) time.Duration {
	if chosen > 0 {
		return chosen
	}
	if len(w.Samples) == 0 {
		return history.Span
	}
	age := now.Sub(w.Samples[0].Time())
	for _, span := range []time.Duration{5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 30 * time.Minute} {
		if age < span {
			return span
		}
	}
	return history.Span
}

const (
	chartWidth  = 720 // of the view box
	chartHeight = 100
)

// Now returns the last value of the first curve.
func (c chart) Now() string { return c.last(0) }

func (c chart) last(i int) string {
	points := c.Curves[i].Points
	if len(points) == 0 || !points[len(points)-1].Known {
		return unknown
	}
	return value(points[len(points)-1].Value)
}

func value(v float64) string {
	if v > 0 && v < 1 {
		return fmt.Sprintf("%.2f", v)
	}
	if v < 10 && v != math.Trunc(v) {
		return fmt.Sprintf("%.1f", v)
	}
	return cli.Thousands(int64(math.Round(v)))
}

// x returns a time as a part of the span, 0 to 1.
func (c chart) x(at int64) float64 {
	span := c.Span.Milliseconds()
	return float64(at-(c.Until.UnixMilli()-span)) / float64(span)
}

func (c chart) top() float64 {
	top := 1.0
	for _, k := range c.Curves {
		for _, p := range k.Points {
			if p.Known && c.x(p.At) >= 0 {
				top = max(top, p.Value)
			}
		}
	}
	return nice(top)
}

// nice rounds up to 1, 2 or 5 times a power of ten.
func nice(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5, 10} {
		if v <= m*power*1.0001 {
			return m * power
		}
	}
	return 10 * power
}

// Label describes the chart to those who do not see it.
func (c chart) Label() string {
	var parts []string
	for i, k := range c.Curves {
		most := 0.0
		for _, p := range k.Points {
			most = max(most, p.Value)
		}
		parts = append(parts, fmt.Sprintf("%s: now %s, at most %s %s in the time shown", k.Name, c.last(i), value(most), c.Unit))
	}
	return strings.Join(parts, "; ")
}

// SVG returns the chart as it was drawn.
func (c chart) SVG() template.HTML { return c.svg }

func (c chart) draw() template.HTML {
	var b strings.Builder
	top := c.top()
	fmt.Fprintf(&b, `<svg class="chart" width="100%%" height="132" role="img" aria-label="%s" data-until="%d" data-span="%d" data-top="%g" data-unit="%s">`,
		template.HTMLEscapeString(c.Label()), c.Until.UnixMilli(), c.Span.Milliseconds(), top, template.HTMLEscapeString(c.Unit))
	fmt.Fprintf(&b, `<line class="grid" x1="0" x2="100%%" y1="14" y2="14"/><line class="grid" x1="0" x2="100%%" y1="64" y2="64"/><line class="axis" x1="0" x2="100%%" y1="114" y2="114"/>`)
	fmt.Fprintf(&b, `<svg y="14" width="100%%" height="%d" viewBox="0 0 %d %d" preserveAspectRatio="none">`, chartHeight, chartWidth, chartHeight)
	for i, k := range c.Curves {
		line, area := c.path(k.Points, top)
		if i == 0 {
			fmt.Fprintf(&b, `<path class="area %s" d="%s"/>`, k.Class, area)
		}
		fmt.Fprintf(&b, `<path class="line %s" data-name="%s" vector-effect="non-scaling-stroke" d="%s"/>`, k.Class, template.HTMLEscapeString(k.Name), line)
	}
	b.WriteString(`</svg>`)
	shapes := map[string]string{history.Deploy: "◆", history.HandOver: "⇄", history.Incident: "▲"}
	for _, m := range c.Marks {
		x := c.x(m.At) * 100
		if x < 0 || x > 100 {
			continue
		}
		text := template.HTMLEscapeString(cutText(200, m.Text)) + " at " + time.UnixMilli(m.At).UTC().Format("15:04:05")
		fmt.Fprintf(&b, `<g class="mark %s"><title>%s</title><line x1="%.2f%%" x2="%.2f%%" y1="14" y2="114"/><text x="%.2f%%" y="11" text-anchor="middle">%s</text></g>`,
			m.Kind, text, x, x, x, shapes[m.Kind])
	}
	fmt.Fprintf(&b, `<text x="2" y="25">%s %s</text><text x="0" y="128">%s ago</text><text x="100%%" y="128" text-anchor="end">now</text></svg>`,
		value(top), template.HTMLEscapeString(c.Unit), seconds(c.Span))
	return template.HTML(b.String()) //nolint:gosec // numbers and escaped text
}

// path returns the line of a curve and the area below it. Unknown values are gaps.
func (c chart) path(points []history.Point, top float64) (line, area string) {
	var l, a strings.Builder
	open, last, at := false, 0.0, int64(0)
	end := func() {
		if open {
			fmt.Fprintf(&a, "L%.1f %d Z", last, chartHeight)
		}
		open = false
	}
	for _, p := range points {
		x := c.x(p.At) * chartWidth
		if !p.Known || x < 0 || open && p.At-at > maxStep {
			end()
		}
		if !p.Known || x < 0 {
			continue
		}
		y := chartHeight - p.Value/top*chartHeight
		if !open {
			fmt.Fprintf(&l, "M%.1f %.1f", x, y)
			fmt.Fprintf(&a, "M%.1f %d L%.1f %.1f", x, chartHeight, x, y)
		} else {
			fmt.Fprintf(&l, "L%.1f %.1f", x, y)
			fmt.Fprintf(&a, "L%.1f %.1f", x, y)
		}
		open, last, at = true, x, p.At
	}
	end()
	return l.String(), a.String()
}
