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
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
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
	// Kept are recorded crossings between fixes of which one is not stored any more, which
	// no change of fences touches, and those of fences with held borders on which fixes
	// beyond the window decide.
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
// time, the crossings at them, and a fix for each device. It has a pool of its own: its
// transaction waits for sessions, and others that wait for it may have all of one pool.
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
	pc := d.pool.Config()
	pc.MaxConns = 2 + trialReaders
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return out, failure("try fences", err)
	}
	defer pool.Close()
	err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
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
			out: &out, set: set, ids: ids, maxGap: d.pins.MaxGap, rules: d.pins.Eligibility, cuts: c,
			numbers: make(map[string]int32), counts: make(map[string]*FenceTrialCount),
		}
		if t.look, err = asOf(ctx, pool, tx, c); err != nil {
			return err
		}
		if err := t.open(ctx, tx, w); err != nil {
			return err
		}
		r := newTrialReader(pool, snapshot, c, w, d.pins.Eligibility)
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
		if err := t.recorded(&trialSlice{from: math.MaxInt64, to: math.MaxInt64}); err != nil { // where there are no positions any more
			return err
		}
		t.finish()
		return nil
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
	ids     []string
	maxGap  time.Duration
	rules   telemetry.Eligibility
	cuts    cuts
	look    ask
	numbers map[string]int32 // of devices
	devices []trialDevice
	counts  map[string]*FenceTrialCount
	buf     []geofence.Crossing

	next func() (deviceCrossing, bool, error) // recorded crossings by device time
	over *deviceCrossing                      // read, and of a later slice
	got  []gotCrossing                        // of the slice
}

// gotCrossing is a recorded crossing of a slice.
type gotCrossing struct {
	device int32
	row    int  // of its later fix, or of the next one of the device in the slice, or how many there are
	at     bool // the row is that of its later fix
	gone   bool // it cannot be derived again: of its fixes one is not stored
	geofence.Crossing
}

type trialDevice struct {
	name   string
	looked bool // for where it was before the window
	begun  bool // there is a last fix
	last   geofence.Fix
	was    map[string]pastCrossing // since the last fix, by fence
	passed []geofence.Crossing     // the same, passages of gates
	held   *trialHeld              // nil without fences with held borders, and before the first fix
}

// trialHeld is what counts of fences with held borders: whether something does is known
// later, so it is compared at the end.
type trialHeld struct {
	walk     *geofence.Walk
	want     []geofence.Crossing
	recorded []geofence.Crossing
	stays    map[fenceAt]struct{} // what is recorded there is not judged
}

type deviceCrossing struct {
	device string
	geofence.Crossing
}

