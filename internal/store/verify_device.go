package store

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/geofence"
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
}

// Good reports whether there is no difference.
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

// Verify derives the crossings of a device from its positions and the fences in
// one pass, as of one moment, and compares them with those recorded.
func (d *Devices) Verify(ctx context.Context, device string) (Verification, error) {
	v := Verification{Device: device, Missing: []Difference{}, Different: []Difference{}, Extra: []Difference{}, BadFences: []string{}}
	if d.pins.Shards == 0 {
		return v, errNeverStarted
	}
	c, err := d.heaps.now(ctx)
	if err != nil {
		return v, failure("verify a device", err)
	}
	err = pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local statement_timeout = 0"); err != nil {
			return err
		}
		set, err := d.fences(ctx, tx, &v)
		if err != nil {
			return err
		}
		is, err := collect(ctx, tx, scanCrossing, `
select `+crossingColumns+`
from processor.timing_records
where device_id = $1
order by later_ts, at, fence_id, ordinal`, device)
		if err != nil {
			return err
		}
		all := make([]geofence.Crossing, len(is))
		for i := range is {
			all[i] = is[i].Crossing
		}
		g, err := goneOf(inTx(ctx, tx), device, all)
		if err != nil {
			return err
		}
		should, err := d.pass(ctx, tx, c, device, set, g, &v)
		if err != nil {
			return err
		}
		recorded := make(map[crossingKey]geofence.Crossing, len(is))
		for i := range all {
			if !g.holds(&all[i]) {
				recorded[keyOf(&all[i])] = all[i]
			}
		}
		v.compare(should, recorded)
		return tx.QueryRow(ctx, `
select count(*)
from processor.requests
where stream = $1
  and group_name = $2
  and state in ('waiting', 'running')
  and kind = 'recompute'
  and (device_id = $3 or device_id is null)`, d.scope.Stream, d.scope.Group, device).Scan(&v.Open)
	})
	return v, failure("verify a device", err)
}

func (d *Devices) fences(ctx context.Context, tx pgx.Tx, v *Verification) (*geofence.Set, error) {
	rows, err := collect(ctx, tx, scanFence, fencesInForce)
	if err != nil {
		return nil, err
	}
	list := make([]geofence.Fence, len(rows))
	for i := range rows {
		list[i] = rows[i].Fence
	}
	v.Fences = len(list)
	set, bad := geofence.NewSet(list)
	for _, b := range bad {
		v.BadFences = append(v.BadFences, b.Error())
	}
	return set, nil
}

// pass follows the device from its first position to its last.
func (d *Devices) pass(ctx context.Context, tx pgx.Tx, c cuts, device string, set *geofence.Set, g *gone, v *Verification) (crossings []geofence.Crossing, err error) {
	var next geofence.Fix
	var ts time.Time
	var speed float32
	// What a fix is shows only with the one that follows it.
	var held geofence.Fix
	certain := false // it takes part, whatever follows
	walk := set.Walk(d.pins.MaxGap)
	before := int64(math.MinInt64)
	count := func(f geofence.Fix) {
		if before == math.MinInt64 {
			walk.Inside(g.inside(f.TimeUS))
		}
		crossings = g.settle(walk.Next(crossings, f), before, f, set)
		before = f.TimeUS
	}
	ask, err := asOf(ctx, d.pool, tx, c)
	if err != nil {
		return nil, err
	}
	for _, s := range c.spans(math.MinInt64, math.MaxInt64) {
		if _, err := ask(`
select ts, latitude, longitude, speed
from public.positions
where device_id = $2
  and ts >= $3
  and ts < $4
  and `+eligible+`
order by ts`, c.args(limitsOf(d.pins.Eligibility), device, timeOf(s.from), timeOf(s.to)), []any{&ts, &next.Latitude, &next.Longitude, &speed}, func() error {
			next.TimeUS, next.Speed = ts.UnixMicro(), geofence.WholeKMH(speed)
			top := d.pins.Eligibility.MaxSpeed
			plausible := top == 0 || v.Positions > 0 && geofence.Plausible(held, next, top)
			if v.Positions++; v.Positions == 1 {
				plausible = true
			} else if certain || plausible {
				count(held)
			}
			held, certain = next, plausible
			return nil
		}); err != nil {
			return nil, err
		}
	}
	if certain {
		count(held)
	}
	return crossings, nil
}

func (v *Verification) compare(should []geofence.Crossing, recorded map[crossingKey]geofence.Crossing) {
	difference := func(of, want, got *geofence.Crossing) Difference {
		diff := Difference{Fence: of.FenceID, Kind: string(of.Kind), Later: micros(of.LaterUS), Ordinal: of.Ordinal}
		if want != nil {
			diff.Want = new(micros(want.TimeUS))
		}
		if got != nil {
			diff.Got = new(micros(got.TimeUS))
		}
		return diff
	}
	pairUp(should, recorded, func(_ crossingKey, want, got *geofence.Crossing) {
		switch {
		case want == nil:
			v.Extra = append(v.Extra, difference(got, nil, got))
		case got == nil:
			v.Missing = append(v.Missing, difference(want, want, nil))
		default:
			if sameCrossing(*want, *got) {
				v.Crossings++
			} else {
				v.Different = append(v.Different, difference(want, want, got))
			}
		}
	})
	slices.SortFunc(v.Extra, func(a, b Difference) int {
		return cmp.Or(a.Later.Compare(b.Later), cmp.Compare(a.Fence, b.Fence), cmp.Compare(a.Ordinal, b.Ordinal))
	})
}
