package fleet_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// TestJunkIsRefusedUnderItsClass holds the fleet's expectation against the
// service's decoder, and shows that it takes the records.
func TestJunkIsRefusedUnderItsClass(t *testing.T) {
	decoder := telemetry.NewDecoder(telemetry.DefaultLimits())
	var record telemetry.Record
	id := telemetry.EntryID{Ms: 1_800_000_000_000}
	for _, kind := range fleet.JunkKinds() {
		j, err := fleet.NewJunk(kind, "356307042441013", time.UnixMilli(1_700_000_000_000))
		require.NoError(t, err)
		err = decoder.Decode(&telemetry.Entry{ID: id, Fields: j.Fields}, &record)
		var refused *telemetry.DecodeError
		require.ErrorAs(t, err, &refused, kind)
		require.Equal(t, j.Class, refused.Class, "%s: %s", kind, refused)
	}
	p := fleet.Rally(1)
	p.Limit = 5000
	for _, it := range collect(t, p) {
		require.NoError(t, decoder.Decode(&telemetry.Entry{ID: id, Fields: it.Fields()}, &record))
		require.Equal(t, it.Message.Time, record.Time())
	}
}
