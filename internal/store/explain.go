package store

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Explanation is why a device did or did not cross a fence between two fixes.
type Explanation struct {
	Device string    `json:"device_id"`
	Fence  string    `json:"fence_id"`
	At     time.Time `json:"at"` // what was asked for
	// Crossings are those recorded of the fence at the later fix, and Derived what its
	// fixes and the fence say now: the same, or the device is to be recomputed.
	Crossings []ExplainedCrossing `json:"crossings"`
	Derived   []ExplainedCrossing `json:"derived"`
	Agree     bool                `json:"agree"`
	// Gone: positions that it was recorded from are not stored any more.
	Gone bool `json:"fixes_gone"`
	// Earlier and Later are the fixes that decide; null where there is none.
	Earlier *time.Time `json:"earlier_ts"`
	Later   *time.Time `json:"later_ts"`
	// Fixes are the positions around them, by device time.
	Fixes []ExplainedFix `json:"fixes"`
	// More: there are more positions between the fixes than are listed.
	More bool `json:"more"`
	// Conflicts are records of those device times that lost to the row.
	Conflicts []ConflictRow `json:"conflicts"`
	Versions  []VersionRow  `json:"versions"` // of the fence, those that are replaced too
	Changes   []ChangeRow   `json:"changes"`  // what became of its crossings there, oldest first
	// ChangesSince is the oldest change of the device that is still known; null for none.
	ChangesSince *time.Time `json:"changes_since"`

	Shard      int        `json:"shard"`
	Owner      *string    `json:"owner"` // null while the shard has none
	Epoch      int64      `json:"epoch"`
	OwnedSince *time.Time `json:"owned_since"`
}

// ExplainedCrossing is a crossing, recorded or derived.
type ExplainedCrossing struct {
	Kind    string     `json:"kind"`
	Version int        `json:"fence_version"`
	At      time.Time  `json:"at"`
	Earlier *time.Time `json:"earlier_ts"` // null for an initial one
	Later   time.Time  `json:"later_ts"`
	Ordinal int        `json:"ordinal"`
	// Suppressed is a passage of a gate that does not count.
	Suppressed bool `json:"suppressed"`

	Method   *string    `json:"method"`       // this and the next are null in a row that does not say
	Distance *float32   `json:"distance_m"`   // metres between the fixes
	Speed    *float32   `json:"speed"`        // km/h that this takes
	MaxError *int64     `json:"max_error_ms"` // how far from At it may have been
	Revision int        `json:"revision"`     // 0 for a derived one
	Created  *time.Time `json:"created_at"`   // null for a derived one
	Updated  *time.Time `json:"updated_at"`   // null for a derived one
	of       geofence.Crossing
}

// ExplainedFix is a position near the decision.
type ExplainedFix struct {
	Position
	// Why it takes no part: no_fix, future, ancient, faulty, jump, or undecided for the
	// newest, which may turn out to be a jump. Empty if it takes part.
	Why    string `json:"why"`
	Role   string `json:"role"`   // earlier or later for the two that decide
	Inside bool   `json:"inside"` // the fence, by the version valid then
}

// ConflictRow is a record that lost its device time to another.
type ConflictRow struct {
	Time     time.Time `json:"ts"`
	Entry    *string   `json:"entry_id"` // null for one that was the row first
	Ingested time.Time `json:"ingested_at"`
	Differs  []string  `json:"differs"`
}

// VersionRow is a version of a fence.
type VersionRow struct {
	Version int        `json:"version"`
	Kind    string     `json:"kind"`
	From    *time.Time `json:"valid_from"`
	To      *time.Time `json:"valid_to"`
	Enabled bool       `json:"enabled"`
	// Holds is what holds its border still; null is nothing.
	ExitMarginM  *float64 `json:"exit_margin_m"`
	MinDwellS    *float64 `json:"min_dwell_s"`
	MinIntervalS *float64 `json:"min_interval_s"`

	Created  time.Time  `json:"created_at"`
	By       string     `json:"created_by"`
	Replaced *time.Time `json:"replaced_at"` // null while it is in force
	Used     bool       `json:"used"`        // valid at one of the two fixes
}

// ChangeRow is a change of a crossing.
type ChangeRow struct {
	Number   int64      `json:"number"`
	Change   string     `json:"change"`
	Kind     string     `json:"kind"`
	Later    time.Time  `json:"later_ts"`
	Old      *time.Time `json:"old_at"`
	New      *time.Time `json:"new_at"`
	Revision *int       `json:"revision"` // after it; null when the crossing went
	At       time.Time  `json:"changed_at"`
}