// open prepares to read what is recorded.
func (t *trial) open(ctx context.Context, tx pgx.Tx, w TrialWindow) error {
	if _, err := tx.Exec(ctx, `
declare recorded no scroll cursor for
select `+crossingColumns+`
from processor.timing_records
where fence_id = any ($1)
  and later_ts >= $2
  and later_ts < $3
  and ($4 = '' or device_id = $4)
order by later_ts`, t.ids, w.Since, w.Until, w.Device); err != nil {
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

func (t *trial) number(device string) int32 {
	n, known := t.numbers[device]
	if !known {
		n = int32(len(t.devices))
		t.numbers[device] = n
		t.devices = append(t.devices, trialDevice{name: device})
	}
	return n
}

// take follows the devices through the next slice.
func (t *trial) take(s *trialSlice) error {
	if err := t.begin(s); err != nil {
		return err
	}
	if err := t.recorded(s); err != nil {
		return err
	}
	t.out.Positions += int64(len(s.rows))
	got := t.got
	for of, name := range s.names {
		device := &t.devices[t.numbers[name]]
		begin := int(s.devices[of])
		for i, row := range s.of(of) {
			k := 0
			for k < len(got) && got[k].row == begin+i {
				k++
			}
			t.fix(device, row.fix, got[:k])
			got = got[k:]
		}
	}
	for i := range got { // behind the last fix of the device
		t.past(&got[i])
	}
	return nil
}

// begin looks for where the devices were before the window that come for the first time.
func (t *trial) begin(s *trialSlice) error {
	const page = 1000
	since := t.out.Since.UnixMicro()
	var fresh []seek
	for _, name := range s.names {
		n := t.number(name)
		if !t.devices[n].looked {
			t.devices[n].looked = true
			t.out.Devices++
			fresh = append(fresh, seek{device: name, at: since, n: int(n)})
		}
	}
	for part := range slices.Chunk(fresh, page) {
		if err := t.cuts.nearest(part, t.cuts.heap(since), backward, 1, t.rules, t.look, func(n int, f geofence.Fix) {
			t.devices[n].begun, t.devices[n].last = true, f
		}); err != nil {
			return err
		}
		if err := t.pastBefore(part, since); err != nil {
			return err
		}
	}
	return nil
}

// pastBefore looks for the last crossings of devices before the window that cannot be
// derived again, between the last fix there and the window.
func (t *trial) pastBefore(list []seek, since int64) error {
	asked := make([]lastCrossing, len(list))
	for i, k := range list {
		asked[i] = lastCrossing{device: k.device, afterUS: math.MinInt64, beforeUS: since, n: k.n}
		if d := &t.devices[k.n]; d.begun {
			asked[i].afterUS = d.last.TimeUS
		}
	}
	if err := lastGone(t.look, t.cuts, t.ids, asked, func(n int, p pastCrossing) { t.devices[n].pass(p) }); err != nil {
		return err
	}
	for i := range asked {
		if asked[i].afterUS == math.MinInt64 {
			asked[i].afterUS = since - t.set.IntervalUS() - 1
		}
	}
	return passedGone(t.look, t.cuts, t.ids, asked, func(n int, c geofence.Crossing) {
		t.devices[n].passed = append(t.devices[n].passed, c)
	})
}

// pass takes note of a crossing at a fix that is gone.
func (d *trialDevice) pass(p pastCrossing) {
	if d.was == nil {
		d.was = make(map[string]pastCrossing)
	}
	if last, known := d.was[p.fence]; !known || last.compare(p) <= 0 {
		d.was[p.fence] = p
	}
}

// past takes note of a recorded crossing at a time at which there is no fix.
func (t *trial) past(c *gotCrossing) {
	d := &t.devices[c.device]
	switch {
	case !c.gone && d.held != nil && t.set.HeldID(c.FenceID):
		d.held.recorded = append(d.held.recorded, c.Crossing)
	case !c.gone:
		t.differ(d.name, nil, &c.Crossing)
	case isPassage(&c.Crossing):
		d.passed = append(d.passed, c.Crossing)
	default:
		d.pass(pastCrossing{fenceAt{c.FenceID, c.LaterUS}, c.Ordinal, c.Kind == geofence.Enter})
	}
}

// fix compares the crossings at a fix, given what is recorded since the last one.
func (t *trial) fix(device *trialDevice, fix geofence.Fix, got []gotCrossing) {
	for len(got) > 0 && !got[0].at {
		t.past(&got[0])
		got = got[1:]
	}
	var was map[string]bool
	if len(device.was) > 0 {
		was = make(map[string]bool, len(device.was))
		for fence, c := range device.was {
			was[fence] = c.inside
		}
		device.was = nil
	}
	passed := device.passed
	device.passed = nil
	held := t.set.Held()
	if held && device.held == nil {
		device.held = &trialHeld{walk: t.set.WalkHeld(t.maxGap, !device.begun), stays: make(map[fenceAt]struct{})}
		if device.begun {
			device.held.walk.Next(nil, device.last)
		}
	}
	if t.buf = t.buf[:0]; device.begun {
		t.buf = t.set.Crossings(t.buf, device.last, fix, t.maxGap)
	} else {
		t.buf = t.set.Initial(t.buf, fix)
	}
	device.begun, device.last = true, fix
	if held {
		var across []geofence.Crossing
		for i := range got {
			if got[i].gone {
				across = append(across, got[i].Crossing)
			}
		}
		slices.SortFunc(across, func(a, b geofence.Crossing) int { return cmp.Compare(a.Ordinal, b.Ordinal) })
		stay := slices.Clone(passed)
		for i := range across {
			if isPassage(&across[i]) {
				stay = append(stay, across[i])
			}
		}
		device.held.want = device.held.walk.NextSince(device.held.want, fix, afterwards(maps.Clone(was), across), stay)
		t.buf = slices.DeleteFunc(t.buf, func(c geofence.Crossing) bool { return t.set.HeldID(c.FenceID) })
	}
	t.buf = slices.DeleteFunc(t.buf, func(c geofence.Crossing) bool { return of(passed, c.FenceID) })
	if len(got) == 0 && was == nil {
		for i := range t.buf {
			t.differ(device.name, &t.buf[i], nil)
		}
		return
	}
	stays := make(map[string]bool)
	for i := range got {
		if c := &got[i]; c.gone {
			stays[c.FenceID] = true
			delete(was, c.FenceID)
		}
	}
	t.buf = slices.DeleteFunc(t.buf, func(c geofence.Crossing) bool { return stays[c.FenceID] })
	t.buf = since(t.buf, was, fix, t.set)
	recorded := make(map[crossingKey]geofence.Crossing, len(got))
	for i := range got {
		c := &got[i].Crossing
		switch {
		case stays[c.FenceID]:
			if held {
				device.held.stays[fenceAt{c.FenceID, c.LaterUS}] = struct{}{}
			}
			t.kept(c.FenceID)
		case held && t.set.HeldID(c.FenceID):
			device.held.recorded = append(device.held.recorded, *c)
		default:
			recorded[keyOf(c)] = *c
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
		g := gotCrossing{device: t.number(c.device), Crossing: c.Crossing}
		g.row, g.at = s.row(c.device, c.LaterUS)
		g.gone = !g.at && c.LaterUS < s.from // no position lies between two slices
		t.got = append(t.got, g)
	}
	if err := t.lookForGone(t.got, func(c *gotCrossing) bool {
		if !c.at {
			return !c.gone
		}
		return c.EarlierUS < c.LaterUS && c.EarlierUS > t.before(s, c)
	}); err != nil {
		return err
	}
	for i := range t.got {
		if c := &t.got[i]; !c.at && c.gone {
			t.kept(c.FenceID)
		}
	}
	slices.SortStableFunc(t.got, func(a, b gotCrossing) int { return cmp.Compare(a.row, b.row) })
	return nil
}

// before returns when the fix before the one of a crossing was.
func (t *trial) before(s *trialSlice, c *gotCrossing) int64 {
	if prev := c.row - 1; prev >= 0 && s.rows[prev].device == s.rows[c.row].device {
		return s.rows[prev].fix.TimeUS
	}
	if d := &t.devices[c.device]; d.begun {
		return d.last.TimeUS
	}
	return math.MinInt64
}

// lookForGone looks whether there are positions at the later fixes of crossings, or at
// the earlier ones where a fix is at the later one.
func (t *trial) lookForGone(list []gotCrossing, which func(*gotCrossing) bool) error {
	var asked []*gotCrossing
	for i := range list {
		if which(&list[i]) {
			list[i].gone = true
			asked = append(asked, &list[i])
		}
	}
	missing := func(c *gotCrossing) int64 {
		if c.at {
			return c.EarlierUS
		}
		return c.LaterUS
	}
	if len(asked) == 0 {
		return nil
	}
	of := func(c *gotCrossing) deviceAt { return deviceAt{t.devices[c.device].name, missing(c)} }
	at := make([]deviceAt, len(asked))
	for i, c := range asked {
		at[i] = of(c)
	}
	stored, err := storedAt(t.look, t.cuts, at)
	if err != nil {
		return err
	}
	for _, c := range asked {
		c.gone = !stored[of(c)]
	}
	return nil
}

// kept counts a recorded crossing that stays whatever the fences are, or of which that
// is not known.
func (t *trial) kept(fence string) {
	t.count(fence, func(n *FenceTrialCount) { n.Recorded++; n.Kept++ })
}

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

// finish compares what is known at the end, and lists the fences with differences.
func (t *trial) finish() {
	for i := range t.devices {
		d := &t.devices[i]
		if d.held == nil {
			continue
		}
		t.buf = t.buf[:0]
		for _, c := range d.held.want {
			if _, stays := d.held.stays[fenceAt{c.FenceID, c.LaterUS}]; !stays && d.held.walk.Complete(c.FenceID, c.LaterUS) {
				t.buf = append(t.buf, c)
			}
		}
		recorded := make(map[crossingKey]geofence.Crossing, len(d.held.recorded))
		for _, c := range d.held.recorded {
			if d.held.walk.Complete(c.FenceID, c.LaterUS) {
				recorded[keyOf(&c)] = c
			} else { // what is not read decides
				t.kept(c.FenceID)
			}
		}
		pairUp(t.buf, recorded, func(_ crossingKey, want, got *geofence.Crossing) { t.differ(d.name, want, got) })
	}
	for id, n := range t.counts {
		if n.Added+n.Removed+n.Changed > 0 {
			t.out.Fences = append(t.out.Fences, FenceTrialOf{Fence: id, FenceTrialCount: *n})
		}
	}
	slices.SortFunc(t.out.Fences, func(a, b FenceTrialOf) int { return cmp.Compare(a.Fence, b.Fence) })
}
