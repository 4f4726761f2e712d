package store

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// TimingChannel is the channel that announces changed and withdrawn crossings,
// for their earlier readers.
const TimingChannel = "processor_timing"

// exclusion is why a position takes no part in state and crossings, as
// telemetry.Eligibility has it; $1 are its limits. What no record has, no place or a
// time beyond all device time, may be in a row of another program. In this order nothing
// is added to a time that may be close to the ends of what the server has.
const exclusion = `case
      when latitude = 0 and longitude = 0 or satellites < ($1::bigint[])[2] then 'no_fix'
      when not (latitude between -90 and 90 and longitude between -180 and 180) then 'no_fix'
      when ts >= ` + lastTime + ` then 'future'
      when ts < ` + firstTime + ` then 'ancient'
      when ts - ($1::bigint[])[1] * interval '1 microsecond' > ingested_at then 'future'
      when ($1::bigint[])[3] > 0 and ts + ($1::bigint[])[3] * interval '1 microsecond' < ingested_at then 'ancient'
      else ''
    end`

// eligible is the condition under which a position takes part.
const eligible = `faulty = false
    and ` + exclusion + ` = ''`

// limitsOf are the limits of exclusion.
func limitsOf(e telemetry.Eligibility) []int64 {
	return []int64{e.MaxFutureSkew.Microseconds(), int64(e.MinSatellites), e.MaxPast.Microseconds()}
}

// ofDevice selects the rows of w's device. The range adds no condition: it
// tells the planner that few rows are meant, whatever it estimates as the
// number of devices. If it estimates few, as after the first analyze of a table
// or a chunk, it would walk the index on ts.
const ofDevice = `device_id = w.device_id
    and device_id between w.device_id and w.device_id`

// window is a span of device time of one device in which crossings are
// recomputed: those whose later fix lies in it, and those of the fix that
// follows it.
type window struct {
	device string
	lo, hi int64
	added  []int64 // device times of what was added to a known track; nil if that is not known
	stored []int64 // those of them whose rows this transaction wrote: one that lost may have been there for long
	where  []span  // where the device has rows at all, if known
}

// empty reports whether the device is known to have no row in a span.
func (w *window) empty(s span) bool {
	return w.where != nil && !slices.ContainsFunc(w.where, func(at span) bool { return at.first <= s.last && s.first <= at.last })
}

// windows joins positions of a device that are close in time and whose crossings are to
// be derived: of records those that were stored or lost against other rows, and fresh.
func windows(records []telemetry.Record, stored, lost []bool, fresh []telemetry.Record, rules protocol.Rules) []window {
	var list []window
	for i := range fresh {
		list = append(list, windowOf(&fresh[i]))
	}
	for i := range records {
		if r := &records[i]; lost[i] || stored[i] && rules.Eligibility.Of(r) == telemetry.Eligible {
			w := windowOf(r)
			if lost[i] {
				w.stored = nil
			}
			list = append(list, w)
		}
	}
	slices.SortFunc(list, func(a, b window) int {
		return cmp.Or(cmp.Compare(a.device, b.device), cmp.Compare(a.lo, b.lo))
	})
	joined := list[:0]
	for _, w := range list {
		if n := len(joined); n > 0 && joined[n-1].device == w.device && w.lo-joined[n-1].hi <= joinWithin.Microseconds() {
			joined[n-1].hi, joined[n-1].added = w.hi, append(joined[n-1].added, w.hi)
			joined[n-1].stored = append(joined[n-1].stored, w.stored...)
			continue
		}
		joined = append(joined, w)
	}
	return joined
}

func windowOf(r *telemetry.Record) window {
	return window{device: r.DeviceID, lo: r.TimeUS, hi: r.TimeUS, added: []int64{r.TimeUS}, stored: []int64{r.TimeUS}}
}

// undecided are the fresh records of which the transaction derives the crossings.
func undecided(b *protocol.Batch) (list []telemetry.Record) {
	for i := range b.Fresh {
		if slices.Contains(b.Undecided, b.Fresh[i].DeviceID) {
			list = append(list, b.Fresh[i])
		}
	}
	return list
}

