package pipeline

import (
	"cmp"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// batch is the content of one transaction and the entries it came from, so
// that it can be recomputed if it does not commit as computed.
type batch struct {
	seq        uint64
	idempotent bool // no record is assumed new: all rows take the ON CONFLICT path
	parts      []part
	fresh      []telemetry.Record
	late       []telemetry.Record
	rivals     []telemetry.Record // of earlier records of the batch, see protocol.Batch
	links      []link
	rules      protocol.Rules
	crossings  []protocol.Crossing
	deltas     []deviceDelta             // its devices
	outOfOrder []int32                   // indexes of deltas with records out of order; seal derives their crossings
	unsettled  []int32                   // indexes of deltas of which other fixes decide; the transaction derives their crossings
	open       map[*device]geofence.Open // the worker's, see state
	kept       map[*device]geofence.Kept // likewise
	bereft     map[*device]int64         // likewise
	undecided  []string                  // their devices, once the batch is sealed
	applied    []protocol.Applied
	loaded     []string // devices whose state was loaded for it
	scratch    []geofence.Crossing
	entries    int
	bytes      int64
	repeats    int       // records that repeat an earlier one of the same batch
	due        time.Time // when it is committed, full or not
	urgent     bool      // it is due now, whatever else has arrived
	apart      bool      // it is of one slow shard
	smaller    bool      // it was too much: slow shards in it are not committed again at once

	deferred            []protocol.Deferred
	resolved            []telemetry.Ref // deferred entries with an outcome
	letters             []telemetry.DeadLetter
	deferredDeadLetters []telemetry.DeadLetter         // those of deferred entries
	deadLettered        map[telemetry.EntryID]struct{} // the IDs in letters
	culprit             telemetry.EntryID              // the entry the server named when it rejected the batch; zero if none
	reread              map[int]bool                   // shards whose queues lack entries they should hold; written by move
	refused             map[int]string                 // shards with dead letters that Redis refused, and the state of their wait; written by move
	stale               map[int]bool                   // shards whose acknowledgement was refused; written by ack
}

// part is consecutive entries of one shard.
type part struct {
	shard   int
	grant   uint64
	epoch   int64
	token   string
	entries []telemetry.Entry
	again   map[telemetry.EntryID]protocol.Deferred // deferred entries without an outcome yet; nil for entries of a queue
}

// deviceDelta is what a batch knows of one of its devices.
type deviceDelta struct {
	*device
	id         string
	base       geofence.Fix // the last position when the batch began
	top        int64        // newest device time of any record in the batch
	last       int32        // newest link of the device's records
	outOfOrder bool         // records came out of order
	unsettled  bool         // not all its fresh records and the one before them take part for sure
	followed   bool         // something was kept of it at held borders
}

// link chains the records of a device within a batch, newest first.
type link struct {
	prev     int32
	eligible bool // one of the records of this device and time is
	us       int64
	digest   uint64 // of the first one
}

func (b *batch) reset(seq uint64, idempotent bool) {
	b.seq, b.idempotent, b.urgent = seq, idempotent, false
	clear(b.parts)
	clear(b.fresh)
	clear(b.late)
	clear(b.rivals)
	b.rivals = b.rivals[:0]
	clear(b.crossings)
	clear(b.deltas)
	clear(b.loaded)
	b.loaded = b.loaded[:0]
	b.parts, b.fresh, b.late, b.links = b.parts[:0], b.fresh[:0], b.late[:0], b.links[:0]
	b.crossings, b.deltas, b.outOfOrder, b.applied = b.crossings[:0], b.deltas[:0], b.outOfOrder[:0], b.applied[:0]
	clear(b.undecided)
	b.unsettled, b.undecided = b.unsettled[:0], b.undecided[:0]
	b.entries, b.bytes, b.repeats = 0, 0, 0
	b.due, b.apart, b.smaller = time.Time{}, false, false
	clear(b.deferred)
	clear(b.letters)
	clear(b.deferredDeadLetters)
	b.deferred, b.resolved = b.deferred[:0], b.resolved[:0]
	b.letters, b.deferredDeadLetters = b.letters[:0], b.deferredDeadLetters[:0]
	b.deadLettered, b.reread, b.refused, b.stale, b.culprit = nil, nil, nil, nil, telemetry.EntryID{}
}

// place adds a decoded record to the batch and advances the device's state.
func (b *batch) place(d *device, r *telemetry.Record, eligible bool) {
	if d.batch != b.seq {
		d.batch, d.touch = b.seq, int32(len(b.deltas))
		b.deltas = append(b.deltas, deviceDelta{device: d, id: r.DeviceID, base: d.fix(), top: never, last: -1})
	}
	t := &b.deltas[d.touch]
	if r.TimeUS <= t.top {
		if earlier := b.earlier(t, r.TimeUS); earlier != nil {
			b.rival(d, r, eligible, earlier)
			return
		}
	}
	b.links = append(b.links, link{prev: t.last, us: r.TimeUS, eligible: eligible, digest: r.Digest()})
	t.last = int32(len(b.links) - 1)
	t.top = max(t.top, r.TimeUS)
	if eligible && b.decided() {
		b.judge(t, r)
	}
	switch {
	case !eligible, b.idempotent, r.TimeUS <= t.base.TimeUS:
		b.late = append(b.late, *r)
	default:
		// Newer than the watermark at the start of the batch, so it is in no table
		// yet, whatever its position among the records of this batch.
		b.fresh = append(b.fresh, *r)
		if b.rules.Fences.Len() > 0 {
			b.cross(t, r)
		}
	}
	if eligible {
		d.advance(r)
	}
}

// rival places a record with the device and time of an earlier one: of all of them
// the first eligible one counts, else the first. The transaction decides, since
// a row may be there already; where no eligible row can be, beyond the watermark,
// this batch knows.
func (b *batch) rival(d *device, r *telemetry.Record, eligible bool, earlier *link) {
	wins := eligible && !earlier.eligible
	if !wins && r.Digest() == earlier.digest {
		b.repeats++
		return
	}
	b.rivals = append(b.rivals, *r)
	if wins {
		earlier.eligible = true
		b.forget(d)
		b.unsettle(d.touch)
		d.advance(r)
	}
}

// decided reports whether there is a rule by which other fixes than the two next to a
// crossing decide on it.
func (b *batch) decided() bool { return b.rules.Eligibility.MaxSpeed > 0 || b.rules.Fences.Held() }

// judge looks at whether the rule on jumps can take any of the device's records
// away from what is derived here: a record that comes plausibly after one that
// takes part does so too, whatever follows. Anything else is left to the
// transaction, which sees the neighbours.
func (b *batch) judge(t *deviceDelta, r *telemetry.Record) {
	d := t.device
	switch {
	case b.rules.Fences.Len() == 0, b.idempotent, r.TimeUS <= t.base.TimeUS:
		b.forget(d)
	case r.TimeUS > d.watermark:
		was := d.settled || d.watermark == never
		top := b.rules.Eligibility.MaxSpeed
		d.settled = d.watermark == never || top == 0 || geofence.Plausible(d.fix(), fixOf(r), top)
		if was && d.settled {
			break
		}
		if top > 0 {
			b.unsettle(d.touch)
		}
		b.lose(d, r.TimeUS)
	} // between those of the batch: seal knows
}

// forget says of a device that only the tables know what has an influence on what follows.
func (b *batch) forget(d *device) {
	d.settled = false
	delete(b.kept, d)
}

// lose says of a device that nothing is known of its past up to a device time.
func (b *batch) lose(d *device, us int64) {
	delete(b.kept, d)
	b.keepOpen(d, b.rules.Fences.Unknown(us))
}

// unsettle leaves the crossings of a device's fresh records to the transaction.
func (b *batch) unsettle(touch int32) {
	if b.decided() {
		b.undecide(touch)
	}
}

func (b *batch) undecide(touch int32) {
	if t := &b.deltas[touch]; !t.unsettled {
		t.unsettled = true
		b.unsettled = append(b.unsettled, touch)
	}
}

func fixOf(r *telemetry.Record) geofence.Fix {
	return geofence.Fix{TimeUS: r.TimeUS, Latitude: r.Latitude, Longitude: r.Longitude, Speed: geofence.WholeKMH(r.Speed)}
}

// advance moves the device to a record that is newer than all before it.
func (d *device) advance(r *telemetry.Record) {
	if r.TimeUS > d.watermark {
		d.moveTo(fixOf(r))
	}
}

// cross records the crossings between a fresh record and the fix before it.
func (b *batch) cross(t *deviceDelta, r *telemetry.Record) {
	if r.TimeUS < t.watermark && !t.outOfOrder {
		t.outOfOrder = true
		b.outOfOrder = append(b.outOfOrder, t.touch)
	}
	held := b.rules.Fences.Held()
	switch until, bereft := b.bereft[t.device]; {
	case !bereft:
	case t.base.TimeUS < until:
		b.undecide(t.touch)
		b.lose(t.device, r.TimeUS)
	default:
		delete(b.bereft, t.device)
	}
	if t.outOfOrder || t.unsettled && !held {
		return
	}
	prev, next := t.fix(), fixOf(r)
	if t.watermark == never {
		prev = next
		b.scratch = b.rules.Fences.Initial(b.scratch[:0], next)
	} else {
		b.scratch = b.rules.Fences.Crossings(b.scratch[:0], prev, next, b.rules.MaxGap)
	}
	if held {
		b.hold(t, prev, next)
	}
	if t.unsettled {
		return
	}
	for _, c := range b.scratch {
		b.crossings = append(b.crossings, protocol.Crossing{DeviceID: t.id, Crossing: c})
	}
}

// mostKept bounds the fences that are followed in memory for one device, half a kilobyte each.
const mostKept = 16

// hold replaces the crossings in scratch of fences whose borders are held still by what
// counts. It leaves the device to the transaction where only more fixes show that, or
// what is not known may count now.
func (b *batch) hold(t *deviceDelta, prev, next geofence.Fix) {
	kept := b.kept[t.device]
	if !kept.Of(b.rules.Fences.Set) { // the fences changed
		b.lose(t.device, prev.TimeUS)
		kept = nil
	}
	steps := b.steps(t, prev, next, kept)
	t.followed = t.followed || len(kept)+len(steps.Kept) > 0
	switch {
	case len(steps.Kept) == 0:
		delete(b.kept, t.device)
	case !t.settled, len(steps.Kept) > mostKept:
		b.lose(t.device, next.TimeUS)
	default:
		b.kept[t.device] = steps.Kept
	}
}

func (b *batch) steps(t *deviceDelta, prev, next geofence.Fix, kept geofence.Kept) geofence.Steps {
	open, unknown := b.open[t.device]
	switch {
	case !unknown:
		open = geofence.Known
	case prev.TimeUS < open.UntilUS && next.TimeUS >= open.FromUS:
		b.unsettle(t.touch)
	}
	if unknown && open.Over(next.TimeUS) {
		delete(b.open, t.device)
	}
	steps := b.rules.Fences.Between(b.scratch, prev, next, open, kept)
	b.scratch = steps.Crossings
	if steps.Unsettled {
		b.unsettle(t.touch)
		b.keepOpen(t.device, steps.Open)
	}
	return steps
}

// keepOpen adds to what is not known of a device.
func (b *batch) keepOpen(d *device, o geofence.Open) {
	if o == geofence.Known {
		return
	}
	if other, open := b.open[d]; open {
		o = o.Join(other)
	}
	b.open[d] = o
}

// seal derives the crossings of devices whose records came out of order, from
// those records in order. Real trackers send newest first, so this is no rare path.
// Those of devices that are unsettled are left to the transaction.
func (b *batch) seal() {
	if len(b.outOfOrder)+len(b.unsettled) == 0 {
		return
	}
	fixes := make(map[string][]geofence.Fix, len(b.outOfOrder))
	for _, i := range b.outOfOrder {
		t := &b.deltas[i]
		fixes[t.id] = nil
		if t.base.TimeUS != never {
			fixes[t.id] = []geofence.Fix{t.base}
		}
	}
	for i := range b.fresh {
		r := &b.fresh[i]
		if list, ok := fixes[r.DeviceID]; ok {
			fixes[r.DeviceID] = append(list, fixOf(r))
		}
	}
	for _, i := range b.outOfOrder {
		list := fixes[b.deltas[i].id]
		slices.SortFunc(list, func(a, b geofence.Fix) int { return cmp.Compare(a.TimeUS, b.TimeUS) })
		b.judgeAll(i, list)
	}
	for _, i := range b.unsettled {
		fixes[b.deltas[i].id] = nil
		b.undecided = append(b.undecided, b.deltas[i].id)
	}
	b.crossings = slices.DeleteFunc(b.crossings, func(c protocol.Crossing) bool {
		_, other := fixes[c.DeviceID]
		return other
	})
	for _, i := range b.outOfOrder {
		t := &b.deltas[i]
		if t.unsettled {
			continue
		}
		b.scratch = b.rules.Fences.Track(b.scratch[:0], fixes[t.id], b.rules.MaxGap, t.base.TimeUS == never)
		for _, c := range b.scratch {
			b.crossings = append(b.crossings, protocol.Crossing{DeviceID: t.id, Crossing: c})
		}
	}
	b.outOfOrder, b.unsettled = b.outOfOrder[:0], b.unsettled[:0]
}

// judgeAll judges the records of a device that came out of order, with the one
// before them.
func (b *batch) judgeAll(touch int32, list []geofence.Fix) {
	top := b.rules.Eligibility.MaxSpeed
	d := b.deltas[touch].device
	for i := 1; i < len(list); i++ {
		if top > 0 && !geofence.Plausible(list[i-1], list[i], top) {
			b.unsettle(touch)
			d.settled = d.settled && i < len(list)-1
			b.lose(d, list[len(list)-1].TimeUS)
		}
	}
	if !b.rules.Fences.Held() {
		return
	}
	t := &b.deltas[touch]
	eventful := t.followed || len(b.kept[d]) > 0
	for i, next := range list {
		switch {
		case i > 0:
			b.scratch = b.rules.Fences.Crossings(b.scratch[:0], list[i-1], next, b.rules.MaxGap)
		case t.base.TimeUS == never:
			b.scratch = b.rules.Fences.Initial(b.scratch[:0], next)
		default:
			continue
		}
		steps := b.steps(t, list[max(i-1, 0)], next, nil)
		eventful = eventful || steps.Eventful || len(steps.Kept) > 0
	}
	if eventful {
		b.unsettle(touch)
		b.lose(d, list[len(list)-1].TimeUS)
	}
}

// earlier returns the link of the records of a device and time, nil for none.
func (b *batch) earlier(t *deviceDelta, us int64) *link {
	for i := t.last; i >= 0; i = b.links[i].prev {
		if b.links[i].us == us {
			return &b.links[i]
		}
	}
	return nil
}

// without removes the records of some shards from the batch. The links stay:
// devices of other shards refer to them by index.
func (b *batch) without(gone func(shard int) bool, shards int) {
	other := func(records []telemetry.Record) []telemetry.Record {
		return slices.DeleteFunc(records, func(r telemetry.Record) bool {
			return gone(telemetry.ShardOf(r.DeviceID, shards))
		})
	}
	b.fresh, b.late, b.rivals = other(b.fresh), other(b.late), other(b.rivals)
	b.loaded = slices.DeleteFunc(b.loaded, func(id string) bool { return gone(telemetry.ShardOf(id, shards)) })
	b.crossings = slices.DeleteFunc(b.crossings, func(c protocol.Crossing) bool {
		return gone(telemetry.ShardOf(c.DeviceID, shards))
	})
	ofGone := func(i int32) bool { return gone(int(b.deltas[i].shard)) }
	b.outOfOrder, b.unsettled = slices.DeleteFunc(b.outOfOrder, ofGone), slices.DeleteFunc(b.unsettled, ofGone)
	b.undecided = slices.DeleteFunc(b.undecided, func(id string) bool { return gone(telemetry.ShardOf(id, shards)) })
	b.applied = slices.DeleteFunc(b.applied, func(a protocol.Applied) bool { return gone(a.Shard) })
	b.deferred = slices.DeleteFunc(b.deferred, func(d protocol.Deferred) bool { return gone(d.Shard) })
	letters := func(list []telemetry.DeadLetter) []telemetry.DeadLetter {
		return slices.DeleteFunc(list, func(l telemetry.DeadLetter) bool { return gone(l.Shard) })
	}
	b.letters, b.deferredDeadLetters = letters(b.letters), letters(b.deferredDeadLetters)
	b.parts = slices.DeleteFunc(b.parts, func(p part) bool {
		if !gone(p.shard) {
			return false
		}
		b.entries -= len(p.entries)
		b.bytes -= size(p.entries)
		return true
	})
}

// has reports whether the batch has anything of a shard.
func (b *batch) has(shard int) bool {
	return slices.ContainsFunc(b.parts, func(p part) bool { return p.shard == shard })
}

// undetermined returns the record that CommitResult.Stored speaks of at an index.
func (b *batch) undetermined(i int) *telemetry.Record {
	if i < len(b.late) {
		return &b.late[i]
	}
	return &b.rivals[i-len(b.late)]
}

// write returns the content of the transaction.
func (b *batch) write() *protocol.Batch {
	return &protocol.Batch{
		Leases: b.leases(), Fresh: b.fresh, Late: b.late, Rivals: b.rivals, Idempotent: b.idempotent, Devices: b.loaded, Undecided: b.undecided, Crossings: b.crossings, Rules: b.rules, Applied: b.applied,
		Deferred: b.deferred, Resolved: b.resolved, Letters: b.unconfirmed(),
	}
}

// leases returns the shards of the batch, each once, ascending.
func (b *batch) leases() []protocol.ShardLease {
	held := make([]protocol.ShardLease, 0, 16)
	for _, p := range b.parts {
		at, found := slices.BinarySearchFunc(held, p.shard, func(h protocol.ShardLease, shard int) int { return h.Shard - shard })
		if !found {
			held = slices.Insert(held, at, protocol.ShardLease{Shard: p.shard, Epoch: p.epoch})
		}
	}
	return held
}

// acks returns what to acknowledge once the batch is committed. unqueued says of each part which of
// its entries are on no queue, nil for none. What is trimmed and not finished is lost.
func (b *batch) acks(unqueued [][]bool, wasFinished func(shard int, grant uint64, id telemetry.EntryID) bool) []protocol.Ack {
	acks, unqueuedLetters := make([]protocol.Ack, 0, len(b.parts)), make(map[telemetry.EntryID]struct{})
	for i, p := range b.parts {
		if p.again != nil {
			continue // acknowledged when they were deferred
		}
		a := protocol.Ack{Shard: p.shard, Token: p.token}
		var onNone []bool
		if unqueued != nil {
			onNone = unqueued[i]
		}
		if onNone != nil {
			a.Unqueued = make([]telemetry.EntryID, 0, len(p.entries))
		} else {
			a.IDs = make([]telemetry.EntryID, 0, len(p.entries))
		}
		for j := range p.entries {
			e := &p.entries[j]
			if e.Fields == nil && !wasFinished(p.shard, p.grant, e.ID) {
				a.Gone = append(a.Gone, e.ID)
				continue
			}
			isUnqueued := onNone != nil && onNone[j]
			switch _, ok := b.deadLettered[e.ID]; {
			case ok && isUnqueued:
				unqueuedLetters[e.ID] = struct{}{}
			case ok:
			case isUnqueued:
				a.Unqueued = append(a.Unqueued, e.ID)
			default:
				a.IDs = append(a.IDs, e.ID)
			}
		}
		acks = append(acks, a)
	}
	for i := range b.letters {
		_, b.letters[i].Unqueued = unqueuedLetters[b.letters[i].Entry.ID]
	}
	// With the last of a shard, so that all of it is acknowledged by then.
	for _, mark := range b.applied {
		for i := len(acks) - 1; i >= 0; i-- {
			if acks[i].Shard == mark.Shard {
				acks[i].Applied = mark.ID
				break
			}
		}
	}
	return acks
}

func size(entries []telemetry.Entry) int64 {
	var n int64
	for i := range entries {
		n += int64(entries[i].Size())
	}
	return n
}