const (
	explainedAround = 5  // fixes shown before and behind the two
	explainedRows   = 60 // positions shown before the two, between them and behind
	explainedKnown  = 40 // fixes that take part, looked for on either side
)

// ErrNoCrossing is returned for a device that never crossed a fence, when no time is
// given.
var ErrNoCrossing = errors.New("no crossing of that fence is recorded for the device: give a time to see why not")

// Explain replays one decision about a device and a fence: that of the crossing at a
// time, or of the two fixes between which the time lies; of the last crossing, if at is
// zero. It is read as of one moment and changes nothing.
func (d *Devices) Explain(ctx context.Context, device, fence string, at time.Time) (Explanation, error) {
	const op = "explain a crossing"
	e := Explanation{
		Device: device, Fence: fence, At: at, Fixes: []ExplainedFix{}, Crossings: []ExplainedCrossing{}, Derived: []ExplainedCrossing{},
		Conflicts: []ConflictRow{}, Versions: []VersionRow{}, Changes: []ChangeRow{},
	}
	if d.pins.Shards == 0 {
		return e, errNeverStarted
	}
	e.Shard = telemetry.ShardOf(device, d.pins.Shards)
	c, err := d.heaps.now(ctx)
	if err != nil {
		return e, failure(op, err)
	}
	err = pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		ask, err := asOf(ctx, d.pool, tx, c)
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `
select max(owner), coalesce(max(epoch), 0), max(owner_since)
from processor.shards
where stream = $1
  and group_name = $2
  and shard = $3`, d.scope.Stream, d.scope.Group, e.Shard).Scan(&e.Owner, &e.Epoch, &e.OwnedSince); err != nil {
			return err
		}
		us, err := e.find(ctx, tx)
		if err != nil {
			return err
		}
		set, versions, err := e.versions(ctx, tx)
		if err != nil {
			return err
		}
		fixes, first, last, err := d.decide(c, ask, &e, us)
		if err != nil {
			return err
		}
		if err := e.recorded(ctx, tx, us); err != nil {
			return err
		}
		crossings := set.Track(nil, fixes, d.pins.MaxGap, first)
		found, err := gonesOf(ask, c, []piece{{device, fixes, first}}, set.IntervalUS())
		if err != nil {
			return err
		}
		crossings = found[0].settleAll(crossings, fixes, first, set)
		if set.Held() && e.Later != nil { // other fixes decide, too
			w := window{device: device, lo: e.Later.UnixMicro(), hi: e.Later.UnixMicro()}
			found, err := tracks(c, []window{w}, protocol.Rules{Fences: &protocol.Fences{Set: set}, Eligibility: d.pins.Eligibility, MaxGap: d.pins.MaxGap}, ask, ask, nil, 0)
			if err != nil {
				return err
			}
			if crossings = nil; found[0].derived != nil {
				crossings = found[0].derived.Crossings
			}
		}
		e.derive(set, versions, crossings)
		if err := d.around(c, ask, &e, set, fixes, last); err != nil {
			return err
		}
		return d.context(ctx, tx, &e)
	})
	return e, failure(op, err)
}

// find returns the device time of the later fix that is asked for, or one between the
// two.
func (e *Explanation) find(ctx context.Context, tx pgx.Tx) (us int64, err error) {
	var later, at time.Time
	if e.At.IsZero() {
		err = tx.QueryRow(ctx, `
select later_ts, at
from processor.timing_records
where device_id = $1
  and fence_id = $2
order by later_ts desc, ordinal desc
limit 1`, e.Device, e.Fence).Scan(&later, &at)
		if errors.Is(err, pgx.ErrNoRows) {
			return 0, ErrNoCrossing
		}
		e.At = at
		return later.UnixMicro(), err
	}
	// As precise as it is shown.
	err = tx.QueryRow(ctx, `
select later_ts
from processor.timing_records
where device_id = $1
  and fence_id = $2
  and at between $3::timestamptz - interval '1 ms' and $3::timestamptz + interval '1 ms'
order by abs(extract(epoch from at - $3::timestamptz)), later_ts
limit 1`, e.Device, e.Fence, e.At).Scan(&later)
	if errors.Is(err, pgx.ErrNoRows) {
		return e.At.UnixMicro(), nil
	}
	return later.UnixMicro(), err
}

