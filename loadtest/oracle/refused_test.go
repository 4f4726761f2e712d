package oracle_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// threeFixes are of one device, and the one in the middle comes last.
func threeFixes() []fleet.Item {
	var items []fleet.Item
	for _, fix := range []struct {
		second int
		lon    float64
	}{{0, 1}, {20, 2}, {10, 1.5}} {
		items = append(items, fleet.Item{Message: fleet.Message{
			DeviceID: "a", Codec: "8", Time: time.Date(2026, 1, 1, 0, 0, fix.second, 0, time.UTC), Latitude: 42.5, Longitude: fix.lon, Satellites: 9,
		}})
	}
	return items
}

// P6: a record that the database refused until its last attempt is a dead letter, and what
// is derived is as if it had not been sent; in no other case is it one.
func TestARecordThatIsRefusedForLongIsADeadLetter(t *testing.T) {
	t.Parallel()
	whole, left := send(t, threeFixes()), send(t, threeFixes()[:2])
	last := oracle.ID(whole.sent[2].ID)
	const from, to = 1_780_000_100_000_000, 1_780_000_110_000_000
	type state struct {
		letter oracle.LetterFields
		class  string
		seen   oracle.Observed
	}
	for name, tt := range map[string]struct {
		spoil func(s *state)
		want  oracle.Kind
	}{
		"as it must be":                           {func(*state) {}, ""},
		"it was never deferred":                   {func(s *state) { s.seen.Deferred = nil }, oracle.KindDeadLetter},
		"another device was refused":              {func(s *state) { s.seen.Refused[0].Device = "b" }, oracle.KindDeadLetter},
		"it failed first before that":             {func(s *state) { s.letter.FirstUS = from - 1 }, oracle.KindDeadLetter},
		"it failed last long after that":          {func(s *state) { s.letter.LastUS = to + 60_000_000 }, oracle.KindDeadLetter},
		"it crashed":                              {func(s *state) { s.class = "crash" }, oracle.KindDeadLetter},
		"it was given up before its last attempt": {func(s *state) { s.letter.Attempts = 2 }, oracle.KindDeadLetter},
		"it was given up for another error":       {func(s *state) { s.letter.Error = "write: EOF" }, oracle.KindDeadLetter},
		"it is of another shard":                  {func(s *state) { s.letter.Shard++ }, oracle.KindDeadLetter},
		"it is stored, too": {func(s *state) {
			s.seen.Positions, s.seen.Crossings, s.seen.Changes = all(whole.rows), all(whole.crossings), all(whole.changes)
		}, oracle.KindUnexpected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := state{class: "sink", seen: left.observed(), letter: oracle.LetterFields{
				Shard: telemetry.ShardOf("a", letterRules.Shards(to)), Attempts: letterRules.MaxAttempts, Error: "write: ERROR: check (SQLSTATE 23514)",
				Fingerprint: "sink/allowed/23514", Instance: "i1", FirstUS: from + 1, LastUS: to - 1,
			}}
			s.seen.Deferred, s.seen.Refused = map[oracle.ID]bool{last: true}, []oracle.Refusal{{Device: "a", FromUS: from, ToUS: to}}
			tt.spoil(&s)
			s.seen.DeadLetters = all([]oracle.DeadLetter{{Source: last, Class: s.class, Fields: &s.letter}})
			o, err := oracle.New(logOf(t, whole.sent))
			require.NoError(t, err)
			report, err := o.Judge(s.seen)
			require.NoError(t, err)
			require.True(t, report.Account.Balanced())
			if tt.want == "" {
				require.True(t, report.Good(), "%v", report.Examples)
				return
			}
			require.EqualValues(t, 1, report.Counts[tt.want], "%v", report.Examples)
		})
	}
}

