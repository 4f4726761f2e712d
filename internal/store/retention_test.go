package store_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// Crossings outlive the positions that they were derived from.
func TestARecomputeKeepsWhatWasDerivedFromDroppedPositions(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.partitionByDay(7)
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}')`)
	var err error
	b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	// Inside on odd days: "across" enters on the first day that is left, "within"
	// entered before and stays inside, "flagged" has only its first fix flagged.
	records := []telemetry.Record{
		at("across", 0), at("across", 1), at("across", 2), at("across", 3), at("across", 4), at("across", 5),
		at("within", 0), at("within", 1), at("within", 3), at("within", 4), at("away", 1),
		at("flagged", 3), at("flagged", 4), at("flagged", 5),
	}
	held := b.take("a.1", 5)
	batch := &protocol.Batch{Leases: held, Late: records, Rules: protocol.Rules{Fences: b.fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}}
	_, err = store.NewWriter(b.pool, scope, "a.1", 10*time.Second).Write(t.Context(), batch)
	require.NoError(t, err)
	const content = `
select coalesce(string_agg(concat_ws(' ', device_id, kind, at, earlier_ts, later_ts, initial), E'\n' order by device_id, later_ts), '')
from processor.timing_records
where device_id <> 'flagged'`
	look := func() (s string) {
		require.NoError(t, b.pool.QueryRow(t.Context(), content).Scan(&s))
		return s
	}
	before := look()
	require.Equal(t, 8, b.count("select count(*) from processor.timing_records where device_id <> 'flagged'"))
	for _, sql := range []string{
		"drop table positions_0", "drop table positions_1", "drop table positions_2",
		"update positions set faulty = true where device_id = 'flagged' and ts < (select max(ts) - interval '1 day' from positions where device_id = 'flagged')",
	} {
		b.exec(sql)
	}
	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}, "test")
	for _, device := range []string{"across", "within", "away", "flagged"} {
		b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
		v, err := ask.Verify(t.Context(), device)
		require.NoError(t, err)
		require.True(t, v.Good(), "%s: %+v", device, v)
	}
	require.Equal(t, before, look())
	require.Equal(t, 1, b.count("select count(*) from processor.timing_records where device_id = 'flagged'"), "an enter; what was derived from the flagged position went")
}