// versions reads what the fence was and is, and returns the set of what is in force.
func (e *Explanation) versions(ctx context.Context, tx pgx.Tx) (*geofence.Set, []FenceVersion, error) {
	var err error
	if e.Versions, err = collect(ctx, tx, func(row pgx.CollectableRow) (v VersionRow, err error) {
		err = row.Scan(&v.Version, &v.Kind, &v.From, &v.To, &v.Enabled, &v.ExitMarginM, &v.MinDwellS, &v.MinIntervalS, &v.Created, &v.By, &v.Replaced)
		return v, err
	}, `
select version, kind, valid_from, valid_to, enabled, exit_margin_m, min_dwell_s, min_interval_s, created_at, created_by, replaced_at
from processor.geofences
where id = $1
order by version`, e.Fence); err != nil {
		return nil, nil, err
	}
	all, err := collect(ctx, tx, scanFence, fencesInForce)
	if err != nil {
		return nil, nil, err
	}
	var of []FenceVersion
	var fences []geofence.Fence
	for _, v := range all {
		if v.ID == e.Fence {
			of, fences = append(of, v), append(fences, v.Fence)
		}
	}
	set, _ := geofence.NewSet(fences) // what is invalid records nothing
	return set, of, nil
}

// decide finds the fixes that take part round a device time, and the two that decide. It
// reports whether they begin with the first of the device, and end with the newest.
func (d *Devices) decide(c cuts, ask ask, e *Explanation, us int64) (fixes []geofence.Fix, first, last bool, err error) {
	before, first, err := d.next(c, ask, e.Device, backward, us, explainedKnown)
	if err != nil {
		return nil, false, false, err
	}
	behind, last, err := d.next(c, ask, e.Device, forward, us-1, explainedKnown)
	if err != nil {
		return nil, false, false, err
	}
	slices.Reverse(before)
	all := slices.Concat(before, behind)
	fixes = all
	if top := d.pins.Eligibility.MaxSpeed; top > 0 {
		r := reach{track: &track{fixes: all}, top: top, first: first, last: last}
		fixes = nil
		for i := range all {
			if r.takesPart(i) {
				fixes = append(fixes, all[i])
			}
		}
	}
	for _, f := range fixes {
		at := micros(f.TimeUS)
		if f.TimeUS >= us {
			e.Later = &at
			break
		}
		e.Earlier = &at
	}
	if e.Earlier == nil && !first {
		return nil, false, false, errors.New("too many positions in a row are jumps: look at them with processor device show, and verify the device")
	}
	return fixes, first, last, nil
}

// next returns the eligible fixes next to a device time, nearest first: so many, or all.
func (d *Devices) next(c cuts, ask ask, device string, dir direction, at int64, most int) (list []geofence.Fix, all bool, err error) {
	for len(list) < most {
		had := len(list)
		if err := c.nearest([]seek{{device: device, at: at}}, c.heap(at), dir, most, d.pins.Eligibility, ask, func(_ int, f geofence.Fix) {
			list = append(list, f)
		}); err != nil {
			return nil, false, err
		}
		if len(list) == had {
			return list, true, nil
		}
		at = list[len(list)-1].TimeUS
	}
	return list, false, nil
}

// jumps marks those of the newest positions of a device that are jumps, or may be.
func (d *Devices) jumps(c cuts, ask ask, device string, newest []Position) error {
	if d.pins.Eligibility.MaxSpeed == 0 {
		return nil
	}
	fixes, first, err := d.next(c, ask, device, backward, math.MaxInt64, len(newest)+1)
	if err != nil {
		return err
	}
	slices.Reverse(fixes)
	r := reach{track: &track{fixes: fixes}, top: d.pins.Eligibility.MaxSpeed, first: first, last: true}
	for i, f := range fixes {
		at := slices.IndexFunc(newest, func(p Position) bool { return p.Time.UnixMicro() == f.TimeUS })
		switch {
		case at < 0 || r.takesPart(i):
		case i == len(fixes)-1:
			newest[at].Excluded = telemetry.Undecided
		default:
			newest[at].Excluded = telemetry.Jump
		}
	}
	return nil
}