// joinWithin bounds what is read unnecessarily between two late positions.
const joinWithin = 10 * time.Minute

// windowFixesSQL finds the fixes in windows, and the nearest ones before and
// behind those windows that begin and end here, as far as the given device times
// reach: $7 and $10 for neighbours, $8 and $9 for the windows.
const windowFixesSQL = `
select w.n - 1, p.ts, p.latitude, p.longitude, p.speed, p.pos
from unnest($2::text[], $3::timestamptz[], $4::timestamptz[], $5::bool[], $6::bool[])
  with ordinality as w (device_id, lo, hi, begins, ends, n)
cross join lateral (
  (select ts, latitude, longitude, speed, 0 as pos
  from public.positions
  where w.begins
    and ` + ofDevice + `
    and ts < w.lo
    and ts >= $7
    and ts < $9
    and ` + eligible + `
  order by ts desc
  limit 1)
  union all
  (select ts, latitude, longitude, speed, 1
  from public.positions
  where ` + ofDevice + `
    and ts between w.lo and w.hi
    and ts >= $8
    and ts < $9
    and ` + eligible + `)
  union all
  (select ts, latitude, longitude, speed, 2
  from public.positions
  where w.ends
    and ` + ofDevice + `
    and ts > w.hi
    and ts >= $8
    and ts < $10
    and ` + eligible + `
  order by ts
  limit 1)
) p
order by w.n, p.ts`

// windowCrossingsSQL finds the recorded crossings of the windows. The end of
// each window is the fix that follows it; if none does, everything recorded
// later refers to fixes that are gone.
const windowCrossingsSQL = `
select w.n - 1, t.id, t.fence_id, t.fence_version, t.kind, t.at, t.earlier_ts, t.later_ts,
  t.latitude, t.longitude, t.ordinal, t.initial, t.suppressed, ` + derivation + `
from unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) with ordinality as w (device_id, lo, hi, n)
join processor.timing_records t
  on t.device_id = w.device_id
  and t.later_ts between w.lo and w.hi`

// track is what a window and its neighbours hold: the fix before it, if there
// is one, those in it, and the one behind.
type track struct {
	fixes         []geofence.Fix
	before, after bool
	// derived is what counts where borders are held still, which other fixes decide;
	// nil where there are none.
	derived *geofence.Derived
	stretch geofence.Stretch // of which it is derived
	jumps   int              // that were none before the window changed
	later   int              // fixes behind the window for which all is derived, too
}

// tracks reads the fixes of windows. Near looks into their heaps and a few more
// on either side; a neighbour that is not there is looked for by far, which may
// not see what this transaction wrote: written is that of it which is no part of
// the windows. With a limit, that many fixes of a device are read at most for borders
// that are held still.
func tracks(c cuts, list []window, all protocol.Rules, near, far ask, written []telemetry.Record, limit int) ([]track, error) {
	rules, wider := all.Eligibility, all.Eligibility.MaxSpeed > 0 || all.Fences.Held()
	found := make([]track, len(list))
	var ahead, behind []distant
	for _, s := range c.spansOf(list) {
		if err := tracksIn(near, c, s, list, rules, found); err != nil {
			return nil, err
		}
		reach := c.span(s.first-heapsFirst, s.last+heapsFirst)
		for i, w := range list {
			if !found[i].before && s.holds(w.lo) && reach.first > 0 {
				ahead = append(ahead, distant{seek{w.device, w.lo, i}, reach.first - 1})
			}
			if !found[i].after && s.holds(w.hi) && reach.last < len(c) {
				behind = append(behind, distant{seek{w.device, w.hi, i}, reach.last + 1})
			}
		}
	}
	if len(ahead)+len(behind) == 0 && !wider {
		return found, nil
	}
	own := make(map[string][]geofence.Fix)
	for i := range written {
		if r := &written[i]; rules.Of(r) == telemetry.Eligible {
			own[r.DeviceID] = append(own[r.DeviceID], geofence.Fix{TimeUS: r.TimeUS, Latitude: r.Latitude, Longitude: r.Longitude, Speed: geofence.WholeKMH(r.Speed)})
		}
	}
	for i, w := range list {
		own[w.device] = append(own[w.device], found[i].fixes...)
	}
	for d, seeks := range map[direction][]distant{backward: ahead, forward: behind} {
		if err := neighbours(c, seeks, d, rules, far, own, found); err != nil {
			return nil, err
		}
	}
	if wider {
		return found, widenTracks(c, list, all, near, far, own, found, limit)
	}
	return found, nil
}