// A device of which retention dropped positions is where its last crossing says: what
// is stored since, in any order, gives the crossings of one pass over all records.
func TestCrossingsGoOnWhereTheDroppedPositionsEnded(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(testenv.Seed(t), 0))
	b := newBench(t)
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry, radius_m)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}', null),
  ('round', 1, 'round', 'circle', '{"type":"Point","coordinates":[5,42]}', 1000)`)
	var err error
	b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, b.fences.Len())
	held := b.take("a.1", 5)
	w := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
	reader := store.NewReader(b.pool, 10*time.Second)
	rules := protocol.Rules{Fences: b.fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}
	const days, devices = 14, 40
	all := make(map[string][]telemetry.Record)
	var early, rest []telemetry.Record
	keptFrom := make(map[string]int)
	for d := range devices {
		device := fmt.Sprint("d", d)
		keptFrom[device] = 1 + rnd.IntN(days-4)
		for day := range days {
			if rnd.IntN(3) == 0 {
				continue
			}
			r := at(device, day)
			r.Longitude = []float64{1, 5, 9}[rnd.IntN(3)] // in one, in the other, in neither
			all[device] = append(all[device], r)
			if day < keptFrom[device] || day < days/2 && rnd.IntN(2) == 0 {
				early = append(early, r)
			} else {
				rest = append(rest, r)
			}
		}
	}
	write := func(list []telemetry.Record) {
		rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for len(list) > 0 {
			n := min(len(list), 1+rnd.IntN(5))
			_, err := w.Write(t.Context(), &protocol.Batch{Leases: held, Late: list[:n:n], Rules: rules})
			require.NoError(t, err)
			list = list[n:]
		}
	}
	write(early)
	for device, day := range keptFrom {
		b.exec("delete from public.positions where device_id = '" + device + "' and ts < '" + dayOf(day).Format(time.RFC3339) + "'")
	}
	// As a worker does that meets a device of which no position is stored.
	var fresh []telemetry.Record
	var names []string
	for i := len(rest) - 1; i >= 0; i-- {
		device := rest[i].DeviceID
		if !slices.Contains(names, device) && b.count("select count(*) from positions where device_id = $1", device) == 0 &&
			b.count("select count(*) from processor.timing_records where device_id = $1", device) > 0 {
			fresh, names = append(fresh, rest[i]), append(names, device)
			rest = slices.Delete(rest, i, i+1)
		}
	}
	require.NotEmpty(t, names)
	crossed := 0
	require.NoError(t, reader.LastCrossings(t.Context(), append([]string{"new"}, names...), func(i int, _ int64) {
		require.Positive(t, i)
		crossed++
	}))
	require.Equal(t, len(names), crossed)
	_, err = w.Write(t.Context(), &protocol.Batch{Leases: held, Fresh: fresh, Undecided: names, Rules: rules})
	require.NoError(t, err)
	write(rest)

	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: rules.Eligibility, MaxGap: time.Minute}, "test")
	for device, records := range all {
		var fixes []geofence.Fix
		for i := range records {
			fixes = append(fixes, geofence.Fix{TimeUS: records[i].TimeUS, Latitude: records[i].Latitude, Longitude: records[i].Longitude})
		}
		var want []string
		for _, c := range b.fences.Track(nil, fixes, rules.MaxGap, true) {
			want = append(want, fmt.Sprintln(c.FenceID, c.Kind, c.LaterUS, c.TimeUS))
		}
		look := func() (list []string) {
			rows, err := b.pool.Query(t.Context(), "select fence_id, kind, later_ts, at from processor.timing_records where device_id = $1", device)
			require.NoError(t, err)
			var fence, kind string
			var later, at time.Time
			_, err = pgx.ForEachRow(rows, []any{&fence, &kind, &later, &at}, func() error {
				list = append(list, fmt.Sprintln(fence, kind, later.UnixMicro(), at.UnixMicro()))
				return nil
			})
			require.NoError(t, err)
			return list
		}
		require.ElementsMatch(t, want, look(), "%s, from day %d on stored", device, keptFrom[device])
		b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
		require.ElementsMatch(t, want, look(), "%s, recomputed", device)
		v, err := ask.Verify(t.Context(), device)
		require.NoError(t, err)
		require.True(t, v.Good(), "%s: %+v", device, v)
	}
	var device, fence string
	var later time.Time
	require.NoError(t, b.pool.QueryRow(t.Context(), "select device_id, fence_id, later_ts from processor.timing_records where kind = 'exit' and initial limit 1").
		Scan(&device, &fence, &later))
	e, err := ask.Explain(t.Context(), device, fence, later)
	require.NoError(t, err)
	require.True(t, e.Agree, "%+v", e)
}

// The same where a border is held still: the device left while nothing of it was stored.
func TestAHeldBorderIsLeftWhereTheDroppedPositionsEndedInside(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry, exit_margin_m, min_dwell_s)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}', 100, 3600)`)
	var err error
	b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	held := b.take("a.1", 5)
	w := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
	rules := protocol.Rules{Fences: b.fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}
	inside := func(device string, day int) telemetry.Record {
		r := at(device, day)
		r.Longitude = 1
		return r
	}
	write := func(list ...telemetry.Record) {
		_, err := w.Write(t.Context(), &protocol.Batch{Leases: held, Late: list, Rules: rules})
		require.NoError(t, err)
	}
	write(inside("out", 1), inside("out", 2), inside("in", 1), inside("in", 2))
	require.Equal(t, 2, b.count("select count(*) from processor.timing_records where kind = 'enter'"))
	b.exec("delete from public.positions")
	write(at("out", 6), inside("in", 6))
	write(at("out", 8), inside("in", 7), at("in", 8), at("in", 10))
	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: rules.Eligibility, MaxGap: time.Minute}, "test")
	for range 2 {
		require.Equal(t, 2, b.count("select count(*) from processor.timing_records where kind = 'enter'"))
		require.Equal(t, 1, b.count("select count(*) from processor.timing_records where kind = 'exit' and device_id = 'out' and at = $1", dayOf(6).Add(12*time.Hour)))
		require.Equal(t, 1, b.count("select count(*) from processor.timing_records where kind = 'exit' and device_id = 'in' and at = $1", dayOf(8).Add(12*time.Hour)))
		require.Equal(t, 4, b.count("select count(*) from processor.timing_records"))
		for _, device := range []string{"out", "in"} {
			b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
			v, err := ask.Verify(t.Context(), device)
			require.NoError(t, err)
			require.True(t, v.Good(), "%s: %+v", device, v)
		}
	}
}

// What is planned while the table is new is asked long after it has grown.
func TestCrossingsOfUnknownDevicesAreLookedForInTheIndex(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	reader := store.NewReader(b.pool, 10*time.Second)
	for range 7 { // the server keeps a plan for any devices then
		require.NoError(t, reader.LastCrossings(t.Context(), []string{"a", "b", "c"}, func(int, int64) { require.Fail(t, "there are none") }))
	}
	testenv.Wait(t, 10*time.Second, func() error {
		b.exec("select pg_stat_force_next_flush()")
		if n := b.count("select idx_scan from pg_stat_user_tables where relname = 'timing_records'"); n < 7*3 {
			return fmt.Errorf("%d looks into an index", n)
		}
		return nil
	})
}

