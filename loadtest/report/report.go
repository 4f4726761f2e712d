package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/scenarios"
	"github.com/trmtracking/processor/loadtest/testbed"
)

//go:embed report.html
var reportText string

// Write writes a result as one HTML page that needs nothing else.
func Write(w io.Writer, s scenarios.Scenario, r *scenarios.Result) error {
	page, err := template.New("report").Funcs(template.FuncMap{"inc": func(n int) int { return n + 1 }}).Parse(reportText)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	d := reportData{Scenario: s, Result: r, Everywhere: scenarios.EveryBound, Made: time.Now().UTC().Format("2006-01-02 15:04 UTC")}
	d.numbers()
	d.charts()
	for _, m := range r.Marks {
		line := fmt.Sprintf("at %.1f s", m.At.Seconds())
		if m.Until > m.At {
			line += fmt.Sprintf(" for %.1f s", (m.Until - m.At).Seconds())
		}
		d.Events = append(d.Events, scenarios.Fact{Name: line, Value: m.What})
	}
	if err := page.Execute(w, &d); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

type reportData struct {
	Scenario   scenarios.Scenario
	Result     *scenarios.Result
	Everywhere string
	Made       string
	Numbers    []scenarios.Fact
	Slots      []legend
	Charts     []drawn
	Events     []scenarios.Fact
}

type legend struct{ Name, Color string }

type drawn struct {
	Title, About string
	Legend       []legend
	SVG          template.HTML
}

func (d *reportData) numbers() {
	r := d.Result
	add := func(name, format string, args ...any) {
		d.Numbers = append(d.Numbers, scenarios.Fact{Name: name, Value: fmt.Sprintf(format, args...)})
	}
	unknown := func(n *int64) string {
		if n == nil {
			return "unknown"
		}
		return cli.Thousands(*n)
	}
	add("sent", "%s", cli.Thousands(r.Sent))
	add("stored", "%s", cli.Thousands(r.Stored))
	add("per second", "%s", cli.Thousands(int64(r.PerSecond)))
	if r.P99MS != nil {
		add("p99", "%.0f ms", *r.P99MS)
	}
	add("lost", "%s", cli.Thousands(r.Lost))
	add("double", "%s", cli.Thousands(r.Double))
	add("reordered", "%s", unknown(r.Reordered))
	add("by stale owners", "%s", unknown(r.Stale))
	add("backlog", "%s", cli.Thousands(r.Backlog))
	add("duplicates", "%s", cli.Thousands(r.Duplicates))
	add("dead letters", "%s", cli.Thousands(r.DeadLettered))
	add("crossings", "%s", cli.Thousands(r.Crossings))
	add("rows", "%s", r.Oracle)
	add("oldest backlog", "%.1f s", r.PeakAge)
}

// charts draws what the samples tell.
func (d *reportData) charts() {
	r := d.Result
	if len(r.Samples) == 0 {
		return
	}
	until := r.Samples[len(r.Samples)-1].At
	slots := len(r.Share)
	for i := range slots {
		d.Slots = append(d.Slots, legend{fmt.Sprintf("instance %d", i+1), palette(i)})
	}
	var at []time.Duration
	for _, s := range r.Samples {
		at = append(at, s.At)
	}
	pick := func(f func(testbed.Sample) float64) []float64 {
		values := make([]float64, len(r.Samples))
		for i, s := range r.Samples {
			values[i] = f(s)
		}
		return values
	}
	base := chart{at: at, marks: r.Marks, until: until}
	add := func(title, about string, legend []legend, c chart) {
		c.title = title
		d.Charts = append(d.Charts, drawn{Title: title, About: about, Legend: legend, SVG: c.SVG()})
	}

	rate := base
	rate.stacked = true
	for i := range slots {
		rate.lines = append(rate.lines, series{color: palette(i), values: rates(r.Samples, i)})
	}
	add("Records stored a second", "by instance, stacked, over the second before", d.Slots, rate)

	const backlogColor, ageColor = "#4e79a7", "#e15759"
	outstanding := base
	outstanding.lines = []series{{color: backlogColor, values: pick(func(s testbed.Sample) float64 { return known(s.Backlog) })}}
	add("Backlog entries", "not dispatched, pending or deferred; gaps are times at which nobody could say", nil, outstanding)

	age := base
	age.lines = []series{{color: ageColor, values: pick(func(s testbed.Sample) float64 { return seconds(s.Age) })}}
	add("Age of the oldest unfinished entry, seconds", "how far behind the fleet is", nil, age)

	latency := base
	latency.log = true
	latency.lines = []series{
		{color: backlogColor, values: pick(func(s testbed.Sample) float64 { return seconds(s.P50) })},
		{color: ageColor, values: pick(func(s testbed.Sample) float64 { return seconds(s.P99) })},
	}
	add("Latency from stream time to commit, milliseconds", "of the records stored since the sample before",
		[]legend{{"p50", backlogColor}, {"p99", ageColor}}, latency)
	if len(r.OwnershipSpans) > 0 {
		d.Charts = append(d.Charts, drawn{
			Title: "Who owned each shard", About: "as Postgres noted it; one line is one shard, a dashed line the begin of a fault",
			Legend: append(d.Slots[:len(d.Slots):len(d.Slots)], legend{"nobody", palette(-1)}), SVG: owners(base, r.OwnershipSpans),
		})
	}
}

// rates returns what a slot stored a second, over the second before each sample: from
// one sample to the next it jumps, since a worker commits thousands at once.
func rates(samples []testbed.Sample, slot int) []float64 {
	stored := func(n int) float64 {
		if slot >= len(samples[n].Slots) {
			return 0
		}
		return float64(samples[n].Slots[slot].Stored)
	}
	values := make([]float64, len(samples))
	from := 0
	for n := range samples {
		for from+1 < n && samples[n].At-samples[from+1].At >= time.Second {
			from++
		}
		if seconds := (samples[n].At - samples[from].At).Seconds(); seconds > 0 {
			values[n] = max(0, stored(n)-stored(from)) / seconds
		}
	}
	return values
}

func known(n *int64) float64 {
	if n == nil {
		return math.NaN()
	}
	return float64(*n)
}

func seconds(x *float64) float64 {
	if x == nil {
		return math.NaN()
	}
	return *x
}

// owners draws a line of spans for each shard.
func owners(c chart, ownershipSpans []scenarios.OwnershipSpan) template.HTML {
	const line = 5
	var b strings.Builder
	shards := testbed.Shards
	for _, t := range ownershipSpans {
		shards = max(shards, t.Shard+1)
	}
	height := marginTop + shards*line
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="owners of shards">`, chartWidth, height+marginFoot)
	for _, t := range ownershipSpans {
		from, to := max(0, t.From), min(t.To, c.until)
		if to <= from {
			continue
		}
		fmt.Fprintf(&b, `<rect x="%.2f" y="%d" width="%.2f" height="%d" fill="%s"/>`,
			c.x(from), marginTop+t.Shard*line, c.x(to)-c.x(from), line-1, palette(t.Slot))
	}
	for shard := 0; shard < shards; shard += 8 {
		fmt.Fprintf(&b, `<text class="tick" x="%d" y="%d" text-anchor="end">shard %d</text>`, marginLeft-6, marginTop+shard*line+5, shard)
	}
	c.begins(&b, marginTop, float64(height))
	c.clock(&b, float64(height))
	b.WriteString(`</svg>`)
	return template.HTML(b.String()) //nolint:gosec // built here; there is no foreign text in it
}
