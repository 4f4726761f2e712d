package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

// printResult prints the table for people, the findings, and the line for
// programs.
func printResult(out, notes io.Writer, r *scenarios.Result, f runFlags) error {
	table := out
	if f.json {
		table = notes
	}
	printTable(table, r)
	for _, finding := range r.Findings {
		_, _ = fmt.Fprintln(notes, "finding:", finding)
	}
	for _, example := range r.Order {
		_, _ = fmt.Fprintln(notes, "order:", example)
	}
	for _, missed := range r.Missed {
		_, _ = fmt.Fprintln(notes, "MISSED:", missed)
	}
	if f.json {
		if err := printJSON(out, r); err != nil {
			return err
		}
	}
	if !r.Good() {
		_, _ = fmt.Fprintln(notes, "to repeat:", r.Repeat)
		return errMissed
	}
	return nil
}

// skipped is the line for programs of a run in a world that this machine lacks.
type skipped struct {
	Scenario string `json:"scenario"`
	Skipped  string `json:"skipped"` // why
}

// printJSON prints one line for programs.
func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

func printTable(w io.Writer, r *scenarios.Result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(t, "  %s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	verdict := "all bounds kept"
	if !r.Good() {
		verdict = fmt.Sprintf("%d bounds missed", len(r.Missed))
	}
	_, _ = fmt.Fprintf(t, "%s\t%s\n", r.Scenario, verdict)
	row("sent", "%s in %.1f s, %s/s", cli.Thousands(r.Sent), r.Seconds, cli.Thousands(int64(r.PerSecond)))
	row("stored", "%s, duplicates %s, dead letters %s", cli.Thousands(r.Stored), cli.Thousands(r.Duplicates), cli.Thousands(r.DeadLettered))
	row("lost, double, backlog", "%d, %d, %d", r.Lost, r.Double, r.Backlog)
	row("reordered, stale", "%s, %s", count(r.Reordered), count(r.Stale))
	row("rows", "%s to what the oracle says", r.Oracle)
	var shares []string
	for _, s := range r.Share {
		shares = append(shares, fmt.Sprintf("%.3f", s))
	}
	row("shares", "%s", strings.Join(shares, ", "))
	row("latency", "p50 %s, p99 %s", millis(r.P50MS), millis(r.P99MS))
	row("oldest unfinished entry", "at most %.2f s old", r.PeakAge)
	if len(r.TakeoverSeconds) > 0 {
		row("takeover", "%s s", strings.Trim(fmt.Sprintf("%.2f", r.TakeoverSeconds), "[]"))
	}
	for _, c := range r.Curves {
		var ages []string
		for _, age := range c.AgeSeconds {
			text := "?"
			if age != nil {
				text = strconv.FormatFloat(*age, 'f', 1, 64)
			}
			ages = append(ages, text)
		}
		row("lag curve", "%s: oldest unfinished entry %s s old in the seconds that followed", c.After, strings.Join(ages, " "))
	}
	for _, f := range r.Facts {
		row(f.Name, "%s", f.Value)
	}
	_ = t.Flush() // a terminal that is gone is nobody's loss
}