// Records that come late, older than positions that retention dropped or among them, change
// nothing that is recorded at those of fences with held borders: what counts begins anew at
// the first fix that is left, where that says. What late records derive, a recompute does,
// and a verification and a trial of the same fences agree.
func TestALateRecordAmongDroppedPositionsLeavesAHeldBorderAsRecorded(t *testing.T) {
	t.Parallel()
	for name, heaps := range map[string]int{"one heap": 0, "a heap for each day": 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := testenv.Seed(t)
			rnd := rand.New(rand.NewPCG(seed, uint64(heaps)))
			b := newBench(t)
			if heaps > 0 {
				b.partitionByDay(heaps)
			}
			b.exec(`
insert into processor.geofences (id, version, name, kind, geometry, radius_m, exit_margin_m, min_dwell_s, min_interval_s)
values ('both', 1, '', 'area', '{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}', null, 100, 3600, null),
  ('margin', 1, '', 'area', '{"type":"Polygon","coordinates":[[[0,41],[6,41],[6,43],[0,43],[0,41]]]}', null, 100, null, null),
  ('dwell', 1, '', 'circle', '{"type":"Point","coordinates":[9,42]}', 1000, null, 45, null),
  ('line', 1, '', 'gate', '{"type":"LineString","coordinates":[[3,41],[3,43]]}', null, null, null, 60),
  ('plain', 1, '', 'area', '{"type":"Polygon","coordinates":[[[4,41],[10,41],[10,43],[4,43],[4,41]]]}', null, null, null, null)`)
			var err error
			b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
			require.NoError(t, err)
			require.Equal(t, 5, b.fences.Len())
			held := b.take("a.1", 5)
			w := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
			write := func(list []telemetry.Record) { b.writeShuffled(w, held, rnd, list) }
			const devices, days, kept = 60, 12, 7
			places := []float64{1, 5, 9, 20, 2.0005, 6.0005} // the last two in a margin
			fix := func(device string, day int, seconds int) telemetry.Record {
				r := at(device, day)
				r.TimeUS += int64(seconds) * 1e6
				r.StreamUS, r.Longitude = r.TimeUS, places[rnd.IntN(len(places))]
				return r
			}
			var early, late []telemetry.Record
			dropped := make(map[string]bool) // devices of which something is
			for d := range devices {
				device := fmt.Sprint("d", d)
				for day := range days {
					for n := range 4 {
						switch rnd.IntN(5) {
						case 0, 1:
						case 2:
							if rnd.IntN(2) == 0 { // at another second than any that is dropped
								late = append(late, fix(device, day, n*30+7))
							}
							fallthrough
						default:
							early = append(early, fix(device, day, n*30))
							dropped[device] = dropped[device] || day < kept
						}
					}
				}
			}
			write(early)
			content := func(where string) string {
				var s string
				require.NoError(t, b.pool.QueryRow(t.Context(), `
select coalesce(string_agg(concat_ws(' ', device_id, fence_id, kind, later_ts, ordinal, at, earlier_ts, initial, suppressed, revision), E'\n' order by device_id, later_ts, fence_id, kind, ordinal), '')
from processor.timing_records t
where `+where).Scan(&s))
				return s
			}
			const gone = "not exists (select from public.positions p where p.device_id = t.device_id and p.ts = t.later_ts)"
			before := dayOf(kept).Format(time.RFC3339)
			recorded := content("later_ts < '" + before + "'")
			if heaps > 0 {
				for day := range kept {
					b.exec(fmt.Sprint("drop table public.positions_", day))
					b.exec(fmt.Sprintf("create table public.positions_%d partition of public.positions for values from ('%s') to ('%s')",
						day, dayOf(day).Format(time.RFC3339), dayOf(day+1).Format(time.RFC3339)))
				}
			} else {
				b.exec("delete from public.positions where ts < '" + before + "'")
			}
			require.Equal(t, recorded, content(gone))
			ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: b.batch(nil, nil).Rules.Eligibility, MaxGap: time.Minute}, "test")
			verify := func(when string) {
				for device := range dropped {
					v, err := ask.Verify(t.Context(), device)
					require.NoError(t, err)
					require.True(t, v.Good(), "%s, %s: %+v", when, device, v)
				}
			}
			recompute := func() {
				for device := range dropped {
					b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
				}
			}
			recompute()
			verify("without late records")
			require.Equal(t, recorded, content(gone))

			write(late)
			require.Equal(t, recorded, content(gone), "late records")
			verify("late records")
			all := content("true")
			recompute()
			require.Equal(t, recorded, content(gone), "recomputed")
			verify("recomputed")
			require.Equal(t, all, content("true"), "a recompute changes nothing")
			got, err := ask.TryFences(t.Context(), fencesOf(b.fences), store.TrialWindow{Since: dayOf(-1), Until: dayOf(days + 1)}, nil)
			require.NoError(t, err)
			require.Empty(t, got.Fences, "%+v", got.Examples)
			require.Positive(t, got.Kept)
			require.Greater(t, len(late), devices)
		})
	}
}

