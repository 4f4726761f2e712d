package schema

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// compareCatalogs lists what live lacks of needed as problems, and other
// differences as notes.
func compareCatalogs(needed, live catalog) Report {
	var r Report
	for _, name := range slices.Sorted(maps.Keys(needed.Tables)) {
		want := needed.Tables[name]
		table, found := live.Tables[name]
		if !found || table.View != want.View {
			r.problem(want.kind(), name, "a "+want.kind(), "missing")
			continue
		}
		r.compareTable(name, want, table)
	}
	for _, name := range slices.Sorted(maps.Keys(needed.Functions)) {
		want := needed.Functions[name]
		have, found := live.Functions[name]
		switch {
		case slices.Contains(superseded, name):
			if !found {
				r.note("function", name, "", "missing, which only instances of earlier releases call")
			}
		case !found:
			r.problem("function", name, "returns "+want.Returns, "missing")
		case have.Returns != want.Returns:
			r.problem("function", name, "returns "+want.Returns, "returns "+have.Returns)
		case have.Body != want.Body:
			// A later schema may replace the body; probes check what matters.
			r.note("function", name, "the body this binary came with", "another body")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(live.Tables)) {
		if _, known := needed.Tables[name]; !known {
			r.note(live.Tables[name].kind(), name, "", "extra")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(live.Functions)) {
		if _, known := needed.Functions[name]; !known {
			r.note("function", name, "", "extra")
		}
	}
	return r
}

// superseded are functions that instances of earlier releases call, and this binary does not.
var superseded = []string{
	"processor.expire(text, text, interval, text)",
	"processor.expire_conflicts(text, text, interval)",
	"processor.expire_timing_changes(interval)",
}

// readersIndex is the index of positions that this service has no use for: it repeats the
// unique one for those who read the rows that are not faulty.
const readersIndex = "btree (device_id, ts desc) where (faulty = false)"

func (r *Report) compareTable(name string, needed, live table) {
	if needed.Logged && !live.Logged {
		r.problem("table", name, "a table that survives a crash", "unlogged")
	}
	for _, column := range slices.Sorted(maps.Keys(needed.Columns)) {
		want := needed.Columns[column]
		have, found := live.Columns[column]
		switch {
		case !found:
			r.problem("column", name+"."+column, want.String(), "missing")
		case !columnServes(want, have):
			r.problem("column", name+"."+column, want.String(), have.String())
		}
	}
	for _, column := range slices.Sorted(maps.Keys(live.Columns)) {
		if _, known := needed.Columns[column]; known {
			continue
		}
		have := live.Columns[column]
		if have.NotNull && have.Filled == "" {
			r.problem("column", name+"."+column, "no column, or one that may be left out of an insert", have.String())
			continue
		}
		r.note("column", name+"."+column, "", "extra, "+have.String())
	}
	indexes := needed.Indexes
	if name == "public.positions" {
		indexes = slices.DeleteFunc(slices.Clone(indexes), func(index string) bool { return index == readersIndex })
		if !slices.Contains(live.Indexes, readersIndex) {
			r.note("index", "on "+name, "", "without "+readersIndex+", which only other readers of the table use")
		}
	}
	r.compareLists("index", name, indexes, slices.DeleteFunc(slices.Clone(live.Indexes), func(index string) bool {
		return index == readersIndex && slices.Contains(needed.Indexes, index)
	}))
	r.compareLists("trigger", name, needed.Triggers, live.Triggers)
}

// columnServes reports whether statements written for want work with have.
func columnServes(want, have column) bool {
	if want.Type != have.Type || want.NotNull != have.NotNull {
		return false
	}
	return want.Filled == have.Filled || want.Filled == "" && strings.HasPrefix(have.Filled, "default")
}

func (r *Report) compareLists(kind, table string, needed, live []string) {
	for _, want := range needed {
		if !slices.Contains(live, want) {
			r.problem(kind, "on "+table, want, "missing, disabled or invalid")
		}
	}
	for _, have := range live {
		if !slices.Contains(needed, have) {
			r.note(kind, "on "+table, "", "extra, "+have)
		}
	}
}

func (r *Report) problem(kind, name, want, have string) {
	r.Problems = append(r.Problems, Finding{Kind: kind, Name: name, Want: want, Have: have})
}

func (r *Report) note(kind, name, want, have string) {
	r.Notes = append(r.Notes, Finding{Kind: kind, Name: name, Want: want, Have: have})
}

// Finding is one difference between what is needed and what exists.
type Finding struct {
	Kind string `json:"kind"` // table, view, column, index, trigger, function, privilege, row security, rule or migration
	Name string `json:"name"`
	Want string `json:"want,omitempty"`
	Have string `json:"have"`
}

// String returns the finding as one line.
func (f Finding) String() string {
	if f.Want == "" {
		return fmt.Sprintf("%s %s: %s", f.Kind, f.Name, f.Have)
	}
	return fmt.Sprintf("%s %s: %s; needed: %s", f.Kind, f.Name, f.Have, f.Want)
}
