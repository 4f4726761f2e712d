// Package history is the last hour of a fleet: rates, backlog and who owned
// which shard, as samples that the leader adds to a bounded list in Redis.
//
// The list survives restarts and changes of the leader. It is a picture for
// people, never a basis of decisions: two leaders at the same time add twice as
// many samples, and a sample that Redis rejects is missing.
package history

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

const (
	// Span is how much of the past is shown.
	Span = time.Hour
	// Every is the interval of the samples; one follows each change of owners, too.
	Every = 5 * time.Second
	// Limit is the maximum number of samples kept.
	Limit = 1200
	// keyframe is the number of samples after which owners are written again
	// though they have not changed.
	keyframe = 60
)

// Waits is the owner of a shard that no member works on: it is released, or its
// owner is not the one it is assigned to.
const Waits = -1

// Sample is the fleet at one moment. A nil value is unknown.
type Sample struct {
	At       int64          `json:"t"` // Unix milliseconds
	Added    int64          `json:"a"` // entries ever added to the stream
	Lag      *int64         `json:"l,omitempty"`
	Pending  int64          `json:"p"`
	Deferred *int64         `json:"d,omitempty"`
	Oldest   *int64         `json:"o,omitempty"` // Unix milliseconds of the oldest entry of the backlog; 0 for none
	Versions map[string]int `json:"v,omitempty"` // members by version

	// Members and Runs are the owners, omitted where they are those of the sample
	// before: pairs of an index into Members and a number of shards.
	Members []string `json:"m,omitempty"`
	Runs    []int    `json:"s,omitempty"`
}

// Time returns when the sample was taken.
func (s *Sample) Time() time.Time { return time.UnixMilli(s.At) }

// Backlog returns lag, pending and deferred together; ok is false while one of
// them is unknown.
func (s *Sample) Backlog() (n int64, ok bool) {
	if s.Lag == nil || s.Deferred == nil {
		return 0, false
	}
	return *s.Lag + s.Pending + *s.Deferred, true
}

// Owners is who owns the shards: Of has an index into Members for each, or Waits.
type Owners struct {
	Members []string
	Of      []int
}

// Equal reports whether nothing changed.
func (o Owners) Equal(p Owners) bool {
	return slices.Equal(o.Of, p.Of) && slices.Equal(o.Members, p.Members)
}

// Name returns the owner of a shard, "" for none.
func (o Owners) Name(shard int) string {
	if shard >= len(o.Of) || o.Of[shard] < 0 || o.Of[shard] >= len(o.Members) {
		return ""
	}
	return o.Members[o.Of[shard]]
}

// Encoder turns samples into text. It belongs to one goroutine.
type Encoder struct {
	before Owners
	since  int // samples since the owners were written
	began  bool
}

// Encode returns a sample with the owners, which it omits where the reader knows
// them.
func (e *Encoder) Encode(s Sample, o Owners) (string, error) {
	if e.since++; !e.began || e.since >= keyframe || !o.Equal(e.before) {
		e.began, e.since, e.before = true, 0, o
		s.Members, s.Runs = o.Members, runs(o.Of)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("write a sample: %w", err)
	}
	return string(text), nil
}

func runs(of []int) []int {
	var out []int
	for i := 0; i < len(of); {
		n := i
		for n < len(of) && of[n] == of[i] {
			n++
		}
		out = append(out, of[i], n-i)
		i = n
	}
	return out
}

// maxShards bounds what a damaged sample can make of memory.
const maxShards = 1 << 15

func expand(runs []int) []int {
	var out []int
	for i := 0; i+1 < len(runs) && len(out)+runs[i+1] <= maxShards; i += 2 {
		for range max(0, runs[i+1]) {
			out = append(out, runs[i])
		}
	}
	return out
}

// Window is the past as far as it is known, oldest first.
type Window struct {
	Samples []Sample
	Owners  []Owners // of each sample; empty where they are unknown
}

// Decode returns the samples since a time. Text that is no sample is skipped.
func Decode(texts []string, since time.Time) Window {
	var w Window
	var owners Owners
	for _, text := range texts {
		var s Sample
		if json.Unmarshal([]byte(text), &s) != nil || s.At == 0 {
			continue
		}
		if s.Runs != nil {
			owners = Owners{Members: s.Members, Of: expand(s.Runs)}
		}
		if n := len(w.Samples); s.Time().Before(since) || n > 0 && s.At <= w.Samples[n-1].At {
			continue // too old, or of another leader at the same time
		}
		w.Samples, w.Owners = append(w.Samples, s), append(w.Owners, owners)
	}
	return w
}

