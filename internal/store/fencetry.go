package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/geofence"
)

// FenceTrial is what fences would have recorded over stored positions, as a
// difference to what is recorded of fences with their IDs.
type FenceTrial struct {
	Since     time.Time `json:"since"`
	Until     time.Time `json:"until"`
	Positions int64     `json:"positions"` // eligible ones
	Devices   int       `json:"devices"`   // that have any
	FenceTrialCount
	Fences []FenceTrialOf `json:"fences"` // those with a difference
	// Examples are the first differences, by device time. Want is what these fences
	// would record, Got what is recorded.
	Examples []TrialDifference `json:"examples"`
}

// FenceTrialCount counts crossings.
type FenceTrialCount struct {
	Recorded int64 `json:"recorded"`
	Would    int64 `json:"would_record"`
	Added    int64 `json:"added"`
	Removed  int64 `json:"removed"`
	Changed  int64 `json:"changed"` // of another time or place
	// Kept are recorded crossings at fixes that are not stored any more, which no change
	// of fences touches, and those of fences with held borders on which fixes beyond the
	// window decide.
	Kept int64 `json:"kept"`
}

// FenceTrialOf counts the crossings of one fence.
type FenceTrialOf struct {
	Fence string `json:"fence_id"`
	FenceTrialCount
}

// TrialDifference is one crossing that would be another.
type TrialDifference struct {
	Device string `json:"device_id"`
	Difference
}

// TrialWindow says over which positions fences are tried.
type TrialWindow struct {
	Since, Until time.Time // Until itself not included
	Device       string    // "" is all

	rows int // of a slice; 0 is as many as is good
}

// Check returns why nothing can be tried over the window, or nil.
func (w TrialWindow) Check() error {
	if w.Since.Before(w.Until) {
		return nil
	}
	return fmt.Errorf("the window begins at %s, not before its end at %s: exchange --since and --until",
		w.Since.Format(time.RFC3339), w.Until.Format(time.RFC3339))
}

// trialExamples bounds the examples of a trial.
const trialExamples = 100

// TryFences compares what fences would have recorded with what is recorded, as of
// one moment, and changes nothing. In memory are the positions of a few slices of device
// time, the crossings at them, and two fixes for each device.
func (d *Devices) TryFences(ctx context.Context, fences []geofence.Fence, w TrialWindow, progress func(positions int64, at time.Time)) (FenceTrial, error) {
	out := FenceTrial{Since: w.Since, Until: w.Until, Fences: []FenceTrialOf{}, Examples: []TrialDifference{}}
	switch {
	case d.pins.Shards == 0:
		return out, errNeverStarted
	case len(fences) == 0:
		return out, errors.New("there is no valid fence to try")
	case d.pins.Eligibility.MaxSpeed > 0:
		// Which fixes are jumps is known one fix later than it is looked at here.
		return out, errors.New("fences cannot be tried while the fleet has MAX_SPEED set, since jumps would be counted: import them and compare what is recorded")
	}
	if err := w.Check(); err != nil {
		return out, err
	}
	c, err := d.heaps.now(ctx)
	if err != nil {
		return out, failure("try fences", err)
	}
	err = pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0"); err != nil {
			return err
		}
		var snapshot string
		if err := tx.QueryRow(ctx, "select pg_export_snapshot()").Scan(&snapshot); err != nil {
			return err
		}
		set, ids, err := imported(ctx, tx, fences)
		if err != nil {
			return err
		}
		t := &trial{
			out: &out, set: set, maxGap: d.pins.MaxGap, numbers: make(map[string]int32), counts: make(map[string]*FenceTrialCount),
		}
		if err := t.open(ctx, tx, w, ids); err != nil {
			return err
		}
		r := newTrialReader(d.pool, snapshot, c, w, d.pins.Eligibility)
		if err := r.each(ctx, func(s *trialSlice) error {
			before := t.out.Positions / trialStep
			if err := t.take(s); err != nil {
				return err
			}
			if progress != nil && t.out.Positions/trialStep > before {
				progress(t.out.Positions, micros(s.to))
			}
			return nil
		}); err != nil {
			return err
		}
		if err := t.recorded(&trialSlice{to: math.MaxInt64}); err != nil { // where there are no positions any more
			return err
		}
		return d.tryFirst(ctx, c, t, w)
	})
	return out, failure("try fences", err)
}

