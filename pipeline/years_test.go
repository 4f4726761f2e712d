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
	t.Parallel()
	testenv.SameInEveryWorld(t)
	const days, records = 1900, 8179
	b := newBench(t)
	partitionByDay(b, days)
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[0,0.5],[2,0.5],[2,1.5],[0,1.5],[0,0.5]]]}')`)
	one := b.start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		pool, err := store.Open(t.Context(), store.Config{
			URL: b.pgURL, Member: "one", MaxConns: 12,
			ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
		})
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		d.Sink = store.NewWriter(pool, b.scope(), "one", 15*time.Second)
	})
	b.acquireAll(one)
	var entries [][]string
	for d := range 4 {
		entries = append(entries, at(d, 0))
	}
	b.publish(entries...)
	b.settled(30*time.Second, 0)
	entries = nil
	step := (days - 100) * 24 * time.Hour / records
	for i := range records {
		m := fleet.Message{DeviceID: fleet.DeviceID(i % 4), Codec: "8", Time: time.Date(2018, 10, 2, 0, 0, 0, 0, time.UTC).Add(time.Duration(i) * step), Latitude: 1, Longitude: float64(i / 4 % 5), Satellites: 9}
		entries = append(entries, fleet.EntryFields(&m))
	}
	began := time.Now()
	b.publish(entries...)
	b.settled(120*time.Second, 0)
	t.Logf("%d late records over five years stored after %s", records, time.Since(began).Round(time.Millisecond))
	stored := 0
	for day := 0; day < days; day += 50 { // a statement on all of it would need all locks of the server
		stored += b.count(`
select count(*)
from positions
where ts >= timestamptz '2018-10-01' + $1::int * interval '1 day'
  and ts < timestamptz '2018-10-01' + ($1::int + 50) * interval '1 day'`, day)
	}
	require.Equal(t, records+4, stored)
	require.Empty(t, one.lost)
	require.Empty(t, b.letters())
}

func partitionByDay(b *bench, days int) {
	b.exec("drop table positions")
	b.exec(`
create table positions (device_id text not null, ts timestamptz not null, ingested_at timestamptz not null default now(),
  latitude double precision not null, longitude double precision not null, altitude real not null, angle real not null,
  speed real not null, satellites smallint not null, priority smallint not null, codec text not null, attributes jsonb not null,
  faulty boolean not null default false, primary key (device_id, ts)) partition by range (ts)`)
	for from := 0; from < days; from += 50 {
		b.exec(fmt.Sprintf(`do $$
begin
  for i in %d .. %d loop
    execute format('create table positions_%%s partition of positions for values from (%%L) to (%%L)',
      i, timestamptz '2018-10-01' + i * interval '1 day', timestamptz '2018-10-01' + (i + 1) * interval '1 day');
  end loop;
end
$$`, from, from+49))
	}
}
