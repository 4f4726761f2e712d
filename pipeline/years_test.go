package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// Late records over five years, more than were ever sent at once, on 1,900 daily
// partitions, with fences and the default time limit of a statement.
func TestLateRecordsOverFiveYearsAreStored(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	testenv.SameInEveryWorld(t)
	days, records := testenv.Size(600, 1900), testenv.Size(2500, 8179)
	b := newBench(t)
	// The last partitions hold what at() sends.
	began := time.Date(2023, 12, 14, 0, 0, 0, 0, time.UTC).AddDate(0, 0, -days)
	partitionByDay(b, began, days)
	b.Exec(`
insert into processor.geofences (id, version, name, kind, geometry)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[0,0.5],[2,0.5],[2,1.5],[0,1.5],[0,0.5]]]}')`)
	one := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		pool, err := store.Open(t.Context(), store.Config{
			URL: b.PostgresURL, Member: "one", MaxConns: 12,
			ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
		})
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		d.Sink = store.NewWriter(pool, b.Scope(), "one", 15*time.Second)
	})
	b.AcquireAll(one)
	var entries [][]string
	for d := range 4 {
		entries = append(entries, at(d, 0))
	}
	b.Publish(entries...)
	b.Settled(30*time.Second, 0)
	entries = nil
	step := time.Duration(days-100) * 24 * time.Hour / time.Duration(records)
	for i := range records {
		m := fleet.Message{DeviceID: fleet.DeviceID(i % 4), Codec: "8", Time: began.AddDate(0, 0, 1).Add(time.Duration(i) * step), Latitude: 1, Longitude: float64(i / 4 % 5), Satellites: 9}
		entries = append(entries, fleet.EntryFields(&m))
	}
	sent := time.Now()
	b.Publish(entries...)
	b.Settled(120*time.Second, 0)
	t.Logf("%d late records over %d days stored after %s", records, days, time.Since(sent).Round(time.Millisecond))
	stored := 0
	for day := 0; day < days; day += 50 { // a statement on all of it would need all locks of the server
		stored += b.Count(`
select count(*)
from positions
where ts >= $2::timestamptz + $1::int * interval '1 day'
  and ts < $2::timestamptz + ($1::int + 50) * interval '1 day'`, day, began)
	}
	require.Equal(t, records+4, stored)
	require.Empty(t, one.Lost())
	require.Empty(t, b.letters())
}

func partitionByDay(b *bench, began time.Time, days int) {
	b.Exec("drop table positions")
	b.Exec(`
create table positions (device_id text not null, ts timestamptz not null, ingested_at timestamptz not null default now(),
  latitude double precision not null, longitude double precision not null, altitude real not null, angle real not null,
  speed real not null, satellites smallint not null, priority smallint not null, codec text not null, attributes jsonb not null,
  faulty boolean not null default false, primary key (device_id, ts)) partition by range (ts)`)
	for from := 0; from < days; from += 50 {
		b.Exec(fmt.Sprintf(`do $$
begin
  for i in %[1]d .. %[2]d loop
    execute format('create table positions_%%s partition of positions for values from (%%L) to (%%L)',
      i, timestamptz '%[3]s' + i * interval '1 day', timestamptz '%[3]s' + (i + 1) * interval '1 day');
  end loop;
end
$$`, from, from+49, began.Format(time.RFC3339)))
	}
}