// trialStep is how many positions are between two reports of progress, at least.
const trialStep = 250_000

// imported returns the set of the fences as an import would leave them: outside of
// their spans the versions in force stay.
func imported(ctx context.Context, tx pgx.Tx, fences []geofence.Fence) (*geofence.Set, []string, error) {
	rows, err := collect(ctx, tx, scanFence, fencesInForce)
	if err != nil {
		return nil, nil, err
	}
	given := make(map[string][]geofence.Span)
	var ids []string
	for i := range fences {
		if given[fences[i].ID] == nil {
			ids = append(ids, fences[i].ID)
		}
		given[fences[i].ID] = append(given[fences[i].ID], fences[i].Valid)
	}
	all := slices.Clone(fences)
	for i := range rows {
		spans := given[rows[i].ID]
		if spans == nil {
			continue
		}
		rest := []geofence.Fence{rows[i].Fence}
		for _, s := range spans {
			rest = without(rest, s)
		}
		all = append(all, rest...)
	}
	set, _ := geofence.NewSet(all) // what is invalid in force records nothing today
	return set, ids, nil
}

// trial is a trial in progress.
type trial struct {
	out     *FenceTrial
	set     *geofence.Set
	maxGap  time.Duration
	numbers map[string]int32 // of devices
	devices []trialDevice
	counts  map[string]*FenceTrialCount
	buf     []geofence.Crossing

	next func() (deviceCrossing, bool, error) // recorded crossings by device time
	over *deviceCrossing                      // read, and of a later slice
	got  []gotCrossing                        // at the fixes of the slice
}

// gotCrossing is a recorded crossing at a fix of a slice.
type gotCrossing struct {
	row int
	geofence.Crossing
}

type trialDevice struct {
	name        string
	first, last geofence.Fix
	recorded    []geofence.Crossing // at the first fix
	held        *trialHeld          // nil without fences with held borders
}

// trialHeld is what counts of fences with held borders: whether something does is known
// later, so it is compared at the end. Whether the device has a fix before the window is
// known then, too: one walk takes it that it has, one that it has none.
type trialHeld struct {
	walks    [2]*geofence.Walk
	want     [2][]geofence.Crossing
	recorded []geofence.Crossing
}

func (h *trialHeld) next(fix geofence.Fix) {
	for i, w := range h.walks {
		h.want[i] = w.Next(h.want[i], fix)
	}
}

type deviceCrossing struct {
	device string
	geofence.Crossing
}

// open prepares to read what is recorded.
func (t *trial) open(ctx context.Context, tx pgx.Tx, w TrialWindow, ids []string) error {
	if _, err := tx.Exec(ctx, `
declare recorded no scroll cursor for
select `+crossingColumns+`
from processor.timing_records
where fence_id = any ($1)
  and later_ts >= $2
  and later_ts < $3
  and ($4 = '' or device_id = $4)
order by later_ts`, ids, w.Since, w.Until, w.Device); err != nil {
		return err
	}
	var page []deviceCrossing
	t.next = func() (deviceCrossing, bool, error) {
		if len(page) == 0 {
			rows, err := collect(ctx, tx, scanCrossing, "fetch 10000 from recorded")
			if err != nil || len(rows) == 0 {
				return deviceCrossing{}, false, err
			}
			for i := range rows {
				page = append(page, deviceCrossing{rows[i].DeviceID, rows[i].Crossing})
			}
		}
		c := page[0]
		page = page[1:]
		return c, true, nil
	}
	return nil
}