// Two fixes that were flagged since, between what was dropped and the first fix that takes
// part, say nothing: the crossing before theirs does.
func TestWhereADeviceWasIsLookedForBehindFlaggedFixes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const square = `'{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}'`
	b.exec(`
insert into processor.geofences (id, version, name, kind, geometry, exit_margin_m, min_dwell_s)
values ('held', 1, '', 'area', ` + square + `, 100, 3600), ('plain', 1, '', 'area', ` + square + `, null, null)`)
	var err error
	b.fences, _, err = store.NewFences(b.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	held := b.take("a.1", 5)
	rules := b.batch(nil, nil).Rules
	var list []telemetry.Record
	for day, longitude := range map[int]float64{1: 1, 2: 1, 3: 5, 4: 1, 6: 5, 7: 5} {
		r := at("d", day)
		r.Longitude = longitude
		list = append(list, r)
	}
	_, err = store.NewWriter(b.pool, scope, "a.1", 10*time.Second).Write(t.Context(), &protocol.Batch{Leases: held, Late: list, Rules: rules})
	require.NoError(t, err)
	require.Equal(t, 8, b.count("select count(*) from processor.timing_records"))
	b.exec("delete from public.positions where ts < $1", dayOf(3))
	b.exec("update public.positions set faulty = true where ts < $1", dayOf(5))
	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: rules.Eligibility, MaxGap: rules.MaxGap}, "test")
	exit := dayOf(6).Add(12 * time.Hour)
	trial := func(t *testing.T, want store.FenceTrialCount) {
		t.Helper()
		got, err := ask.TryFences(t.Context(), fencesOf(b.fences), store.TrialWindow{Since: dayOf(5), Until: dayOf(9)}, nil)
		require.NoError(t, err)
		require.Equal(t, want, got.FenceTrialCount, "%+v", got.Examples)
	}
	t.Run("explained", func(t *testing.T) {
		for _, fence := range []string{"held", "plain"} {
			e, err := ask.Explain(t.Context(), "d", fence, exit)
			require.NoError(t, err)
			require.Len(t, e.Derived, 1, fence)
			require.Equal(t, []any{"exit", exit, (*time.Time)(nil)}, []any{e.Derived[0].Kind, e.Derived[0].At, e.Derived[0].Earlier}, fence)
		}
	})
	t.Run("tried", func(t *testing.T) { trial(t, store.FenceTrialCount{Recorded: 2, Would: 2, Changed: 2}) })
	t.Run("recomputed", func(t *testing.T) {
		b.runRequest(protocol.RequestRecompute, "d", held[0], "a.1")
		v, err := ask.Verify(t.Context(), "d")
		require.NoError(t, err)
		require.True(t, v.Good(), "%+v", v)
		require.Equal(t, 4, b.count("select count(*) from processor.timing_records"), "an enter that stays and an exit of each fence")
		require.Equal(t, 2, b.count("select count(*) from processor.timing_records where kind = 'exit' and initial and at = $1", exit))
		trial(t, store.FenceTrialCount{Recorded: 2, Would: 2})
	})
}

// fencesOf returns the fences of a set.
func fencesOf(set *protocol.Fences) (list []geofence.Fence) {
	for i := range set.Len() {
		list = append(list, set.Fence(i))
	}
	return list
}

// writeShuffled writes late records in any order, in batches of any size up to 50.
func (b *bench) writeShuffled(w *store.Writer, held []protocol.ShardLease, rnd *rand.Rand, list []telemetry.Record) {
	b.tb.Helper()
	rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for len(list) > 0 {
		n := min(len(list), 1+rnd.IntN(50))
		batch := b.batch(held, nil)
		batch.Late, batch.Shards = list[:n:n], shards
		_, err := w.Write(b.tb.Context(), batch)
		require.NoError(b.tb, err)
		list = list[n:]
	}
}
