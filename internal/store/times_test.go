package store_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Rows written by SQL pass the table's checks with ends that are infinite, or in no year that a
// program knows, and with numbers that are none: whatever they mean, the other fences load.
func TestAFenceWithEndsOfAnyKindKeepsNoOtherFromLoading(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const shape = `{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}`
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry, radius_m, valid_from, valid_to)
values
  ('always', 1, '', 'area', $1, null, '-infinity', 'infinity'),
  ('caesar', 1, '', 'area', $1, null, '0044-03-15 BC', '20000-01-01'),
  ('far', 1, '', 'area', $1, null, '2026-01-01', '294276-12-31 23:59:59'),
  ('good', 1, '', 'area', $1, null, '2026-01-01', '2027-01-01'),
  ('never', 1, '', 'area', $1, null, 'infinity', null),
  ('no number', 1, '', 'circle', '{"type":"Point","coordinates":[1,42]}', 'NaN', null, null),
  ('over', 1, '', 'area', $1, null, null, '-infinity'),
  ('later', 1, '', 'area', $1, null, '20000-01-01', null)`, shape)
	from, to := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro(), time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	set, bad, err := store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	spans := make(map[string]geofence.Span)
	for i := range set.Len() {
		f := set.Fence(i)
		spans[f.ID] = f.Valid
	}
	require.Equal(t, map[string]geofence.Span{
		"always": geofence.Always, "caesar": geofence.Always, "far": {FromUS: from, ToUS: geofence.Always.ToUS}, "good": {FromUS: from, ToUS: to},
	}, spans)
	require.Len(t, bad, 4)
	for i, text := range []string{
		"fence later version 1 is skipped: its valid span is empty: infinity to no end",
		"fence never version 1 is skipped: its valid span is empty: infinity to no end",
		"fence no number version 1 is skipped: radius NaN m",
		"fence over version 1 is skipped: its valid span is empty: the beginning to -infinity",
	} {
		require.ErrorContains(t, bad[i], text)
	}

	shapes, err := store.NewLists(b.pool, scope, time.Minute).Shapes(t.Context(), 100)
	require.NoError(t, err)
	require.Len(t, shapes, 7, "a circle without a radius is not drawn")
	_, err = json.Marshal(shapes)
	require.NoError(t, err)

	// An import finds them, and replaces them.
	editor := store.NewFenceEditor(b.pool, scope, shards, "test")
	always := geofence.Fence{ID: "always", Kind: geofence.Area, Enabled: true, Valid: geofence.Always, Geometry: shape}
	edited, err := editor.Import(t.Context(), []geofence.Fence{always}, "import", true)
	require.NoError(t, err)
	require.Equal(t, []int{0, 7, 1}, []int{edited.Added, edited.Closed, edited.Same})
}

func TestAPlatformsFenceThatIsNeverValidIsNoFenceForEver(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	execute(t, pool, `create table public.zones (id text, since timestamptz, until timestamptz)`)
	execute(t, pool, `insert into public.zones values ('open', '-infinity', 'infinity'), ('never', 'infinity', null), ('over', null, '-infinity')`)
	query := store.NewFenceQuery(pool, store.NewFenceEditor(pool, fenceScope, 1, "test"), `select id, since as valid_from, until as valid_to,
  '{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}' as geometry from public.zones order by id desc`, time.Minute)
	renewed, err := query.Renew(t.Context(), raise(t, pool))
	require.NoError(t, err)
	require.Equal(t, 1, renewed.Added)
	require.Len(t, renewed.Bad, 2)
	require.ErrorContains(t, renewed.Bad[0], "fence over: valid_to is -infinity, so it is never valid")
	require.ErrorContains(t, renewed.Bad[1], "fence never: valid_from is infinity, so it is never valid")
	require.Equal(t, 1, number(t, pool, "select count(*) from processor.geofences where id = 'open' and valid_from is null and valid_to is null"))
}

// Operators insert requests by SQL, each of which may have a window without ends.
func TestARequestWithEndsOfAnyKindHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	windows := []struct{ from, to, progress, wrong string }{
		{"-infinity", "infinity", "{}", ""},
		{"0044-03-15 BC", "20000-01-01", "{}", ""},
		{"2026-01-01", "294276-12-31 23:59:59.999999", "{}", ""},
		{"20000-01-01", "20001-01-01", "{}", "no device time is in its window"},
		{"9999-06-01", "9999-07-01", "{}", ""},
		{"infinity", "infinity", "{}", "no device time is in its window"},
		{"-infinity", "-infinity", "{}", "no device time is in its window"},
		{"2026-01-01", "2026-02-01", "[]", ""},
		{"2026-01-01", "2026-02-01", `{"halved": -1, "devices": "many"}`, ""},
		{"2026-01-01", "2026-02-01", `{"halved": -1, "devices": -1}`, ""},
	}
	numbers := make([]int, len(windows))
	for n, w := range windows {
		numbers[n] = n
		b.exec(`
