package fleet_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

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

// TestClassOfAgreesWithTheDecoder draws messages round every limit.
func TestClassOfAgreesWithTheDecoder(t *testing.T) {
	decoder := telemetry.NewDecoder(telemetry.DefaultLimits())
	var record telemetry.Record
	around := func(limits ...float64) *rapid.Generator[float64] {
		return rapid.Custom(func(t *rapid.T) float64 {
			x := rapid.SampledFrom(append(limits, 0, 1)).Draw(t, "limit") * rapid.SampledFrom([]float64{1, -1}).Draw(t, "sign")
			switch rapid.IntRange(0, 8).Draw(t, "side") {
			case 0:
				return math.Nextafter(x, math.Inf(1))
			case 1:
				return math.Nextafter(x, math.Inf(-1))
			}
			return x
		})
	}
	years := []int{1969, 1970, 2026, 2026, 2026, 2099, 2100}
	refusals := 0
	rapid.Check(t, func(t *rapid.T) {
		m := fleet.Message{
			DeviceID: rapid.SampledFrom([]string{"356307042441013", "x", "", "a b", "\x7f", "é", strings.Repeat("ü", 64), strings.Repeat("9", 65)}).Draw(t, "device"),
			Codec:    "8E",
			Time:     time.Date(rapid.SampledFrom(years).Draw(t, "year"), 1, 1, 0, 0, 0, 0, time.UTC),
			Latitude: around(90, 12).Draw(t, "latitude"), Longitude: around(180, 91).Draw(t, "longitude"),
			Altitude: around(math.MaxFloat32).Draw(t, "altitude"), Angle: around(360).Draw(t, "angle"), Speed: around(1e30).Draw(t, "speed"),
			Satellites: rapid.SampledFrom([]int{0, 5, 32767, 32768, -1}).Draw(t, "satellites"),
			Priority:   rapid.SampledFrom([]int{0, 1, 2, 2, 3, -1}).Draw(t, "priority"),
		}
		err := decoder.Decode(&telemetry.Entry{Fields: fleet.EntryFields(&m)}, &record)
		var refused *telemetry.DecodeError
		if errors.As(err, &refused) {
			refusals++
			require.Equal(t, refused.Class, fleet.ClassOf(&m), "%s", refused)
		} else {
			require.Empty(t, fleet.ClassOf(&m))
		}
	})
	require.NotZero(t, refusals)
}