// distant is a search that begins in a heap.
type distant struct {
	seek
	heap int
}

// neighbours looks for the fixes next to windows in heaps far from them.
func neighbours(c cuts, list []distant, d direction, rules telemetry.Eligibility, far ask, own map[string][]geofence.Fix, found []track) error {
	got := make(map[int]geofence.Fix)
	// Those that begin in the same heap are looked for together.
	slices.SortStableFunc(list, func(a, b distant) int { return cmp.Compare(a.heap, b.heap) })
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].heap == list[0].heap {
			n++
		}
		seeks, at := make([]seek, n), make(map[int]seek, n)
		for i := range seeks {
			seeks[i] = list[i].seek
			at[seeks[i].n] = seeks[i]
			for _, f := range own[seeks[i].device] {
				nearer(got, seeks[i], d, f)
			}
		}
		if err := c.nearest(seeks, list[0].heap, d, 1, rules, far, func(n int, f geofence.Fix) { nearer(got, at[n], d, f) }); err != nil {
			return err
		}
		list = list[n:]
	}
	for n, f := range got {
		if d == backward {
			found[n].before, found[n].fixes = true, slices.Insert(found[n].fixes, 0, f)
		} else {
			found[n].after, found[n].fixes = true, append(found[n].fixes, f)
		}
	}
	return nil
}

// nearer keeps f if it lies in the direction of k, and no other known does
// nearer to it.
func nearer(got map[int]geofence.Fix, k seek, d direction, f geofence.Fix) {
	distance := func(us int64) int64 { return (us - k.at) * int64(d) }
	have, known := got[k.n]
	if distance(f.TimeUS) > 0 && (!known || distance(f.TimeUS) < distance(have.TimeUS)) {
		got[k.n] = f
	}
}

// tracksIn adds what the heaps of s hold of the windows.
func tracksIn(near ask, c cuts, s span, list []window, rules telemetry.Eligibility, found []track) error {
	var which []int
	var devices []string
	var lo, hi []pgtype.Timestamptz
	var begins, ends []bool
	for i, w := range list {
		if w.hi < s.from || w.lo >= s.to && s.to != math.MaxInt64 {
			continue
		}
		if !s.holds(w.lo) && !s.holds(w.hi) && w.empty(s) {
			continue
		}
		which, devices = append(which, i), append(devices, w.device)
		lo, hi = append(lo, timeOf(max(w.lo, s.from))), append(hi, timeOf(w.hi))
		begins, ends = append(begins, s.holds(w.lo)), append(ends, s.holds(w.hi))
	}
	if len(which) == 0 {
		return nil
	}
	reach := c.span(s.first-heapsFirst, s.last+heapsFirst)
	var n int64
	var ts time.Time
	var f geofence.Fix
	var speed float32
	var pos int
	_, err := near(windowFixesSQL, c.args(limitsOf(rules), devices, lo, hi, begins, ends,
		timeOf(reach.from), timeOf(s.from), timeOf(s.to), timeOf(reach.to)), []any{&n, &ts, &f.Latitude, &f.Longitude, &speed, &pos}, func() error {
		f.TimeUS, f.Speed = ts.UnixMicro(), geofence.WholeKMH(speed)
		t := &found[which[n]]
		t.fixes = append(t.fixes, f)
		t.before, t.after = t.before || pos == 0, t.after || pos == 2
		return nil
	})
	return err
}

