package pipeline

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// A commit of deferred entries that waited for a refusal ends the pause that it began:
// on a quiet shard nothing else does, and no deferred entry is claimed meanwhile.
func TestAPauseThatDeferredEntriesBeganEnds(t *testing.T) {
	t.Parallel()
	table := newTable(Config{Shards: 1, Workers: 1})
	table.slots[0].owned = true
	parts := []part{{again: map[telemetry.EntryID]protocol.Deferred{}}}
	table.pause(parts, protocol.Refusal{Reason: "53400/"})
	require.Empty(t, table.working())
	require.Equal(t, "53400/", table.resume(parts))
	require.Len(t, table.working(), 1)
}

// A rival that replaces a row is behind the late records in what a commit reports.
func TestARivalThatIsStoredCountsForItsShard(t *testing.T) {
	t.Parallel()
	s, b := newState(10, 1, func() {}), &batch{}
	b.reset(1, true)
	b.rules.Fences = &protocol.Fences{Set: &geofence.Set{}}
	d := s.learn("1", 0, geofence.Fix{TimeUS: never})
	noFix, fix := telemetry.Record{DeviceID: "1", TimeUS: 1}, telemetry.Record{DeviceID: "1", TimeUS: 1, Satellites: 7}
	b.place(d, &noFix, false)
	b.place(d, &fix, true)
	require.Len(t, b.late, 1)
	require.Len(t, b.rivals, 1)

	k := newBreaker()
	k.refuse("23514/", 0, "2", time.Now())
	k.stored(time.Now(), b, protocol.CommitResult{Stored: []bool{true, true}}, 1)
	require.Equal(t, map[int]uint64{allShards: 2, 0: 2}, k.storedRows)
}

// After a crash every entry is applied apart, as a late record: what to try instead of one that is refused is
// among these.
func TestALateRecordThatIsStoredIsTriedInsteadOfARefusedOne(t *testing.T) {
	t.Parallel()
	b := &batch{late: []telemetry.Record{{DeviceID: "1"}, {DeviceID: "2"}}}
	k := newBreaker()
	k.stored(time.Now(), b, protocol.CommitResult{Stored: []bool{false, true}}, 1)
	list := k.instead(&telemetry.Record{DeviceID: "3"}, true)
	require.Len(t, list, 1)
	require.Equal(t, "2", list[0].DeviceID)
}

// P6: what waits behind a refused entry may crash the process as it is decoded. During the exclusive attempt
// of another worker that waits, during one of its own nothing of it is looked at.
func TestP6NoOtherEntryIsDecodedDuringAnExclusiveAttempt(t *testing.T) {
	t.Parallel()
	entry := func(device int) telemetry.Entry {
		m := fleet.Message{DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000, 0).UTC()}
		return telemetry.Entry{ID: telemetry.EntryID{Ms: uint64(device)}, Fields: fleet.EntryFields(&m)}
	}
	refused, other := part{entries: []telemetry.Entry{entry(1)}}, entry(2)
	other.Fields = other.Fields[:4] // it is looked at, and is no record
	var w *worker
	for name, look := range map[string]func(){
		"rows to try instead":      func() { w.probeRecords(&refused.entries[0], false) },
		"the refused one":          func() { w.probeRecords(&other, false) },
		"whether most are refused": func() { _, _, _ = w.mostRefused(t.Context(), refused) },
	} {
		w = &worker{
			cfg: Config{Shards: 1}, attempts: NewAttempts(), breaker: newBreaker(), box: newMailbox(),
			decoder: telemetry.NewDecoder(telemetry.DefaultLimits()), inbox: []message{{kind: work, entries: []telemetry.Entry{other}}},
		}
		w.attempts.applying.Lock()
		looked := make(chan struct{})
		go func() { look(); close(looked) }()
		select {
		case <-looked:
			t.Fatal(name + ": decoded during the attempt of another worker")
		case <-time.After(50 * time.Millisecond):
		}
		w.attempts.applying.Unlock()
		<-looked
	}
	w.exclusive = true
	w.probeRecords(&refused.entries[0], false)
	_, _, _ = w.mostRefused(t.Context(), refused)
	require.Equal(t, refused.entries[0].ID, w.applying, "the entry decoded last")
}