insert into processor.requests (stream, group_name, kind, shard, from_ts, to_ts, progress, requested_by)
values ($1, $2, 'recompute', $3, $4::text::timestamptz, $5::text::timestamptz, $6::jsonb, 'test')`, scope.Stream, scope.Group, n, w.from, w.to, w.progress)
	}
	held := b.take("a.1", numbers...)
	requests := store.NewRequests(store.NewWriter(b.pool, scope, "a.1", 10*time.Second))
	waiting, err := requests.Waiting(t.Context(), numbers)
	require.NoError(t, err)
	require.Len(t, waiting, len(windows))
	for n, w := range windows {
		o := protocol.RequestStep{Request: waiting[n], Lease: held[n], Shards: shards, Rules: b.batch(nil, nil).Rules}
		for done := false; !done; {
			o.Request.Progress, done, err = requests.Step(t.Context(), o)
			if w.wrong != "" {
				require.ErrorContains(t, err, w.wrong)
				done, err = requests.Failed(t.Context(), o, err)
				require.True(t, done)
			}
			require.NoError(t, err, w)
		}
	}
	waiting, err = requests.Waiting(t.Context(), numbers)
	require.NoError(t, err)
	require.Empty(t, waiting)
	require.Equal(t, 3, b.count("select count(*) from processor.requests where state = 'failed' and result ->> 'error' like '%no device time is in its window%'"))

	devices := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards}, "test")
	open, err := devices.OpenRequests(t.Context(), time.Time{})
	require.NoError(t, err)
	_, err = json.Marshal(open)
	require.NoError(t, err)
}

// Rows of another program may have times and places that no record has. They take no part,
// and nothing that reads the device fails on them.
func TestPositionsThatNoRecordCouldBeTakeNoPart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	fence := geofence.Fence{
		ID: "square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}`,
	}
	_, err := store.NewFenceEditor(b.pool, scope, shards, "test").Import(t.Context(), []geofence.Fence{fence}, "import", false)
	require.NoError(t, err)
	b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	b.exec("delete from processor.requests")
	const device = "odd"
	noon := func(day int) time.Time { return dayOf(day).Add(12 * time.Hour) }
	stored := 0
	for _, row := range []struct{ ts, ingested, latitude string }{
		{"-infinity", "-infinity", "42"},
		{"4714-11-24 BC", "4714-11-24 BC", "42"},
		{"0044-03-15 BC", "0044-03-15 BC", "42"},
		{"2026-03-01 11:59:58", "2026-03-01 11:59:58", "NaN"},
		{"2026-03-01 11:59:59", "2026-03-01 11:59:59", "Infinity"},
		{"20000-01-01", "20000-01-01", "42"},
		{"294276-12-31 23:59:59.999999", "294276-12-31 23:59:59.999999", "42"},
		{"infinity", "infinity", "42"},
	} {
		// A table in parts may have none for it.
		if _, err := b.pool.Exec(t.Context(), `
insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
values ($1, $2::text::timestamptz, $3::text::timestamptz, $4::text::float8, 1, 0, 0, 0, 9, 0, '8', '{}')`, device, row.ts, row.ingested, row.latitude); err == nil {
			stored++
		}
	}
	require.GreaterOrEqual(t, stored, 2)
	rules := protocol.Rules{Fences: b.fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}
	held := b.take("a.1", telemetry.ShardOf(device, shards))
	w := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
	for _, day := range []int{2, 1} { // the second is late, and looks for what precedes it
		_, err = w.Write(t.Context(), &protocol.Batch{Leases: held, Late: []telemetry.Record{at(device, day)}, Rules: rules, Shards: shards})
		require.NoError(t, err)
	}
	require.Equal(t, 2, b.count("select count(*) from processor.timing_records"), "it enters on the first day and is outside on the next")

	found := 0
	require.NoError(t, store.NewReader(b.pool, 10*time.Second).LastFixes(t.Context(), []string{device}, rules.Eligibility, func(_ int, last geofence.Fix) {
		found++
		require.Equal(t, at(device, 2).TimeUS, last.TimeUS)
	}))
	require.Equal(t, 1, found)

	devices := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: rules.Eligibility, MaxGap: rules.MaxGap}, "test")
	shown, err := devices.Show(t.Context(), device)
	require.NoError(t, err)
	require.Equal(t, noon(2), shown.Last.Time.UTC())
	v, err := devices.Verify(t.Context(), device)
	require.NoError(t, err)
	require.True(t, v.Good(), v)
	require.Equal(t, int64(2), v.Positions)
	_, err = devices.Explain(t.Context(), device, "square", noon(1))
	require.NoError(t, err)
	_, err = store.TraceDevice(t.Context(), b.pool, scope, device, held[0].Shard, nil)
	require.NoError(t, err)
	lists := store.NewLists(b.pool, scope, time.Minute)
	first, last, err := lists.Span(t.Context(), device, dayOf(100))
	require.NoError(t, err)
	require.True(t, first.Before(noon(1).Add(time.Second)) && first.Year() == 2026, first)
	require.Equal(t, noon(2), last.UTC())

	p, _ := b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
	require.Zero(t, p.Added+p.Changed)
	b.runRequest(protocol.RequestErase, device, held[0], "a.1")
	require.Zero(t, b.count("select count(*) from public.positions"))
}

// What is scanned anywhere else is a time that Go and JSON have.
func TestATimeOfTheServerIsScannedWhateverItIs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for give, want := range map[string]string{
		"-infinity": "0000-01-01T00:00:00Z", "4714-11-24 BC": "0000-01-01T00:00:00Z", "0001-01-01": "0001-01-01T00:00:00Z",
		"2026-03-01 12:00:00.123456": "2026-03-01T12:00:00.123456Z",
		"20000-01-01":                "9999-12-31T23:59:59.999999Z", "infinity": "9999-12-31T23:59:59.999999Z",
	} {
		var at time.Time
		var maybe *time.Time
		require.NoError(t, b.pool.QueryRow(t.Context(), "select $1::text::timestamptz, $1::text::timestamptz", give).Scan(&at, &maybe))
		text, err := json.Marshal([]any{at.UTC(), maybe.UTC()})
		require.NoError(t, err)
		require.JSONEq(t, `["`+want+`", "`+want+`"]`, string(text))
	}
	var maybe *time.Time
	require.NoError(t, b.pool.QueryRow(t.Context(), "select null::timestamptz").Scan(&maybe))
	require.Nil(t, maybe)
	require.Error(t, b.pool.QueryRow(t.Context(), "select null::timestamptz").Scan(new(time.Time)))
}
