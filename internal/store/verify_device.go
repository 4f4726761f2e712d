package store

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/recheck"
)

// Verification compares the timing records of a device with what one pass over
// its positions yields.
type Verification struct {
	Device    string       `json:"device_id"`
	Fences    int          `json:"fences"`    // that were ever valid; without any there is nothing to compare
	Positions int64        `json:"positions"` // eligible ones
	Crossings int64        `json:"crossings"` // correct ones
	Missing   []Difference `json:"missing"`
	Different []Difference `json:"different"`
	Extra     []Difference `json:"extra"`
	// Open is the number of unfinished requests that concern the device: one of
	// them may remove a difference.
	Open int64 `json:"open_requests"`
	// BadFences are invalid fences, which are skipped everywhere.
	BadFences []string `json:"bad_fences"`
	// Skipped are fences that are valid and that a verification cannot derive in some
	// version: nothing recorded of them is compared, and the verification is partial.
	Skipped []SkippedFence `json:"skipped_fences"`
}

// SkippedFence is a fence that is not verified.
type SkippedFence struct {
	Fence    string `json:"fence_id"`
	Reason   string `json:"reason"`   // of its first such version
	Recorded int64  `json:"recorded"` // crossings that are not compared
}

// verifyMost bounds the positions that a verification holds in memory, 32 bytes each: it
// reads all within one snapshot and derives when that is over, which may take long.
const verifyMost = 10_000_000

// Good reports whether there is no difference in what was compared.
func (v *Verification) Good() bool { return len(v.Missing)+len(v.Different)+len(v.Extra) == 0 }

// Difference is one incorrect crossing. Want is null for one that must not
// exist, Got for one that is missing.
type Difference struct {
	Fence   string     `json:"fence_id"`
	Kind    string     `json:"kind"`
	Later   time.Time  `json:"later_ts"`
	Ordinal int        `json:"ordinal"`
	Want    *time.Time `json:"want_at"`
	Got     *time.Time `json:"got_at"`
}