// take follows the devices through the next slice.
func (t *trial) take(s *trialSlice) error {
	if err := t.recorded(s); err != nil {
		return err
	}
	t.out.Positions += int64(len(s.rows))
	got := t.got
	for of := range s.devices {
		name := s.names[of]
		rows := s.of(of)
		if len(rows) == 0 {
			continue
		}
		n, known := t.numbers[name]
		if !known {
			n = int32(len(t.devices))
			t.numbers[name] = n
			t.devices = append(t.devices, trialDevice{name: name})
			t.out.Devices++
		}
		device := &t.devices[n]
		begin := int(s.devices[of])
		for i := range rows {
			fix := rows[i].fix
			k := 0
			for k < len(got) && got[k].row == begin+i {
				k++
			}
			first := !known && i == 0
			if first {
				device.first, device.last = fix, fix
				if t.set.Held() {
					device.held = &trialHeld{walks: [2]*geofence.Walk{t.set.WalkHeld(t.maxGap, false), t.set.WalkHeld(t.maxGap, true)}}
				}
			}
			if device.held != nil {
				device.held.next(fix)
			}
			t.fix(device, fix, first, got[:k])
			got = got[k:]
		}
	}
	return nil
}

// fix compares the crossings at a fix.
func (t *trial) fix(device *trialDevice, fix geofence.Fix, first bool, got []gotCrossing) {
	if t.buf = t.buf[:0]; !first {
		t.buf = t.set.Crossings(t.buf, device.last, fix, t.maxGap)
		device.last = fix
		if device.held != nil {
			t.buf = slices.DeleteFunc(t.buf, func(c geofence.Crossing) bool { return t.set.HeldID(c.FenceID) })
		}
	}
	if len(got) == 0 {
		for i := range t.buf {
			t.differ(device.name, &t.buf[i], nil)
		}
		return
	}
	recorded := make(map[crossingKey]geofence.Crossing, len(got))
	for _, r := range got {
		switch {
		case device.held != nil && t.set.HeldID(r.FenceID):
			device.held.recorded = append(device.held.recorded, r.Crossing)
		case first:
			device.recorded = append(device.recorded, r.Crossing)
		default:
			recorded[keyOf(&r.Crossing)] = r.Crossing
		}
	}
	pairUp(t.buf, recorded, func(_ crossingKey, want, got *geofence.Crossing) { t.differ(device.name, want, got) })
}

// recorded reads what is recorded up to the end of a slice, and sorts that by its fixes.
func (t *trial) recorded(s *trialSlice) error {
	t.got = t.got[:0]
	for {
		c := t.over
		if t.over = nil; c == nil {
			read, more, err := t.next()
			if err != nil {
				return err
			}
			if !more {
				break
			}
			c = &read
		}
		if c.LaterUS >= s.to {
			t.over = c
			break
		}
		if row := s.row(c.device, c.LaterUS); row >= 0 {
			t.got = append(t.got, gotCrossing{row, c.Crossing})
		} else {
			t.count(c.FenceID, func(n *FenceTrialCount) { n.Recorded++; n.Kept++ })
		}
	}
	slices.SortStableFunc(t.got, func(a, b gotCrossing) int { return cmp.Compare(a.row, b.row) })
	return nil
}