// recorded is a row of timing_records.
type recorded struct {
	id      int64
	version int
	geofence.Crossing
}

// crossingKey identifies a crossing.
type crossingKey struct {
	fence   string
	kind    geofence.CrossingKind
	later   int64
	ordinal int
}

func keyOf(c *geofence.Crossing) crossingKey {
	return crossingKey{fence: c.FenceID, kind: c.Kind, later: c.LaterUS, ordinal: c.Ordinal}
}

// change is the outcome of recomputing windows.
type change struct {
	add     []protocol.Crossing
	update  []crossingUpdate
	drop    []int64
	notices []string
}

type crossingUpdate struct {
	id int64
	c  protocol.Crossing
}

// maxNotice keeps an announcement below the server's limit of 8,000 bytes.
const maxNotice = 7900

// notice announces a crossing that was changed or withdrawn.
type notice struct {
	Device string     `json:"device_id"`
	Fence  string     `json:"fence_id"`
	Kind   string     `json:"kind"`
	Later  time.Time  `json:"later_ts"`
	Old    time.Time  `json:"old_at"`
	New    *time.Time `json:"new_at"` // null when it was withdrawn
}

// recompute derives the crossings of windows again from their tracks, and queues
// what has to change.
func recompute(ctx context.Context, tx asker, list []window, found []track, rules protocol.Rules, then *pgx.Batch) (changed int, err error) {
	if len(list) == 0 {
		return 0, nil
	}
	devices := make([]string, len(list))
	lo, hi := make([]pgtype.Timestamptz, len(list)), make([]pgtype.Timestamptz, len(list))
	for i, w := range list {
		devices[i], lo[i], hi[i] = w.device, timeOf(w.lo), timeOf(math.MaxInt64)
		if t := &found[i]; t.after {
			hi[i] = timeOf(t.fixes[len(t.fixes)-1].TimeUS)
		}
		if !found[i].before {
			lo[i] = timeOf(math.MinInt64) // what is recorded of fixes before the first one stored
		} else if fixes := found[i].fixes; len(fixes) > 0 {
			lo[i] = timeOf(min(w.lo, fixes[0].TimeUS+1)) // and between this one and the one stored before it
		}
		if d := found[i].derived; d != nil {
			from, to := d.Bounds()
			lo[i], hi[i] = timeOf(from), timeOf(to)
		}
	}
	old := make([]map[crossingKey]recorded, len(list))
	rows, err := tx.Query(ctx, windowCrossingsSQL, devices, lo, hi)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		var r recorded
		var at, later time.Time
		var earlier *time.Time
		if err := rows.Scan(&n, &r.id, &r.FenceID, &r.version, &r.Kind, &at, &earlier, &later,
			&r.Latitude, &r.Longitude, &r.Ordinal, &r.Initial, &r.Suppressed, &r.Method, &r.DistanceM, &r.SpeedKMH, &r.MaxErrorMS); err != nil {
			return 0, err
		}
		r.TimeUS, r.LaterUS, r.EarlierUS = at.UnixMicro(), later.UnixMicro(), later.UnixMicro()
		if earlier != nil {
			r.EarlierUS = earlier.UnixMicro()
		}
		if d := found[n].derived; d != nil && !d.Complete(r.FenceID, r.LaterUS) {
			continue
		}
		if old[n] == nil {
			old[n] = make(map[crossingKey]recorded)
		}
		old[n][keyOf(&r.Crossing)] = r
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	var diff change
	var buf []geofence.Crossing
	seen := make(map[int64]bool) // rows that windows share
	done := make(map[string]map[crossingKey]bool)
	for i, w := range list {
		first, fixes := !found[i].before, found[i].fixes
		if d := found[i].derived; d != nil {
			first, fixes = found[i].stretch.First, found[i].stretch.Fixes
			buf = append(buf[:0], d.Crossings...)
		} else {
			buf = rules.Fences.Track(buf[:0], fixes, rules.MaxGap, first)
		}
		var without []geofence.Crossing
		for _, r := range old[i] {
			if unfounded(&r.Crossing, fixes) {
				without = append(without, r.Crossing)
			}
		}
		if len(without) > 0 {
			g, err := goneOf(inTx(ctx, tx), w.device, without)
			if err != nil {
				return 0, err
			}
			buf = g.settleAll(buf, fixes, first, rules.Fences.Set)
			maps.DeleteFunc(old[i], func(_ crossingKey, r recorded) bool { return g.holds(&r.Crossing) })
		}
		if len(buf) == 0 && len(old[i]) == 0 {
			continue
		}
		if done[w.device] == nil {
			done[w.device] = make(map[crossingKey]bool)
		}
		diff.compare(w.device, buf, old[i], rules.Fences, seen, done[w.device])
	}
	diff.queue(then, rules.Fences)
	return len(diff.update) + len(diff.drop), nil
}

