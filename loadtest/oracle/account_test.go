package oracle_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// TestWhatTheAccountsSayIsComparedWithWhatHappened breaks one of the accounts that a
// faultless run leaves behind: dead letters, the ledger, requests.
func TestWhatTheAccountsSayIsComparedWithWhatHappened(t *testing.T) {
	intact := send(t, nearby(t, profile(11, 5, 400*time.Second)))
	require.True(t, intact.judge(t).Good(), "%v", intact.judge(t).Examples)
	decoded := slices.IndexFunc(intact.deadLetters, func(d oracle.DeadLetter) bool { return d.Class == "decode" })
	require.GreaterOrEqual(t, decoded, 0)
	row := intact.rows[30].Entry

	type counts = map[oracle.Kind]int64
	for _, tt := range []struct {
		name  string
		spoil func(r *run, letter *oracle.LetterFields)
		want  counts
	}{
		{"one byte of a dead letter's entry is another", func(_ *run, l *oracle.LetterFields) { l.Sum[0]++ }, counts{"dead_letter": 1}},
		{"a dead letter lies with another shard", func(_ *run, l *oracle.LetterFields) { l.Shard++ }, counts{"dead_letter": 1}},
		{"a dead letter was tried once too often", func(_ *run, l *oracle.LetterFields) { l.Attempts++ }, counts{"dead_letter": 1}},
		{"a dead letter was given up too early", func(_ *run, l *oracle.LetterFields) { l.Attempts-- }, counts{"dead_letter": 1}},
		{"a dead letter blames another field", func(_ *run, l *oracle.LetterFields) {
			l.Field, l.Error = "payload.angle", "decode: payload.angle: is no number"
		}, counts{"dead_letter": 1}},
		{"a dead letter has another error", func(_ *run, l *oracle.LetterFields) { l.Error = "sink: no" }, counts{"dead_letter": 1}},
		{"a dead letter has no fingerprint", func(_ *run, l *oracle.LetterFields) { l.Fingerprint = "" }, counts{"dead_letter": 1}},
		{"nobody made a dead letter", func(_ *run, l *oracle.LetterFields) { l.Instance = "" }, counts{"dead_letter": 1}},
		{"a dead letter failed before it was sent", func(_ *run, l *oracle.LetterFields) { l.FirstUS -= 120e6 }, counts{"dead_letter": 1}},
		{"a dead letter failed last before it failed", func(_ *run, l *oracle.LetterFields) { l.LastUS = l.FirstUS - 1 }, counts{"dead_letter": 1}},
		{"the ledger counts what is there", func(r *run, _ *oracle.LetterFields) {
			r.losses = []oracle.Loss{{Cause: "trimmed_unread", First: row, Last: row, Entries: 1}}
		}, counts{"ledger": 1}},
		{"what is lost is in no ledger", func(r *run, _ *oracle.LetterFields) { r.rows = slices.Delete(r.rows, 30, 31) }, counts{"lost": 1, "ledger": 1}},
		{"what is lost is in a range that misses it", func(r *run, _ *oracle.LetterFields) {
			r.rows = slices.Delete(r.rows, 30, 31)
			r.losses = []oracle.Loss{{Cause: "failover", First: oracle.ID{Ms: row.Ms + 1}, Entries: -1}}
		}, counts{"lost": 1, "ledger": 1}},
		{"what is lost is counted short", func(r *run, _ *oracle.LetterFields) {
			r.rows = slices.Delete(r.rows, 30, 31)
			r.losses = []oracle.Loss{{Cause: "failover", Entries: 0}}
		}, counts{"lost": 1, "ledger": 1}},
		{"what is lost is in the ledger", func(r *run, _ *oracle.LetterFields) {
			r.rows = slices.Delete(r.rows, 30, 31)
			r.losses = []oracle.Loss{{Cause: "trimmed_unread", First: row, Last: row, Entries: 1}}
		}, counts{"lost": 1}},
		{"a request is left over", func(r *run, _ *oracle.LetterFields) {
			r.requests = []oracle.Request{{Number: 7, Kind: "recompute", State: "waiting", Device: "42"}}
		}, counts{"request": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := *intact
			r.rows, r.deadLetters, r.noChanges = slices.Clone(r.rows), slices.Clone(r.deadLetters), true
			fields := *r.deadLetters[decoded].Fields
			r.deadLetters[decoded].Fields = &fields
			tt.spoil(&r, &fields)
			report := r.judge(t)
			require.Equal(t, tt.want, report.Counts, "%v", report.Examples)
			require.False(t, report.Good())
		})
	}
}

