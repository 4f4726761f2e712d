package oracle_test

import (
	"context"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestRowsOfARealTableAreEqual stores what a faultless service decodes in a real
// table, so that the rounding of its columns and its JSON are those that count.
func TestRowsOfARealTableAreEqual(t *testing.T) {
	url := testenv.Postgres(t, testenv.WithTemplate("oracle", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	db, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	defer db.Close()

	items := nearby(t, profile(21, 10, 200*time.Second))
	for i := range items { // decimals that neither real nor double holds exactly
		m := &items[i].Message
		m.Altitude += 0.1
		m.Speed += 1.0 / 3
	}
	items = append(items, fleet.Item{Message: fleet.Message{
		DeviceID: "Ärger_a-Z", Codec: "8", Time: time.Date(1970, 1, 1, 0, 0, 0, 1000, time.UTC),
		Latitude: -90, Longitude: 180, Altitude: 3.4e38, Angle: 1e-45, Speed: -1e-40, Satellites: 32767, Priority: 2,
		Attributes: []fleet.Attribute{
			fleet.NumberAttribute("1", 1e300), fleet.NumberAttribute("2", -1.5e-7), fleet.NumberAttribute("3", 1e21),
			fleet.TextAttribute("t", "a: b, \"c\" \u20ac \\"), fleet.BigIntAttribute("78", "-9223372036854775808"),
		},
	}})
	r := send(t, items)
	_, err = db.CopyFrom(t.Context(), pgx.Identifier{"public", "positions"},
		[]string{"device_id", "ts", "ingested_at", "latitude", "longitude", "altitude", "angle", "speed", "satellites", "priority", "codec", "attributes"},
		pgx.CopyFromSlice(len(r.rows), func(i int) ([]any, error) {
			x := &r.rows[i]
			return []any{
				x.Device, time.UnixMicro(x.TimeUS), time.UnixMicro(x.IngestedUS), x.Latitude, x.Longitude, x.Altitude, x.Angle, x.Speed,
				x.Satellites, x.Priority, x.Codec, string(x.Attributes),
			}, nil
		}))
	require.NoError(t, err)

	o, err := oracle.New(logOf(t, r.sent))
	require.NoError(t, err)
	seen := oracle.Observed{Positions: observer.Positions(t.Context(), db), DeadLetters: all(r.deadLetters)}
	report, err := o.Judge(seen)
	require.NoError(t, err)
	require.Empty(t, report.Examples)
	require.True(t, report.Good())
	require.Equal(t, int64(len(r.rows)), report.Account.Stored)

	// One digit in the last place of one row of the table is found.
	_, err = db.Exec(t.Context(), `update public.positions set attributes = jsonb_set(attributes, '{78}', '"-9223372036854775807"') where attributes ->> '78' = '-9223372036854775808'`)
	require.NoError(t, err)
	report, err = o.Judge(seen)
	require.NoError(t, err)
	require.Equal(t, map[oracle.Kind]int64{oracle.KindField: 1}, report.Counts)
}

// TestRecordedTracksCompareEqual sends every recorded track, in both orders,
// through the faultless service.
func TestRecordedTracksCompareEqual(t *testing.T) {
	testenv.Slow(t)
	for _, name := range []string{
		"tracks/austin_buses.csv.gz", "tracks/gpx_misc.csv.gz", "tracks/tianma_circuit.csv.gz", "teltonika/fmb_session_records.csv.gz",
	} {
		tracks, err := fleet.ReadTracks(testenv.Data(t, name))
		require.NoError(t, err)
		if tracks.Len() > testenv.Size(10_000, math.MaxInt) {
			continue
		}
		for _, order := range []fleet.Order{fleet.OrderFile, fleet.OrderTime} {
			r := send(t, fleet.Collect(tracks.Replay(order)))
			report := r.judge(t)
			require.True(t, report.Good(), "%s: %v", name, report.Examples)
			require.Equal(t, int64(tracks.Len()), report.Account.Entries)
		}
	}
}