// Verify derives the crossings of a device from its positions and the fences, as of one
// moment, and compares them with those recorded. What it derives comes from
// internal/recheck, which knows nothing of geofence.Set; which fences are invalid is
// asked of that, and told.
func (d *Devices) Verify(ctx context.Context, device string) (Verification, error) {
	v := Verification{Device: device, Missing: []Difference{}, Different: []Difference{}, Extra: []Difference{}, BadFences: []string{}, Skipped: []SkippedFence{}}
	if d.pins.Shards == 0 {
		return v, errNeverStarted
	}
	c, err := d.heaps.now(ctx)
	if err != nil {
		return v, failure("verify a device", err)
	}
	var deriver *recheck.Deriver
	var recorded []recheck.Crossing
	var fixes []recheck.Fix
	stored := make(map[int64]bool) // the fixes that crossings refer to
	err = pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		// Positions of many heaps are read by other sessions, while this one keeps their snapshot.
		if _, err := tx.Exec(ctx, "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0"); err != nil {
			return err
		}
		if deriver, err = d.deriver(ctx, tx, &v); err != nil {
			return err
		}
		recorded, err = collect(ctx, tx, scanRecorded, `
select `+crossingColumns+`, fence_version
from processor.timing_records
where device_id = $1`, device)
		if err != nil {
			return err
		}
		for i := range v.Skipped {
			for _, c := range recorded {
				if c.FenceID == v.Skipped[i].Fence {
					v.Skipped[i].Recorded++
				}
			}
		}
		for i := range recorded {
			stored[recorded[i].EarlierUS], stored[recorded[i].LaterUS] = false, false
		}
		if fixes, err = d.fixes(ctx, tx, c, device, stored); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
select count(*)
from processor.requests
where stream = $1
  and group_name = $2
  and state in ('waiting', 'running')
  and kind = 'recompute'
  and (device_id = $3 or device_id is null)`, d.scope.Stream, d.scope.Group, device).Scan(&v.Open)
	})
	if err != nil {
		return v, failure("verify a device", err)
	}
	// After the transaction: it may take longer than a snapshot should be held.
	v.Positions = int64(len(fixes))
	should, is := deriver.DeriveAfter(fixes, recorded, func(us int64) bool { return stored[us] })
	v.compare(v.withoutSkipped(should), v.withoutSkipped(is))
	return v, nil
}

// deriver has the fences in force, without those that are invalid.
func (d *Devices) deriver(ctx context.Context, tx pgx.Tx, v *Verification) (*recheck.Deriver, error) {
	rows, err := collect(ctx, tx, scanFence, fencesInForce)
	if err != nil {
		return nil, err
	}
	v.Fences = len(rows)
	list := make([]geofence.Fence, len(rows))
	for i := range rows {
		list[i] = rows[i].Fence
	}
	_, bad := geofence.NewSet(list)
	skipped := make(map[int]bool, len(bad))
	for _, b := range bad {
		skipped[b.Index] = true
		v.BadFences = append(v.BadFences, b.Error())
	}
	var fences []recheck.Fence
	for i := range rows {
		if f := &rows[i]; !skipped[i] {
			fences = append(fences, recheck.Fence{
				ID: f.ID, Version: f.Version, Kind: string(f.Kind), Geometry: f.Geometry, RadiusM: f.RadiusM, WidthM: f.WidthM,
				ExitMarginM: f.ExitMarginM, MinDwellS: f.MinDwellS, MinIntervalS: f.MinIntervalS,
				FromUS: f.Valid.FromUS, ToUS: f.Valid.ToUS, Disabled: !f.Enabled,
			})
		}
	}
	deriver, passed := d.draw(fences, d.rules())
	for _, p := range passed {
		if !v.skips(p.FenceID) {
			v.Skipped = append(v.Skipped, SkippedFence{Fence: p.FenceID, Reason: p.Err.Error()})
		}
	}
	return deriver, nil
}

// withoutSkipped leaves out the crossings of fences that are skipped in any version.
func (v *Verification) withoutSkipped(list []recheck.Crossing) []recheck.Crossing {
	return slices.DeleteFunc(list, func(c recheck.Crossing) bool { return v.skips(c.FenceID) })
}

func (v *Verification) skips(fence string) bool {
	return slices.ContainsFunc(v.Skipped, func(s SkippedFence) bool { return s.Fence == fence })
}

func (d *Devices) rules() recheck.Rules {
	e := d.pins.Eligibility
	return recheck.Rules{MaxFutureSkew: e.MaxFutureSkew, MaxPast: e.MaxPast, MinSatellites: e.MinSatellites, MaxSpeed: e.MaxSpeed, MaxCrossingGap: d.pins.MaxGap}
}

// fixes reads the positions of a device and returns those that take part. Of the device
// times in stored it marks those at which there is a position.
func (d *Devices) fixes(ctx context.Context, tx pgx.Tx, c cuts, device string, stored map[int64]bool) (fixes []recheck.Fix, err error) {
	ask, err := asOf(ctx, d.pool, tx, c)
	if err != nil {
		return nil, err
	}
	rules := d.rules()
	var p recheck.Position
	var ts, ingested time.Time
	for _, s := range c.spans(math.MinInt64, math.MaxInt64) {
		if _, err := ask(`
select ts, ingested_at, latitude, longitude, speed, satellites, faulty
from public.positions
where device_id = $1
  and ts >= $2
  and ts < $3
order by ts`, c.args(device, timeOf(s.from), timeOf(s.to)), []any{&ts, &ingested, &p.Latitude, &p.Longitude, &p.SpeedKMH, &p.Satellites, &p.Faulty}, func() error {
			p.TimeUS, p.StreamUS = ts.UnixMicro(), ingested.UnixMicro()
			if _, asked := stored[p.TimeUS]; asked {
				stored[p.TimeUS] = true
			}
			if !rules.Eligible(&p) {
				return nil
			}
			if fixes = append(fixes, p.Fix()); len(fixes) > d.verifyMost {
				return fmt.Errorf("more than %d positions of device %s take part, too many to verify at once: "+
					"processor device recompute derives them in steps and says what it changed", d.verifyMost, device)
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return fixes, nil
}

func scanRecorded(row pgx.CollectableRow) (c recheck.Crossing, err error) {
	var device string
	var at, earlier, later time.Time
	err = row.Scan(&device, &c.FenceID, &c.Kind, &at, &earlier, &later, &c.Latitude, &c.Longitude, &c.Ordinal, &c.Initial, &c.Suppressed,
		&c.Method, &c.DistanceM, &c.SpeedKMH, &c.MaxErrorMS, &c.FenceVersion)
	c.TimeUS, c.EarlierUS, c.LaterUS = at.UnixMicro(), earlier.UnixMicro(), later.UnixMicro()
	return c, err
}

func (v *Verification) compare(should, recorded []recheck.Crossing) {
	type key struct {
		fence, kind string
		laterUS     int64
		ordinal     int
	}
	keyOf := func(c *recheck.Crossing) key { return key{c.FenceID, c.Kind, c.LaterUS, c.Ordinal} }
	is := make(map[key]*recheck.Crossing, len(recorded))
	for i := range recorded {
		is[keyOf(&recorded[i])] = &recorded[i]
	}
	difference := func(of, want, got *recheck.Crossing) Difference {
		diff := Difference{Fence: of.FenceID, Kind: of.Kind, Later: micros(of.LaterUS), Ordinal: of.Ordinal}
		if want != nil {
			diff.Want = new(micros(want.TimeUS))
		}
		if got != nil {
			diff.Got = new(micros(got.TimeUS))
		}
		return diff
	}
	for i := range should {
		want := &should[i]
		got := is[keyOf(want)]
		delete(is, keyOf(want))
		switch {
		case got == nil:
			v.Missing = append(v.Missing, difference(want, want, nil))
		case !sameAsDerived(*want, *got):
			v.Different = append(v.Different, difference(want, want, got))
		default:
			v.Crossings++
		}
	}
	for _, got := range is {
		v.Extra = append(v.Extra, difference(got, nil, got))
	}
	slices.SortFunc(v.Extra, func(a, b Difference) int {
		return cmp.Or(a.Later.Compare(b.Later), cmp.Compare(a.Fence, b.Fence), cmp.Compare(a.Ordinal, b.Ordinal))
	})
}

// sameAsDerived reports whether a row says what is derived. How, only if it says that:
// one of an earlier version does not.
func sameAsDerived(want, got recheck.Crossing) bool {
	if got.Method == "" {
		got.Method, got.DistanceM, got.SpeedKMH, got.MaxErrorMS = want.Method, want.DistanceM, want.SpeedKMH, want.MaxErrorMS
	}
	return recheck.Same(want, got)
}
