package oracle

import "time"

// Account says what became of the entries of a run. Its JSON is the last line
// of the demo.
type Account struct {
	Entries      int64   `json:"entries"`
	Stored       int64   `json:"stored"`            // its record is a row
	Duplicates   int64   `json:"duplicates"`        // an earlier entry's record is the row
	DeadLettered int64   `json:"dead_lettered"`     // dead-lettered with a reason
	Pending      int64   `json:"pending"`           // still to be done
	Lost         int64   `json:"lost"`              // nowhere
	Dropped      int64   `json:"dropped,omitempty"` // its row was there, and is gone by retention
	Mismatches   int64   `json:"mismatches"`        // findings other than lost entries
	Seconds      float64 `json:"seconds"`
	PerSecond    float64 `json:"per_second"`
}

// Over fills in how long the run took and its rate of finished entries.
func (a Account) Over(d time.Duration) Account {
	a.Seconds, a.PerSecond = d.Seconds(), 0
	if d > 0 {
		a.PerSecond = float64(a.Entries-a.Pending-a.Lost) / d.Seconds()
	}
	return a
}

// Plus returns the account of both.
func (a Account) Plus(b Account) Account {
	a.Entries += b.Entries
	a.Stored += b.Stored
	a.Duplicates += b.Duplicates
	a.DeadLettered += b.DeadLettered
	a.Pending += b.Pending
	a.Lost += b.Lost
	a.Dropped += b.Dropped
	a.Mismatches += b.Mismatches
	return a
}

// Balanced reports whether each entry is counted exactly once.
func (a Account) Balanced() bool {
	return a.Entries == a.Stored+a.Duplicates+a.DeadLettered+a.Pending+a.Lost+a.Dropped
}

// Good reports whether the account balances with nothing pending, lost or wrong.
func (a Account) Good() bool {
	return a.Balanced() && a.Pending == 0 && a.Lost == 0 && a.Mismatches == 0
}
