package store

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/trmtracking/processor/internal/geofence"
)

// Crossings outlive the positions that they were derived from. What was recorded at a
// fix that is no longer stored stays, and is all that is known of the device there: at
// the next fix that is stored, what the last crossing of a fence says is compared with
// where the device is. So does what was recorded at a stored fix whose predecessor is
// gone, unless a stored fix lies between the two. Where either is of a fence with a held
// border, what counts of it begins anew at the stored fix, see geofence.Stretch. Passages of
// gates that are recorded so stay, too; the way between the two stored fixes passes that gate
// no second time, and what stays decides which later ones are suppressed.

// fenceAt is a fence at the device time of a fix.
type fenceAt struct {
	fence string
	us    int64
}

// gone is the crossings of one device that cannot be derived again.
type gone struct {
	past   []pastCrossing       // enters and exits at fixes that are not stored, in order
	passed []geofence.Crossing  // passages of gates there, in order
	spans  []geofence.Crossing  // at stored fixes with a predecessor that is not, in order
	stays  map[fenceAt]struct{} // what is recorded there is not judged
}

// pastCrossing is what is left of a crossing at a fix that is gone.
type pastCrossing struct {
	fenceAt
	ordinal int
	inside  bool
}

// unfounded reports whether fixes lack one of those that a crossing refers to.
func unfounded(c *geofence.Crossing, fixes []geofence.Fix) bool {
	for _, us := range []int64{c.EarlierUS, c.LaterUS} {
		if _, found := slices.BinarySearchFunc(fixes, us, func(f geofence.Fix, us int64) int { return cmp.Compare(f.TimeUS, us) }); !found {
			return true
		}
	}
	return false
}

// add sorts in what is recorded at fixes of which one may not be stored.
func (g *gone) add(c *geofence.Crossing, stored func(us int64) bool) {
	at := fenceAt{c.FenceID, c.LaterUS}
	switch {
	case !stored(c.LaterUS):
		g.stays[at] = struct{}{}
		if isPassage(c) {
			g.passed = append(g.passed, *c)
		} else {
			g.past = append(g.past, pastCrossing{at, c.Ordinal, c.Kind == geofence.Enter})
		}
	case !stored(c.EarlierUS):
		g.spans = append(g.spans, *c)
	}
}

func isPassage(c *geofence.Crossing) bool {
	return c.Kind == geofence.Forward || c.Kind == geofence.Backward
}

func (g *gone) sort() {
	slices.SortFunc(g.past, pastCrossing.compare)
	for _, list := range [][]geofence.Crossing{g.passed, g.spans} {
		slices.SortFunc(list, func(a, b geofence.Crossing) int {
			return cmp.Or(cmp.Compare(a.LaterUS, b.LaterUS), cmp.Compare(a.Ordinal, b.Ordinal))
		})
	}
}

func (c pastCrossing) compare(other pastCrossing) int {
	return cmp.Or(cmp.Compare(c.us, other.us), cmp.Compare(c.ordinal, other.ordinal))
}

// goneOf finds the recorded crossings of a device of whose fixes one is not stored.
func goneOf(look ask, device string, recorded []geofence.Crossing) (*gone, error) {
	g := &gone{stays: make(map[fenceAt]struct{})}
	if len(recorded) == 0 {
		return g, nil
	}
	var times []time.Time
	for i := range recorded {
		times = append(times, micros(recorded[i].EarlierUS), micros(recorded[i].LaterUS))
	}
	stored := make(map[int64]bool)
	var ts time.Time
	if _, err := look(`
select ts
from public.positions
where device_id = $1
  and ts = any ($2)`, []any{pgx.QueryExecModeCacheDescribe, device, times}, []any{&ts}, func() error {
		stored[ts.UnixMicro()] = true
		return nil
	}); err != nil {
		return nil, err
	}
	for i := range recorded {
		g.add(&recorded[i], func(us int64) bool { return stored[us] })
	}
	g.sort()
	return g, nil
}