// P7: an outage is no record's fault.
func TestARecordIsRejectedOnlyWhileItIsRefused(t *testing.T) {
	t.Parallel()
	r := send(t, threeFixes())
	const from, to = 1_780_000_100_000_000, 1_780_000_110_000_000
	for name, tt := range map[string]struct {
		at      int64
		refused []oracle.Refusal
		found   int64
	}{
		"nothing was refused":        {from, nil, 1},
		"its device was":             {from, []oracle.Refusal{{Device: "a", FromUS: from, ToUS: to}}, 0},
		"another device was":         {from, []oracle.Refusal{{Device: "b", FromUS: from, ToUS: to}}, 1},
		"all were":                   {from, []oracle.Refusal{{FromUS: from, ToUS: to}}, 0},
		"all were, before":           {to + 60_000_000, []oracle.Refusal{{FromUS: from, ToUS: to}}, 1},
		"a frozen instance notes it": {to + 5_000_000, []oracle.Refusal{{FromUS: from, ToUS: to}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := oracle.New(logOf(t, r.sent))
			require.NoError(t, err)
			seen := r.observed()
			seen.Rejections = []oracle.Rejection{{ID: oracle.ID(r.sent[1].ID), AtUS: tt.at}, {ID: oracle.ID{Ms: 1}, AtUS: tt.at}}
			seen.Refused = tt.refused
			report, err := o.Judge(seen)
			require.NoError(t, err)
			require.Equal(t, tt.found, report.Counts[oracle.KindAttempt], "%v", report.Examples)
		})
	}
}

// P5: an entry that is deferred is a record once it is stored: one with its device and time
// may be before it.
func TestADeferredEntryIsARecordOnceItIsStored(t *testing.T) {
	t.Parallel()
	items := append(threeFixes()[:1], threeFixes()[:2]...)
	items[1].Message.Longitude = 1.4 // at the time of the first
	r := send(t, items)
	r.rows[0].Longitude, r.noChanges = 1.4, true
	r.crossings = send(t, items[1:]).crossings
	judge := func(deferred map[oracle.ID]bool) *oracle.Report {
		seen := r.observed()
		seen.Deferred = deferred
		o, err := oracle.New(logOf(t, r.sent))
		require.NoError(t, err)
		report, err := o.Judge(seen)
		require.NoError(t, err)
		return report
	}
	require.EqualValues(t, 1, judge(nil).Counts[oracle.KindWinner])
	report := judge(map[oracle.ID]bool{oracle.ID(r.sent[0].ID): true})
	require.True(t, report.Good(), "%v", report.Examples)
	require.EqualValues(t, 1, report.Account.Duplicates)
}

// P3: other records of its device do not wait for an entry that is deferred.
func TestADeferredEntryIsCommittedWhenever(t *testing.T) {
	t.Parallel()
	o, commits := threeOf(t)
	commits[2].AtUS = 200 // the first one sent of a device
	for _, tt := range []struct {
		deferred  map[oracle.ID]bool
		reordered int64
	}{{nil, 2}, {map[oracle.ID]bool{{Ms: 1, Seq: 10}: true}, 2}, {map[oracle.ID]bool{{Ms: 1}: true}, 0}} {
		verdict, err := o.Order(all(commits), oracle.OrderRules{Deferred: tt.deferred})
		require.NoError(t, err)
		require.Equal(t, tt.reordered, verdict.Reordered)
	}
}

// P4: after a change of the number of shards a device has another owner.
func TestOwnersAreJudgedByTheNumberOfShardsOfTheirTime(t *testing.T) {
	t.Parallel()
	o, commits := threeOf(t)
	spans := []oracle.OwnershipSpan{{Owner: "a", FromUS: 100}, {Owner: "", FromUS: 102}}
	for shard := range 7 {
		spans = append(spans, oracle.OwnershipSpan{Shard: shard, Owner: "a", FromUS: 102})
	}
	verdict, err := o.Order(all(commits), oracle.OrderRules{Spans: spans, Shards: func(atUS int64) int { return 1 + 6*int(atUS/102) }})
	require.NoError(t, err)
	require.True(t, verdict.Good(), verdict.Examples)
	verdict, err = o.Order(all(commits), oracle.OrderRules{Spans: spans, Shards: oracle.Always(7)})
	require.NoError(t, err)
	require.Positive(t, verdict.Stale)
}
