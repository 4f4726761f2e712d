package scenarios

import (
	"time"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// Result is how a scenario ended. Its JSON is the last line of a run; null means
// unknown.
type Result struct {
	Scenario  string    `json:"scenario"`
	Instances int       `json:"instances"`
	Sent      int64     `json:"sent"`
	Stored    int64     `json:"stored"`
	Lost      int64     `json:"lost"`
	Double    int64     `json:"double"`    // effects too many
	Reordered *int64    `json:"reordered"` // against the order of the stream, per device
	Share     []float64 `json:"share"`     // of the records stored, by slot
	Oracle    string    `json:"oracle"`    // equal or different
	PerSecond float64   `json:"per_second"`
	P99MS     *float64  `json:"p99_ms"` // from stream time to commit, by the clocks of Redis and of Postgres
	P50MS     *float64  `json:"p50_ms"`
	// Of the scenarios that replace instances: latencies before and during it, and the
	// longest time that entries of one shard waited without a commit.
	SteadyP99MS  *float64 `json:"steady_p99_ms,omitempty"`
	RollP99MS    *float64 `json:"roll_p99_ms,omitempty"`
	LongestGapMS *float64 `json:"longest_gap_ms,omitempty"`
	// Of the scenario that kills: from the worst death until the last device of the dead was
	// served again.
	ServedAgainMS *float64 `json:"served_again_ms,omitempty"`
	// Of the scenario with a hot device: latencies of the others before and with it, what
	// the busiest instance stores relative to the mean, and shards acquired in a minute.
	QuietP99MS   *float64     `json:"quiet_p99_ms,omitempty"`
	HotP99MS     *float64     `json:"hot_p99_ms,omitempty"`
	Busiest      *float64     `json:"busiest,omitempty"`
	Moves        *int         `json:"moves_a_minute,omitempty"`
	Seed         uint64       `json:"seed"`
	World        devenv.World `json:"world"`  // of private servers
	Repeat       string       `json:"repeat"` // the command that runs the same again
	Stale        *int64       `json:"stale"`  // rows committed by a member that did not own the shard
	Early        *int64       `json:"early"`  // records found acknowledged and not stored; null where none was looked for
	Duplicates   int64        `json:"duplicates"`
	DeadLettered int64        `json:"dead_lettered"`
	Crossings    int64        `json:"crossings"` // that are as they must be
	Revised      int64        `json:"revised"`   // changes and withdrawals of crossings
	Backlog      int64        `json:"backlog"`
	Seconds      float64      `json:"seconds"`
	PeakAge      float64      `json:"peak_age_seconds"` // of the oldest unfinished entry
	// TakeoverSeconds are the times from a fault until others owned all shards.
	TakeoverSeconds []float64 `json:"takeover_seconds,omitempty"`
	// Curves tell how far behind the fleet was, second by second, after each of them.
	Curves []LagCurve `json:"lag_curves,omitempty"`
	// Rates are those of the rounds of a scenario that compares some.
	Rates  []float64 `json:"rates,omitempty"`
	Missed []string  `json:"missed,omitempty"` // bounds
	// NotJudged is what no bound looked at, and why.
	NotJudged string `json:"not_judged,omitempty"`
	// Streams are the parts of a run with several.
	Streams []StreamResult `json:"streams,omitempty"`
	// Reached is how often each rare branch was reached, where that was counted.
	Reached rare.Counts `json:"reached,omitempty"`

	Findings       []oracle.Finding `json:"-"`
	Order          []string         `json:"-"` // examples of rows out of order
	Facts          []Fact           `json:"-"`
	Samples        []testbed.Sample `json:"-"`
	Marks          []Mark           `json:"-"`
	OwnershipSpans []OwnershipSpan  `json:"-"`
	Account        oracle.Account   `json:"-"`
}

// StreamResult is what became of one stream of several.
type StreamResult struct {
	Stream    string   `json:"stream"`
	Sent      int64    `json:"sent"`
	Stored    int64    `json:"stored"`
	Lost      int64    `json:"lost"`
	Double    int64    `json:"double"`
	Reordered *int64   `json:"reordered"`
	P99MS     *float64 `json:"p99_ms"`      // while nothing was wrong
	AwayP99MS *float64 `json:"away_p99_ms"` // while a master was away
	Paused    bool     `json:"paused"`      // it was the stream's own
}

// Good reports whether all bounds were kept.
func (r *Result) Good() bool { return len(r.Missed) == 0 }

// LagCurve is how far behind the fleet was after a fault: the largest value of each
// second, counted from the fault. Null is unknown throughout the second.
type LagCurve struct {
	After      string     `json:"after"`
	Backlog    []*int64   `json:"backlog"`
	AgeSeconds []*float64 `json:"age_seconds"` // of the oldest unfinished entry
}

// Fact is something a scenario measured that is worth a line.
type Fact struct{ Name, Value string }

// Mark is a fault, or another event that a chart should show.
type Mark struct {
	At, Until time.Duration // Until is 0 for a moment
	What      string
	Slot      int // -1 where it is not about one
}

// OwnershipSpan is a span of time in which a slot owned a shard.
type OwnershipSpan struct {
	Shard, Slot int // slot -1: nobody
	From, To    time.Duration
}