// recorded reads the crossings of the fence at the later fix, or at a device time if
// there is none.
func (e *Explanation) recorded(ctx context.Context, tx pgx.Tx, us int64) (err error) {
	later := micros(us)
	if e.Later != nil {
		later = *e.Later
	}
	e.Crossings, err = collect(ctx, tx, func(row pgx.CollectableRow) (x ExplainedCrossing, err error) {
		var c geofence.Crossing
		err = row.Scan(&x.Kind, &x.Version, &x.At, &x.Earlier, &x.Later, &x.Ordinal, &x.Method, &x.Distance, &x.Speed, &x.MaxError,
			&x.Revision, &x.Created, &x.Updated, &c.Latitude, &c.Longitude, &c.Initial, &x.Suppressed)
		c.FenceID, c.Kind, c.Ordinal, c.Suppressed = e.Fence, geofence.CrossingKind(x.Kind), x.Ordinal, x.Suppressed
		c.TimeUS, c.LaterUS, c.EarlierUS = x.At.UnixMicro(), x.Later.UnixMicro(), x.Later.UnixMicro()
		if x.Earlier != nil {
			c.EarlierUS = x.Earlier.UnixMicro()
		}
		if x.Method != nil {
			c.Method = geofence.Method(*x.Method)
		}
		if x.Distance != nil && x.Speed != nil && x.MaxError != nil {
			c.DistanceM, c.SpeedKMH, c.MaxErrorMS = *x.Distance, *x.Speed, *x.MaxError
		}
		x.of = c
		return x, err
	}, `
select kind, fence_version, at, earlier_ts, later_ts, ordinal, method, distance_m, speed, max_error_ms,
  revision, created_at, updated_at, latitude, longitude, initial, suppressed
from processor.timing_records
where device_id = $1
  and fence_id = $2
  and later_ts = $3
order by at, ordinal, kind`, e.Device, e.Fence, later)
	if err != nil || len(e.Crossings) == 0 {
		return err
	}
	var times []time.Time
	for _, x := range e.Crossings {
		if times = append(times, x.Later); x.Earlier != nil {
			times = append(times, *x.Earlier)
		}
	}
	return tx.QueryRow(ctx, `
select exists (
  select
  from unnest($2::timestamptz[]) as t (ts)
  where not exists (select from public.positions p where p.device_id = $1 and p.ts = t.ts and p.ts = any ($2))
)`, pgx.QueryExecModeCacheDescribe, e.Device, times).Scan(&e.Gone)
}

// derive keeps what the fixes say of the later one.
func (e *Explanation) derive(set *geofence.Set, versions []FenceVersion, crossings []geofence.Crossing) {
	if e.Later == nil {
		e.Agree = len(e.Crossings) == 0
		return
	}
	for _, c := range crossings {
		if c.LaterUS != e.Later.UnixMicro() {
			continue
		}
		x := ExplainedCrossing{Kind: string(c.Kind), At: micros(c.TimeUS), Later: micros(c.LaterUS), Ordinal: c.Ordinal, Suppressed: c.Suppressed, Method: new(string(c.Method)), of: c}
		if !c.Initial {
			x.Earlier, x.Distance, x.Speed, x.MaxError = new(micros(c.EarlierUS)), &c.DistanceM, &c.SpeedKMH, &c.MaxErrorMS
		}
		for _, v := range versions {
			if v.Valid == set.Fence(c.Fence).Valid {
				x.Version = v.Version
			}
		}
		e.Derived = append(e.Derived, x)
	}
	e.Agree = len(e.Derived) == len(e.Crossings)
	for i := range e.Derived {
		e.Agree = e.Agree && slices.ContainsFunc(e.Crossings, func(x ExplainedCrossing) bool {
			return x.Version == e.Derived[i].Version && sameCrossing(e.Derived[i].of, x.of)
		})
	}
	for i := range e.Versions {
		v := &e.Versions[i]
		valid := func(at *time.Time) bool {
			return at != nil && (v.From == nil || !at.Before(*v.From)) && (v.To == nil || at.Before(*v.To))
		}
		v.Used = v.Replaced == nil && v.Enabled && (valid(e.Earlier) || valid(e.Later))
	}
}