// piece is a part of the track of one device: fixes that take part and others that are
// known to be stored. With first nothing that is stored and takes part is before them.
type piece struct {
	device string
	fixes  []geofence.Fix
	first  bool
}

// gonesOf finds the recorded crossings along tracks of whose fixes one is not
// stored; of a track that begins with the device's first fix those that say where it was
// before, too, and the passages of gates that may suppress one behind it: those within the
// longest interval.
func gonesOf(look ask, c cuts, list []piece, intervalUS int64) ([]*gone, error) {
	out := make([]*gone, len(list))
	var which []int
	var devices []string
	var lo, hi []time.Time
	var before []lastCrossing
	for i := range list {
		out[i] = &gone{stays: make(map[fenceAt]struct{})}
		fixes := list[i].fixes
		if len(fixes) == 0 {
			continue
		}
		first := fixes[0].TimeUS
		if list[i].first {
			before = append(before, lastCrossing{device: list[i].device, afterUS: math.MinInt64, beforeUS: first, n: i})
			first -= intervalUS
		} else {
			first++ // what was before it is not asked
		}
		which, devices = append(which, i), append(devices, list[i].device)
		lo, hi = append(lo, micros(first)), append(hi, micros(fixes[len(fixes)-1].TimeUS))
	}
	if len(which) == 0 {
		return out, nil
	}
	known := func(i int, us int64) bool {
		_, found := slices.BinarySearchFunc(list[i].fixes, us, func(f geofence.Fix, us int64) int { return cmp.Compare(f.TimeUS, us) })
		return found
	}
	type of struct {
		n int
		geofence.Crossing
	}
	var doubtful []of
	var r of
	var earlier *time.Time
	var at, later time.Time
	if _, err := look(`
select w.n - 1, t.fence_id, t.kind, t.at, t.earlier_ts, t.later_ts, t.ordinal, t.suppressed
from unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) with ordinality as w (device_id, lo, hi, n)
join processor.timing_records t
  on t.device_id = w.device_id
  and t.later_ts between w.lo and w.hi`, []any{devices, lo, hi}, []any{&r.n, &r.FenceID, &r.Kind, &at, &earlier, &later, &r.Ordinal, &r.Suppressed}, func() error {
		x := r
		x.n, x.TimeUS, x.LaterUS, x.EarlierUS = which[r.n], at.UnixMicro(), later.UnixMicro(), later.UnixMicro()
		if earlier != nil {
			x.EarlierUS = earlier.UnixMicro()
		}
		if !known(x.n, x.LaterUS) || !known(x.n, x.EarlierUS) {
			doubtful = append(doubtful, x)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if len(doubtful) > 0 {
		at := make([]deviceAt, 0, 2*len(doubtful))
		for i := range doubtful {
			x := &doubtful[i]
			at = append(at, deviceAt{list[x.n].device, x.EarlierUS}, deviceAt{list[x.n].device, x.LaterUS})
		}
		stored, err := storedAt(look, c, at)
		if err != nil {
			return nil, err
		}
		for i := range doubtful {
			x := &doubtful[i]
			// A transaction may have written fixes that are not seen here.
			out[x.n].add(&x.Crossing, func(us int64) bool { return known(x.n, us) || stored[deviceAt{list[x.n].device, us}] })
		}
	}
	if err := lastGone(look, c, nil, before, func(n int, p pastCrossing) { out[n].past = append(out[n].past, p) }); err != nil {
		return nil, err
	}
	for _, g := range out {
		g.sort()
	}
	return out, nil
}

// deviceAt is a device at a device time.
type deviceAt struct {
	device string
	us     int64
}

// storedAt finds at which of these device times there are positions, a few heaps at a time.
func storedAt(look ask, c cuts, list []deviceAt) (map[deviceAt]bool, error) {
	stored := make(map[deviceAt]bool)
	if len(list) == 0 {
		return stored, nil
	}
	slices.SortFunc(list, func(a, b deviceAt) int { return cmp.Or(cmp.Compare(a.us, b.us), cmp.Compare(a.device, b.device)) })
	list = slices.Compact(list)
	for _, s := range c.spans(list[0].us, list[len(list)-1].us) {
		n := 0
		for n < len(list) && s.holds(list[n].us) {
			n++
		}
		for some := range slices.Chunk(list[:n], 10_000) {
			devices, at := make([]string, len(some)), make([]time.Time, len(some))
			for i, x := range some {
				devices[i], at[i] = x.device, micros(x.us)
			}
			var i int
			if _, err := look(`
select w.n - 1
from unnest($1::text[], $2::timestamptz[]) with ordinality as w (device_id, at, n)
where exists (
  select
  from public.positions
  where `+ofDevice+`
    and ts = w.at
    and ts >= $3
    and ts < $4
  offset 0
)`, c.args(devices, at, timeOf(s.from), timeOf(s.to)), []any{&i}, func() error {
				stored[some[i]] = true
				return nil
			}); err != nil {
				return nil, err
			}
		}
		list = list[n:]
	}
	return stored, nil
}

// lastCrossing asks for the last enters and exits of a device between two device times,
// neither of them included, at fixes that are gone.
type lastCrossing struct {
	device            string
	fence             string // "" for any
	afterUS, beforeUS int64
	n                 int
}

// lastGone finds of each fence the last one, of those named unless that is nil. One at a fix that is stored says nothing,
// since that fix does not take part, and the ones before it are looked at: more of them each
// time.
func lastGone(look ask, c cuts, fences []string, list []lastCrossing, found func(n int, p pastCrossing)) error {
	const most = 1000
	for page := 1; len(list) > 0; page = min(8*page, most) {
		var next []lastCrossing
		for some := range slices.Chunk(list, max(1, most/page)) {
			more, err := lastGoneIn(look, c, fences, some, page, found)
			if err != nil {
				return err
			}
			next = append(next, more...)
		}
		list = next
	}
	return nil
}

// passedGone finds the passages of gates between two device times, neither of them included,
// at fixes that are gone, in order.
func passedGone(look ask, c cuts, fences []string, list []lastCrossing, found func(n int, c geofence.Crossing)) error {
	devices, after, before := make([]string, len(list)), make([]pgtype.Timestamptz, len(list)), make([]pgtype.Timestamptz, len(list))
	for i, k := range list {
		devices[i], after[i], before[i] = k.device, timeOf(k.afterUS), timeOf(k.beforeUS)
	}
	var rows []geofence.Crossing
	var of []int
	var at []deviceAt
	var n int
	var r geofence.Crossing
	var passed, later time.Time
	if _, err := look(`
select w.n - 1, t.fence_id, t.kind, t.at, t.later_ts, t.suppressed
from unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) with ordinality as w (device_id, after, before, n)
join processor.timing_records t
  on t.device_id = w.device_id
  and t.later_ts > w.after
  and t.later_ts < w.before
where t.fence_id = any ($4)
  and t.kind in ('forward', 'backward')
order by w.n, t.later_ts, t.ordinal`, []any{devices, after, before, fences}, []any{&n, &r.FenceID, &r.Kind, &passed, &later, &r.Suppressed}, func() error {
		r.TimeUS, r.LaterUS = passed.UnixMicro(), later.UnixMicro()
		rows, of, at = append(rows, r), append(of, n), append(at, deviceAt{list[n].device, r.LaterUS})
		return nil
	}); err != nil {
		return err
	}
	stored, err := storedAt(look, c, slices.Clone(at))
	if err != nil {
		return err
	}
	for i := range rows {
		if !stored[at[i]] {
			found(list[of[i]].n, rows[i])
		}
	}
	return nil
}

// lastGoneIn looks at the last ones, and returns where earlier ones are to be looked at.
func lastGoneIn(look ask, c cuts, of []string, list []lastCrossing, page int, found func(n int, p pastCrossing)) (next []lastCrossing, err error) {
	devices, fences := make([]string, len(list)), make([]string, len(list))
	after, before := make([]pgtype.Timestamptz, len(list)), make([]pgtype.Timestamptz, len(list))
	for i, k := range list {
		devices[i], fences[i], after[i], before[i] = k.device, k.fence, timeOf(k.afterUS), timeOf(k.beforeUS)
	}
	type row struct {
		n int
		pastCrossing
	}
	var rows []row
	var at []deviceAt
	var r row
	var kind geofence.CrossingKind
	var later time.Time
	sql := `
  (select distinct on (fence_id) fence_id, kind, later_ts, ordinal
  from processor.timing_records
  where device_id = w.device_id
    and ($5::text[] is null or fence_id = any ($5))
    and later_ts > w.after
    and later_ts < w.before
    and kind in ('enter', 'exit')
  order by fence_id, later_ts desc, ordinal desc)`
	args := []any{devices, fences, after, before, of}
	if list[0].fence != "" {
		sql = `
  (select fence_id, kind, later_ts, ordinal
  from processor.timing_records
  where device_id = w.device_id
    and fence_id = w.fence_id
    and later_ts > w.after
    and later_ts < w.before
    and kind in ('enter', 'exit')
  order by later_ts desc, ordinal desc
  limit $5)`
		args[4] = page
	}
	if _, err := look("select w.n - 1, t.fence_id, t.kind, t.later_ts, t.ordinal\n"+
		"from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) with ordinality as w (device_id, fence_id, after, before, n)\n"+
		"cross join lateral "+sql+" t\norder by w.n, t.later_ts desc, t.ordinal desc", args, []any{&r.n, &r.fence, &kind, &later, &r.ordinal}, func() error {
		r.us, r.inside = later.UnixMicro(), kind == geofence.Enter
		rows, at = append(rows, r), append(at, deviceAt{list[r.n].device, r.us})
		return nil
	}); err != nil {
		return nil, err
	}
	stored, err := storedAt(look, c, at)
	if err != nil {
		return nil, err
	}
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && rows[n].n == rows[0].n && rows[n].fence == rows[0].fence {
			n++
		}
		of := rows[:n]
		rows = rows[n:]
		k := list[of[0].n]
		i := slices.IndexFunc(of, func(r row) bool { return !stored[deviceAt{k.device, r.us}] })
		switch {
		case i >= 0:
			found(k.n, of[i].pastCrossing)
		case k.fence == "" || len(of) == page:
			k.fence, k.beforeUS = of[0].fence, of[len(of)-1].us
			next = append(next, k)
		}
	}
	return next, nil
}

// holds reports whether a recorded crossing stays as it is, after settle.
func (g *gone) holds(c *geofence.Crossing) bool {
	_, stays := g.stays[fenceAt{c.FenceID, c.LaterUS}]
	return stays
}

// between returns for each fence that was entered or left between a fix and the one
// stored before it, math.MinInt64 if none is, as far as positions are gone, whether the
// device was inside at the end. What is recorded at the fix itself, with a predecessor that is gone
// and lies between the two, is across.
func (g *gone) between(before int64, fix geofence.Fix) (was map[string]bool, across []geofence.Crossing) {
	from, _ := slices.BinarySearchFunc(g.past, before, func(c pastCrossing, us int64) int { return cmp.Compare(c.us, us) })
	for _, c := range g.past[from:] {
		if c.us >= fix.TimeUS {
			break
		}
		if was == nil {
			was = make(map[string]bool)
		}
		was[c.fence] = c.inside
	}
	from, _ = slices.BinarySearchFunc(g.spans, fix.TimeUS, func(c geofence.Crossing, us int64) int { return cmp.Compare(c.LaterUS, us) })
	for _, c := range g.spans[from:] {
		if c.LaterUS != fix.TimeUS {
			break
		}
		if c.EarlierUS > before {
			across = append(across, c)
		}
	}
	return was, across
}

// passages returns the passages of gates that are recorded between a fix and the one
// stored before it, or at the fix and across, and stay.
func (g *gone) passages(before int64, fix geofence.Fix) (list []geofence.Crossing) {
	from, _ := slices.BinarySearchFunc(g.passed, before, func(c geofence.Crossing, us int64) int { return cmp.Compare(c.LaterUS, us) })
	for _, c := range g.passed[from:] {
		if c.LaterUS >= fix.TimeUS {
			break
		}
		list = append(list, c)
	}
	_, across := g.between(before, fix)
	for i := range across {
		if isPassage(&across[i]) {
			list = append(list, across[i])
		}
	}
	return list
}

// passedAlong says of the fixes of a track, as since does, which passages stay before them,
// see geofence.Stretch.
func (g *gone) passedAlong(fixes []geofence.Fix, first bool) map[int64][]geofence.Crossing {
	if len(g.passed)+len(g.spans) == 0 {
		return nil
	}
	passed := make(map[int64][]geofence.Crossing)
	before := int64(math.MinInt64)
	for i, f := range fixes {
		if i > 0 || first {
			if list := g.passages(before, f); len(list) > 0 {
				passed[f.TimeUS] = list
			}
		}
		before = f.TimeUS
	}
	return passed
}

// since says of the fixes of a track, the first of which has something before it with first
// only, whether the device was inside of fences before them, see geofence.Stretch. What is
// recorded at a fix and stays says so, too.
func (g *gone) since(fixes []geofence.Fix, first bool) map[int64]map[string]bool {
	if len(g.past)+len(g.spans) == 0 {
		return nil
	}
	since := make(map[int64]map[string]bool)
	before := int64(math.MinInt64)
	for i, f := range fixes {
		if i > 0 || first {
			was, across := g.between(before, f)
			was = afterwards(was, across)
			if len(was) > 0 {
				since[f.TimeUS] = was
			}
		}
		before = f.TimeUS
	}
	return since
}

// afterwards adds to whether a device was inside of fences before a fix what was recorded at it.
func afterwards(was map[string]bool, at []geofence.Crossing) map[string]bool {
	for _, c := range at {
		if c.Kind != geofence.Enter && c.Kind != geofence.Exit {
			continue
		}
		if was == nil {
			was = make(map[string]bool)
		}
		was[c.FenceID] = c.Kind == geofence.Enter
	}
	return was
}

// settle corrects what was derived of a fix and the one stored before it, math.MinInt64
// if none is, by what is known of the time between them.
func (g *gone) settle(derived []geofence.Crossing, before int64, fix geofence.Fix, set *geofence.Set) []geofence.Crossing {
	was, across := g.between(before, fix)
	for _, c := range across {
		g.stays[fenceAt{c.FenceID, c.LaterUS}] = struct{}{}
		delete(was, c.FenceID)
	}
	passed := g.passages(before, fix)
	if len(was)+len(across)+len(passed) == 0 {
		return derived
	}
	derived = slices.DeleteFunc(derived, func(c geofence.Crossing) bool {
		return c.LaterUS == fix.TimeUS && (g.holds(&c) || of(passed, c.FenceID))
	})
	return since(derived, was, fix, set)
}

// since replaces what was derived of a fix of fences of which it is known whether the
// device was inside before. Those with borders that are held still know it already.
func since(derived []geofence.Crossing, was map[string]bool, fix geofence.Fix, set *geofence.Set) []geofence.Crossing {
	derived = slices.DeleteFunc(derived, func(c geofence.Crossing) bool {
		_, known := was[c.FenceID]
		return c.LaterUS == fix.TimeUS && known && !set.HeldID(c.FenceID)
	})
	return set.Since(derived, was, fix)
}

// of reports whether any of the crossings is of a fence.
func of(list []geofence.Crossing, fence string) bool {
	return slices.ContainsFunc(list, func(c geofence.Crossing) bool { return c.FenceID == fence })
}

// settleAll is settle along a track, whose first fix is the first one stored or has
// been looked at.
func (g *gone) settleAll(derived []geofence.Crossing, fixes []geofence.Fix, first bool, set *geofence.Set) []geofence.Crossing {
	before := int64(math.MinInt64)
	for i, f := range fixes {
		if i > 0 || first {
			derived = g.settle(derived, before, f, set)
		}
		before = f.TimeUS
	}
	return derived
}