// pairUp tells of each crossing what is derived and what is recorded; nil is none. It
// empties is.
func pairUp[R any](should []geofence.Crossing, is map[crossingKey]R, tell func(k crossingKey, want *geofence.Crossing, got *R)) {
	for i := range should {
		k := keyOf(&should[i])
		got, there := is[k]
		if delete(is, k); there {
			tell(k, &should[i], &got)
		} else {
			tell(k, &should[i], nil)
		}
	}
	for k, got := range is {
		tell(k, nil, &got)
	}
}

// compare records how the derived crossings differ from the stored ones.
func (d *change) compare(device string, should []geofence.Crossing, is map[crossingKey]recorded, fences *protocol.Fences,
	seen map[int64]bool, done map[crossingKey]bool,
) {
	pairUp(should, is, func(k crossingKey, want *geofence.Crossing, got *recorded) {
		switch {
		case done[k]:
		case want == nil:
			if !seen[got.id] {
				seen[got.id] = true
				d.drop = append(d.drop, got.id)
				d.announce(device, got, nil)
			}
		case got == nil:
			done[k] = true
			d.add = append(d.add, protocol.Crossing{DeviceID: device, Crossing: *want})
		default:
			done[k], seen[got.id] = true, true
			got.Fence = want.Fence
			same := sameCrossing(*want, got.Crossing) && got.version == fences.Versions[want.Fence]
			if !same || got.Method == "" {
				d.update = append(d.update, crossingUpdate{id: got.id, c: protocol.Crossing{DeviceID: device, Crossing: *want}})
			}
			if !same { // how it was derived an earlier version did not say, and is no news
				d.announce(device, got, want)
			}
		}
	})
}

// announce tells what became of a recorded crossing, unless that did not count.
func (d *change) announce(device string, r *recorded, want *geofence.Crossing) {
	if r.Suppressed {
		return
	}
	var at *time.Time
	if want != nil && !want.Suppressed {
		at = new(micros(want.TimeUS))
	}
	text, err := json.Marshal(notice{
		Device: device, Fence: r.FenceID, Kind: string(r.Kind),
		Later: time.UnixMicro(r.LaterUS).UTC(), Old: time.UnixMicro(r.TimeUS).UTC(), New: at,
	})
	if err == nil && len(text) <= maxNotice {
		d.notices = append(d.notices, string(text))
	}
}

func (d *change) queue(b *pgx.Batch, fences *protocol.Fences) {
	if len(d.drop) > 0 {
		b.Queue("delete from processor.timing_records where id = any ($1)", d.drop)
	}
	for _, r := range d.update {
		c := r.c
		b.Queue(`
update processor.timing_records
set fence_version = $2,
  at = $3,
  earlier_ts = $4,
  latitude = $5,
  longitude = $6,
  initial = $7,
  method = $8,
  distance_m = $9,
  speed = $10,
  max_error_ms = $11,
  suppressed = $12,
  revision = revision + 1,
  updated_at = now()
where id = $1`, r.id, fences.Versions[c.Fence], micros(c.TimeUS), earlierTS(&c.Crossing), c.Latitude, c.Longitude, c.Initial,
			string(c.Method), ofSegment(&c, c.DistanceM), ofSegment(&c, c.SpeedKMH), ofSegment(&c, c.MaxErrorMS), c.Suppressed)
	}
	queueCrossings(b, d.add, fences)
	if len(d.notices) > 0 {
		b.Queue("select pg_notify('"+TimingChannel+"', n) from unnest($1::text[]) as n", d.notices)
	}
}