// tryFirst compares the crossings at the first fix of each device, which depend on
// the fix before the window.
func (d *Devices) tryFirst(ctx context.Context, c cuts, t *trial, w TrialWindow) error {
	var list []seek
	names := slices.Sorted(maps.Keys(t.numbers))
	before := make(map[int]geofence.Fix)
	const page = 1000
	for begin := 0; begin < len(names); begin += page {
		list = list[:0]
		for i, device := range names[begin:min(len(names), begin+page)] {
			list = append(list, seek{device: device, at: w.Since.UnixMicro(), n: begin + i})
		}
		if err := c.nearest(slices.Clone(list), c.heap(w.Since.UnixMicro()), backward, 1, d.pins.Eligibility, byItself(ctx, d.pool, trialTimeout),
			func(n int, f geofence.Fix) { before[n] = f }); err != nil {
			return err
		}
	}
	for n, device := range names {
		of := &t.devices[t.numbers[device]]
		if prev, ok := before[n]; ok {
			t.buf = t.set.Crossings(t.buf[:0], prev, of.first, t.maxGap)
		} else {
			t.buf = t.set.Initial(t.buf[:0], of.first)
		}
		recorded := make(map[crossingKey]geofence.Crossing, len(of.recorded))
		for _, r := range of.recorded {
			recorded[keyOf(&r)] = r
		}
		t.buf = slices.DeleteFunc(t.buf, func(c geofence.Crossing) bool { return t.set.HeldID(c.FenceID) })
		if of.held != nil {
			i := 0
			if _, ok := before[n]; !ok {
				i = 1
			}
			walk := of.held.walks[i]
			for _, c := range of.held.want[i] {
				if walk.Complete(c.FenceID, c.LaterUS) {
					t.buf = append(t.buf, c)
				}
			}
			for _, r := range of.held.recorded {
				if walk.Complete(r.FenceID, r.LaterUS) {
					recorded[keyOf(&r)] = r
				} else { // what is not read decides
					t.count(r.FenceID, func(n *FenceTrialCount) { n.Recorded++; n.Kept++ })
				}
			}
		}
		pairUp(t.buf, recorded, func(_ crossingKey, want, got *geofence.Crossing) { t.differ(device, want, got) })
	}
	t.finish()
	return nil
}

// trialTimeout bounds the look-up of the fixes before a window.
const trialTimeout = time.Minute

func (t *trial) count(fence string, add func(*FenceTrialCount)) {
	if t.counts[fence] == nil {
		t.counts[fence] = &FenceTrialCount{}
	}
	add(t.counts[fence])
	add(&t.out.FenceTrialCount)
}

// differ counts a pair of crossings, one of which may be missing.
func (t *trial) differ(device string, want, got *geofence.Crossing) {
	of := cmp.Or(want, got)
	same := false
	t.count(of.FenceID, func(n *FenceTrialCount) {
		if want != nil {
			n.Would++
		}
		if got != nil {
			n.Recorded++
		}
		switch {
		case want == nil:
			n.Removed++
		case got == nil:
			n.Added++
		default:
			if sameCrossing(*want, *got) {
				same = true
				return
			}
			n.Changed++
		}
	})
	full := len(t.out.Examples) == trialExamples
	if same || full && t.out.Examples[trialExamples-1].Later.Before(micros(of.LaterUS)) {
		return
	}
	e := TrialDifference{Device: device, Difference: Difference{Fence: of.FenceID, Kind: string(of.Kind), Later: micros(of.LaterUS), Ordinal: of.Ordinal}}
	if want != nil {
		e.Want = new(micros(want.TimeUS))
	}
	if got != nil {
		e.Got = new(micros(got.TimeUS))
	}
	at, _ := slices.BinarySearchFunc(t.out.Examples, e, TrialDifference.compare)
	if t.out.Examples = slices.Insert(t.out.Examples, at, e); full {
		t.out.Examples = t.out.Examples[:trialExamples]
	}
}

func (d TrialDifference) compare(other TrialDifference) int {
	return cmp.Or(d.Later.Compare(other.Later), cmp.Compare(d.Device, other.Device), cmp.Compare(d.Fence, other.Fence),
		cmp.Compare(d.Ordinal, other.Ordinal), cmp.Compare(d.Kind, other.Kind))
}

// finish lists the fences with differences.
func (t *trial) finish() {
	for id, n := range t.counts {
		if n.Added+n.Removed+n.Changed > 0 {
			t.out.Fences = append(t.out.Fences, FenceTrialOf{Fence: id, FenceTrialCount: *n})
		}
	}
	slices.SortFunc(t.out.Fences, func(a, b FenceTrialOf) int { return cmp.Compare(a.Fence, b.Fence) })
}