// Point is one value of a curve; Known is false for a gap.
type Point struct {
	At    int64   `json:"t"`
	Value float64 `json:"v"`
	Known bool    `json:"k"`
}

// gap is the distance of two samples above which nothing is known in between.
const gap = 4 * Every

// smooth is the span over which a rate is taken.
const smooth = 2 * Every

// Rates returns entries per second that came in, and that were finished.
func (w *Window) Rates() (in, out []Point) {
	from := 0
	for i := range w.Samples {
		s := &w.Samples[i]
		for from < i && w.Samples[from+1].Time().Add(smooth).Compare(s.Time()) <= 0 {
			from++
		}
		p := &w.Samples[from]
		seconds := float64(s.At-p.At) / 1000
		known := seconds > 0 && s.Time().Sub(w.Samples[max(0, i-1)].Time()) <= gap && s.Added >= p.Added
		a, b := Point{At: s.At}, Point{At: s.At}
		if known {
			a.Value, a.Known = float64(s.Added-p.Added)/seconds, true
			was, ok1 := p.Backlog()
			is, ok2 := s.Backlog()
			if ok1 && ok2 {
				b.Value, b.Known = max(0, float64(s.Added-p.Added-(is-was))/seconds), true
			}
		}
		in, out = append(in, a), append(out, b)
	}
	return in, out
}

// Backlogs returns the entries outstanding, and the age in seconds of the oldest.
func (w *Window) Backlogs() (size, age []Point) {
	for i := range w.Samples {
		s := &w.Samples[i]
		a, b := Point{At: s.At}, Point{At: s.At}
		if n, ok := s.Backlog(); ok {
			a.Value, a.Known = float64(n), true
		}
		if s.Oldest != nil {
			b.Known = *s.Oldest <= s.At+1000 // not ahead of the clock
			if *s.Oldest > 0 {
				b.Value = max(0, float64(s.At-*s.Oldest)/1000)
			}
		}
		size, age = append(size, a), append(age, b)
	}
	return size, age
}

// Mark is something that happened.
type Mark struct {
	At   int64  `json:"t"`
	Kind string `json:"kind"` // deploy, handover or incident
	Text string `json:"text"`
}

// Kinds of marks.
const (
	Deploy   = "deploy"
	HandOver = "handover"
	Incident = "incident"
)

// Marks returns the deploys and the hand-overs of shards.
func (w *Window) Marks() []Mark {
	var marks []Mark
	for i := 1; i < len(w.Samples); i++ {
		s, before := &w.Samples[i], w.Samples[i-1].Versions
		for version := range s.Versions {
			if _, there := before[version]; !there && len(before) > 0 {
				marks = append(marks, Mark{At: s.At, Kind: Deploy, Text: "version " + version + " joined"})
			}
		}
		if n := moved(w.Owners[i-1], w.Owners[i]); n > 0 {
			text := fmt.Sprintf("%d shards moved", n)
			if n == 1 {
				text = "1 shard moved"
			}
			if last := len(marks) - 1; last >= 0 && marks[last].Kind == HandOver && s.At-marks[last].At < 1000 {
				continue // one hand-over in several steps
			}
			marks = append(marks, Mark{At: s.At, Kind: HandOver, Text: text})
		}
	}
	return marks
}

// moved returns the number of shards that came to a member.
func moved(from, to Owners) int {
	n := 0
	for shard := range to.Of {
		if name := to.Name(shard); name != "" && len(from.Of) > 0 && name != from.Name(shard) {
			n++
		}
	}
	return n
}

// Ownership is a span of a shard's past in which it had one owner.
type Ownership struct {
	From  int64  `json:"f"`
	To    int64  `json:"t"`
	Owner string `json:"o"` // "" while it waited
}

// Timeline returns the owners of each shard over time, up to a time.
func (w *Window) Timeline(shards int, until time.Time) [][]Ownership {
	lines := make([][]Ownership, shards)
	for i := range w.Samples {
		to := until.UnixMilli()
		if i+1 < len(w.Samples) {
			to = w.Samples[i+1].At
		}
		at := w.Samples[i].At
		if to-at > gap.Milliseconds() {
			to = at + gap.Milliseconds() // nothing is known of the rest
		}
		if len(w.Owners[i].Of) == 0 {
			continue
		}
		for shard := range min(shards, len(w.Owners[i].Of)) {
			owner := w.Owners[i].Name(shard)
			line := lines[shard]
			if n := len(line); n > 0 && line[n-1].Owner == owner && line[n-1].To == at {
				line[n-1].To = to
				continue
			}
			lines[shard] = append(line, Ownership{From: at, To: to, Owner: owner})
		}
	}
	return lines
}