// around reads the positions from a few fixes before the two to a few behind.
func (d *Devices) around(c cuts, ask ask, e *Explanation, set *geofence.Set, fixes []geofence.Fix, last bool) error {
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	earlier, later := from, to // nothing lies between those
	if e.Earlier != nil {
		earlier = e.Earlier.UnixMicro()
	}
	if e.Later != nil {
		later = e.Later.UnixMicro()
	}
	if n := len(fixes); !last && n > 0 {
		to = fixes[n-1].TimeUS
	}
	takesPart := make(map[int64]bool, len(fixes))
	for i, f := range fixes {
		takesPart[f.TimeUS] = true
		if n := i + explainedAround; f.TimeUS == later && n < len(fixes) {
			to = fixes[n].TimeUS
		}
		if n := i - explainedAround; f.TimeUS == earlier && n >= 0 {
			from = fixes[n].TimeUS
		}
	}
	var between, behind []ExplainedFix
	for _, part := range []struct {
		from, to int64
		order    string
		most     int
		into     *[]ExplainedFix
	}{
		{from, earlier, "desc", explainedRows, &e.Fixes},
		{shifted(earlier, 1), shifted(later, -1), "", explainedRows, &between},
		{later, to, "", explainedRows, &behind},
	} {
		if part.from == math.MinInt64 && part.to == math.MinInt64 || part.from == math.MaxInt64 || part.from > part.to {
			continue
		}
		spans := c.spans(part.from, part.to)
		if part.order != "" {
			slices.Reverse(spans)
		}
		var p Position
		for _, s := range spans {
			if len(*part.into) > part.most {
				break
			}
			if _, err := ask(`
select ts, ingested_at, latitude, longitude, speed, faulty, `+exclusion+`,
  exists (select from processor.conflicts c where c.device_id = $2 and c.ts = positions.ts)
from public.positions
where device_id = $2
  and device_id between $2 and $2
  and ts between $3 and $4
  and (ts < $5 or $5 = 'infinity')
order by ts `+part.order+`
limit $6`, c.args(limitsOf(d.pins.Eligibility), e.Device, timeOf(max(part.from, s.from)), timeOf(part.to), timeOf(s.to), part.most+1),
				[]any{&p.Time, &p.Ingested, &p.Latitude, &p.Longitude, &p.Speed, &p.Faulty, &p.Excluded, &p.Conflict}, func() error {
					*part.into = append(*part.into, ExplainedFix{Position: p})
					return nil
				}); err != nil {
				return err
			}
		}
		if len(*part.into) > part.most {
			e.More, *part.into = true, (*part.into)[:part.most]
		}
	}
	slices.Reverse(e.Fixes)
	e.Fixes = slices.Concat(e.Fixes, between, behind)
	for i := range e.Fixes {
		f := &e.Fixes[i]
		us := f.Time.UnixMicro()
		switch {
		case f.Faulty:
			f.Why = "faulty"
		case f.Excluded != telemetry.Eligible:
			f.Why = string(f.Excluded)
		case !takesPart[us]:
			f.Why = string(telemetry.Jump)
		case us == earlier:
			f.Role = "earlier"
		case us == later:
			f.Role = "later"
		}
		f.Inside = len(set.At(nil, geofence.Fix{TimeUS: us, Latitude: f.Latitude, Longitude: f.Longitude})) > 0
	}
	for i := len(e.Fixes) - 1; i >= 0 && last && to == math.MaxInt64; i-- {
		if why := e.Fixes[i].Why; why == string(telemetry.Jump) {
			e.Fixes[i].Why = string(telemetry.Undecided)
		} else if why != "" {
			continue // the newest that could take part may be before it
		}
		break
	}
	return nil
}

// shifted is a device time so many microseconds further; the ends of time stay.
func shifted(us, by int64) int64 {
	if us == math.MinInt64 || us == math.MaxInt64 {
		return us
	}
	return us + by
}

// context reads what is known of the device times shown besides positions.
func (d *Devices) context(ctx context.Context, tx pgx.Tx, e *Explanation) error {
	if err := tx.QueryRow(ctx, `select min(changed_at) from processor.timing_changes where device_id = $1`, e.Device).Scan(&e.ChangesSince); err != nil {
		return err
	}
	from, to := e.At, e.At
	if n := len(e.Fixes); n > 0 {
		from, to = e.Fixes[0].Time, e.Fixes[n-1].Time
	}
	var err error
	if e.Conflicts, err = collect(ctx, tx, func(row pgx.CollectableRow) (r ConflictRow, err error) {
		err = row.Scan(&r.Time, &r.Entry, &r.Ingested, &r.Differs)
		return r, err
	}, `
select ts, entry_id, ingested_at, differs
from processor.conflicts
where device_id = $1
  and ts between $2 and $3
order by ts, id
limit 100`, e.Device, from, to); err != nil {
		return err
	}
	if e.Earlier != nil {
		from = *e.Earlier
	}
	if e.Later != nil {
		to = *e.Later
	}
	e.Changes, err = collect(ctx, tx, func(row pgx.CollectableRow) (r ChangeRow, err error) {
		err = row.Scan(&r.Number, &r.Change, &r.Kind, &r.Later, &r.Old, &r.New, &r.Revision, &r.At)
		return r, err
	}, `
select number, change, coalesce(crossing, old) ->> 'kind', (coalesce(crossing, old) ->> 'later_ts')::timestamptz,
  (old ->> 'at')::timestamptz, (crossing ->> 'at')::timestamptz, (crossing ->> 'revision')::int, changed_at
from processor.timing_changes
where device_id = $1
  and coalesce(crossing, old) ->> 'fence_id' = $2
  and ((crossing ->> 'at')::timestamptz between $3 and $4 or (old ->> 'at')::timestamptz between $3 and $4)
order by tx, id
limit 100`, e.Device, e.Fence, from, to)
	return err
}
