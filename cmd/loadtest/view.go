package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// How often progress is shown: drawn again on a terminal, as a line elsewhere.
const (
	redrawEvery = 250 * time.Millisecond
	lineEvery   = 2 * time.Second
)

// view shows a run as it continues. It is used by one goroutine at a time.
type view struct {
	w        io.Writer
	scenario string
	drawn    int // lines of the block on the terminal
	live     bool
	shown    time.Duration
	first    bool
	faults   int
}

func newView(w io.Writer, scenario string) *view {
	return &view{w: w, scenario: scenario, live: onTerminal(w), first: true}
}

func (v *view) show(s testbed.Sample) {
	every := lineEvery
	if v.live {
		every = redrawEvery
	}
	if !v.first && s.At-v.shown < every && s.Marks == v.faults {
		return
	}
	v.first, v.shown = false, s.At
	if v.live {
		v.draw(s)
	} else {
		v.line(s)
	}
	v.faults = s.Marks
}

// line is a sample on one line.
func (v *view) line(s testbed.Sample) {
	var b strings.Builder
	fmt.Fprintf(&b, "%6.1fs  sent %s  %s/s  backlog %s  age %s  p99 %s ",
		s.At.Seconds(), cli.Thousands(s.Sent), cli.Thousands(int64(s.Rate)), count(s.Backlog), seconds(s.Age), millis(s.P99))
	for i, slot := range s.Slots {
		fmt.Fprintf(&b, " | %d: %s", i+1, brief(slot))
	}
	if s.Marks != v.faults {
		fmt.Fprintf(&b, "  << %s", s.Fault)
	}
	_, _ = fmt.Fprintln(v.w, b.String())
}

func brief(s testbed.SlotSample) string {
	if s.Name == "" {
		return "-"
	}
	if !s.Answered {
		return "silent"
	}
	return fmt.Sprintf("%s/s %d shards%s", cli.Thousands(int64(s.Rate)), s.Shards, roles(s))
}

func roles(s testbed.SlotSample) string {
	text := ""
	if s.Leader {
		text += " leads"
	}
	if s.DispatchLease {
		text += " dispatches"
	}
	return text
}

// draw replaces the block on the terminal.
func (v *view) draw(s testbed.Sample) {
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn)
	}
	lines := []string{
		fmt.Sprintf("\x1b[1m%s\x1b[0m %.0f s   sent %s   stored %s/s   backlog %s   oldest %s   p50 %s   p99 %s",
			v.scenario, s.At.Seconds(), cli.Thousands(s.Sent), cli.Thousands(int64(s.Rate)), count(s.Backlog), seconds(s.Age), millis(s.P50), millis(s.P99)),
	}
	most := 1.0
	for _, slot := range s.Slots {
		most = max(most, slot.Rate)
	}
	for i, slot := range s.Slots {
		name := slot.Name
		switch {
		case name == "":
			name = "-"
		case !slot.Answered:
			name += " \x1b[31msilent\x1b[0m"
		}
		bar := strings.Repeat("█", int(20*slot.Rate/most))
		lines = append(lines, fmt.Sprintf("  %d  \x1b[3%dm%-20s\x1b[0m %9s/s  %2d shards  %4.0f MB  %s%s",
			i+1, i%6+1, bar, cli.Thousands(int64(slot.Rate)), slot.Shards, slot.RSS/1e6, name, roles(slot)))
	}
	if s.Fault != "" {
		lines = append(lines, "  \x1b[33m"+s.Fault+"\x1b[0m")
	}
	for _, l := range lines {
		b.WriteString("\x1b[2K" + l + "\n")
	}
	for extra := len(lines); extra < v.drawn; extra++ {
		b.WriteString("\x1b[2K\n")
	}
	v.drawn = max(v.drawn, len(lines))
	_, _ = io.WriteString(v.w, b.String())
}

func count(n *int64) string {
	if n == nil {
		return "unknown"
	}
	return cli.Thousands(*n)
}

func seconds(s *float64) string {
	if s == nil {
		return "unknown"
	}
	return strconv.FormatFloat(*s, 'f', 2, 64) + " s"
}

func millis(ms *float64) string {
	if ms == nil {
		return "-"
	}
	return strconv.FormatFloat(*ms, 'f', 0, 64) + " ms"
}