// TestChangesOfCrossingsAreCountedAndHaveAReason changes the history of crossings that a
// late record moved: one was withdrawn and one changed.
func TestChangesOfCrossingsAreCountedAndHaveAReason(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s int, lon float64) fleet.Item {
		return fleet.Item{Message: fleet.Message{DeviceID: "a", Codec: "8", Time: start.Add(time.Duration(s) * time.Second), Latitude: 42.5, Longitude: lon, Satellites: 9}}
	}
	later := start.Add(20 * time.Second).UnixMicro()
	r := send(t, []fleet.Item{at(0, 1), at(20, 2), at(10, 1.5)}) // the one in the middle comes late
	change := func(fence, kind string, old, revision int) oracle.Change {
		return oracle.Change{Device: "a", FenceID: fence, Kind: kind, LaterUS: later, Old: old, New: revision}
	}
	// First both fixes, then the one between them: it takes the way in from the later fix.
	exit := slices.IndexFunc(r.crossings, func(c oracle.Crossing) bool { return c.FenceID == "box" && c.Kind == "exit" })
	require.Equal(t, later, r.crossings[exit].LaterUS)
	r.crossings[exit].Revision = 2
	r.changes = slices.DeleteFunc(r.changes, func(c oracle.Change) bool { return c.FenceID == "box" && c.Kind == "exit" })
	r.changes = append(r.changes, change("box", "enter", 0, 1), change("box", "exit", 0, 1), change("box", "enter", 1, 0), change("box", "exit", 1, 2))
	good := r.judge(t)
	require.True(t, good.Good(), "%v", good.Examples)
	require.Equal(t, int64(2), good.Revised)
	enter, last := len(r.changes)-4, len(r.changes)-1

	for _, tt := range []struct {
		name  string
		spoil func(r *run)
		want  int64
	}{
		{"a revision was not raised", func(r *run) { r.changes[last].New, r.crossings[exit].Revision = 1, 1 }, 1},
		{"a revision was raised by two", func(r *run) { r.changes[last].New, r.crossings[exit].Revision = 3, 3 }, 1},
		{"a revision was raised and nothing changed", func(r *run) { r.changes[last].Same = true }, 1},
		{"the table holds another revision", func(r *run) { r.crossings[exit].Revision = 3 }, 1},
		{"a row came with a revision", func(r *run) { r.changes[enter].New, r.changes[enter+2].Old = 4, 4 }, 1},
		{"a withdrawn row is there", func(r *run) { r.changes = slices.Delete(r.changes, enter+2, enter+3) }, 1},
		{"it changed more often than records came late", func(r *run) {
			r.changes = append(r.changes, change("box", "exit", 2, 3))
			r.crossings[exit].Revision = 3
		}, 1},
		{"it was withdrawn and came back without reason", func(r *run) {
			r.changes = append(r.changes, change("box", "exit", 2, 0), change("box", "exit", 0, 1))
			r.crossings[exit].Revision = 1
		}, 1},
		{"no change was noted", func(r *run) { r.changes = nil }, int64(len(r.crossings))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spoilt := *r
			spoilt.changes, spoilt.crossings = slices.Clone(r.changes), slices.Clone(r.crossings)
			tt.spoil(&spoilt)
			report := spoilt.judge(t)
			require.Equal(t, map[oracle.Kind]int64{"revision": tt.want}, report.Counts, "%v", report.Examples)
		})
	}

	// In the order of device time nothing comes late, and nothing may change.
	inOrder := send(t, []fleet.Item{at(0, 1), at(10, 1.5), at(20, 2)})
	inOrder.crossings[exit].Revision = 2
	inOrder.changes = append(inOrder.changes, change("box", "exit", 1, 2))
	require.Equal(t, map[oracle.Kind]int64{"revision": 1}, inOrder.judge(t).Counts)
}