// queueCrossings inserts crossings. An existing one was derived from the same
// fixes before, and is updated.
func queueCrossings(b *pgx.Batch, list []protocol.Crossing, fences *protocol.Fences) {
	list = mutantCrossings(list)
	if len(list) == 0 {
		return
	}
	n := len(list)
	device, fence, kind := make([]string, n), make([]string, n), make([]string, n)
	version, ordinal := make([]int32, n), make([]int16, n)
	at, earlier, later := make([]time.Time, n), make([]*time.Time, n), make([]time.Time, n)
	lat, lon, initial, suppressed := make([]float64, n), make([]float64, n), make([]bool, n), make([]bool, n)
	method, distance, speed, uncertain := make([]string, n), make([]*float32, n), make([]*float32, n), make([]*int64, n)
	for i := range list {
		c := &list[i]
		device[i], fence[i], kind[i] = c.DeviceID, c.FenceID, string(c.Kind)
		version[i], ordinal[i] = int32(fences.Versions[c.Fence]), int16(c.Ordinal) // which no fence exceeds
		at[i], earlier[i], later[i] = micros(c.TimeUS), earlierTS(&c.Crossing), micros(c.LaterUS)
		lat[i], lon[i], initial[i], suppressed[i] = c.Latitude, c.Longitude, c.Initial, c.Suppressed
		method[i], distance[i], speed[i], uncertain[i] = string(c.Method), ofSegment(c, c.DistanceM), ofSegment(c, c.SpeedKMH), ofSegment(c, c.MaxErrorMS)
	}
	b.Queue(`
insert into processor.timing_records as t (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts,
  latitude, longitude, ordinal, initial, method, distance_m, speed, max_error_ms, suppressed)
select *
from unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[],
  $8::float8[], $9::float8[], $10::int2[], $11::bool[], $12::text[], $13::float4[], $14::float4[], $15::int8[], $16::bool[])
on conflict (device_id, fence_id, kind, later_ts, ordinal) do update
set fence_version = excluded.fence_version,
  at = excluded.at,
  earlier_ts = excluded.earlier_ts,
  latitude = excluded.latitude,
  longitude = excluded.longitude,
  initial = excluded.initial,
  method = excluded.method,
  distance_m = excluded.distance_m,
  speed = excluded.speed,
  max_error_ms = excluded.max_error_ms,
  suppressed = excluded.suppressed,
  revision = t.revision + 1,
  updated_at = now()
where (t.fence_version, t.at, t.earlier_ts, t.latitude, t.longitude, t.initial, t.method, t.distance_m, t.speed, t.max_error_ms,
    t.suppressed)
  is distinct from (excluded.fence_version, excluded.at, excluded.earlier_ts, excluded.latitude, excluded.longitude, excluded.initial,
    excluded.method, excluded.distance_m, excluded.speed, excluded.max_error_ms, excluded.suppressed)`,
		device, fence, version, kind, at, earlier, later, lat, lon, ordinal, initial, method, distance, speed, uncertain, suppressed)
}

// earlierTS returns the fix before a crossing; nil for an initial one, which
// has none.
func earlierTS(c *geofence.Crossing) *time.Time {
	if c.Initial {
		return nil
	}
	at := micros(c.EarlierUS)
	return &at
}

// ofSegment returns what is known of the way to a crossing; nil for an initial one.
func ofSegment[V any](c *protocol.Crossing, v V) *V {
	if c.Initial {
		return nil
	}
	return &v
}

func micros(us int64) time.Time { return time.UnixMicro(us).UTC() }
