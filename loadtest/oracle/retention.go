package oracle

import (
	"cmp"
	"iter"
	"slices"

	"github.com/trmtracking/processor/internal/recheck"
)

// Retention dropped positions at some moment, between two entries. What was recorded of
// them by then stays, and is compared with what the entries before that moment yield. What is
// recorded since is a function of the positions left and of what stays, with one exception: an
// instance that was running may still know of a device its last position and what is open
// at its held borders, or it may not. So what refers to a position that was dropped may be
// recorded later, too, if the entries up to some later one yield it. Either way what is
// recorded otherwise follows from what is there.

// dropped reports whether retention dropped what an entry stored.
func (j *judge) dropped(id ID, timeUS int64) bool {
	return timeUS < j.seen.DroppedUS && id.Less(j.seen.DroppedAt)
}

// left leaves, of the entries with a device and time, those that were not dropped.
func (j *judge) left(group []sentRecord) (left []sentRecord) {
	if group[0].timeUS >= j.seen.DroppedUS {
		return group
	}
	for _, r := range group {
		switch {
		case !j.dropped(r.id, r.timeUS):
			left = append(left, r)
		case j.matchDeadLettered(r.id, ""):
			j.report.Account.DeadLettered++
		default:
			j.report.Account.Dropped++
			j.unseen = append(j.unseen, r.id)
		}
	}
	return left
}

// sample is a record of a device, and whether it takes part if it is the one that counts of
// those with its time.
type sample struct {
	id        ID
	timeUS    int64
	takesPart bool
	fix       recheck.Fix
}

// samples returns the records of a device by time, those with the same in the order in which
// they count.
func (o *Oracle) samples(device int, rules *Rules) ([]sample, error) {
	from, _ := slices.BinarySearchFunc(o.records, device, func(r sentRecord, device int) int { return cmp.Compare(int(r.device), device) })
	var list []sample
	for _, r := range o.records[from:] {
		if int(r.device) != device {
			break
		}
		s, err := o.log.At(r.place)
		if err != nil {
			return nil, err
		}
		row := rowOf(&s)
		list = append(list, sample{r.id, r.timeUS, rules.eligible(&row) && !rules.faulty(row.Device, row.TimeUS), new(positionOf(&row)).Fix()})
	}
	return list, nil
}

// track returns what takes part of the records that are there.
func track(list []sample, there func(*sample) bool) (fixes []recheck.Fix) {
	for i, decided := 0, false; i < len(list); i++ {
		s := &list[i]
		if i > 0 && list[i-1].timeUS < s.timeUS {
			decided = false
		}
		if decided || !there(s) {
			continue
		}
		if decided = true; s.takesPart {
			fixes = append(fixes, s.fix)
		}
	}
	return fixes
}

// crossingsAfterDrop compares the rows of timing_records with those that must be there after
// retention dropped positions, device by device.
func (j *judge) crossingsAfterDrop() error {
	d, _ := recheck.New(j.seen.Rules.Fences, j.seen.Rules.Limits)
	got := runs{what: "timing records"}
	var stop func()
	got.next, stop = iter.Pull2(j.seen.Crossings)
	defer stop()
	for n := 0; n <= len(j.o.devices); n++ {
		for {
			if err := got.fill(); err != nil {
				return err
			}
			if got.device == "" || n < len(j.o.devices) && got.device >= j.o.devices[n] {
				break
			}
			if rows := got.take(); !j.others(rows[0].Device) {
				j.sameCrossings(nil, rows)
			}
		}
		if n == len(j.o.devices) {
			break
		}
		var rows []Crossing
		if got.device == j.o.devices[n] {
			rows = got.take()
		}
		list, err := j.o.samples(n, &j.seen.Rules)
		if err != nil {
			return err
		}
		want, judged := j.staying(d, j.o.devices[n], list, rows)
		j.sameCrossings(want, judged)
	}
	return nil
}

// staying judges what is recorded of positions that were dropped, and returns what is to be
// recorded besides, and what is.
func (j *judge) staying(d *recheck.Deriver, device string, list []sample, got []Crossing) (want, judged []Crossing) {
	before := func(s *sample) bool { return s.id.Less(j.seen.DroppedAt) }
	there := func(s *sample) bool { return !j.dropped(s.id, s.timeUS) }
	at := make(map[int64]bool)
	for i := range list {
		at[list[i].timeUS] = at[list[i].timeUS] || there(&list[i])
	}
	stored := func(us int64) bool { return at[us] }
	stays := func(recorded []Crossing) (derived, others []Crossing, staying map[crossingID]Crossing) {
		for i := range recorded {
			recorded[i].Device = device
		}
		derived, others = d.DeriveAfter(track(list, there), recorded, stored)
		staying = make(map[crossingID]Crossing)
		for _, c := range recorded {
			staying[idOf(c)] = c
		}
		for _, c := range others {
			delete(staying, idOf(c))
		}
		return derived, others, staying
	}
	_, _, must := stays(d.Derive(track(list, before)))
	want, judged, is := stays(got)
	for i := range want {
		want[i].Device = device
	}
	sorted := func(m map[crossingID]Crossing) (all []Crossing) {
		for _, c := range m {
			all = append(all, c)
		}
		slices.SortFunc(all, compareKeys)
		return all
	}
	for _, c := range sorted(must) {
		if _, there := is[idOf(c)]; !there {
			j.crossing(KindCrossing, c, "is missing; its position was dropped since")
		}
	}
	var later map[crossingID][]Crossing
	for _, c := range sorted(is) {
		j.noteRevision(c)
		w, recorded := must[idOf(c)]
		if recorded && recheck.Same(w, c) {
			j.report.Crossings++
			continue
		}
		if recorded {
			j.crossing(KindCrossing, w, "want "+crossingText(w)+", got "+crossingText(c))
			continue
		}
		if later == nil {
			later = j.known(d, device, list)
		}
		if slices.ContainsFunc(later[idOf(c)], func(w Crossing) bool { return recheck.Same(w, c) }) {
			j.report.Crossings++
		} else {
			j.crossing(KindCrossing, c, "must not be there: none of the entries before or after the drop yield it")
		}
	}
	return want, judged
}

// known returns what an instance may have derived that knew of what was dropped, after each
// entry since: with those that are older than that it does not.
func (j *judge) known(d *recheck.Deriver, device string, list []sample) map[crossingID][]Crossing {
	found := make(map[crossingID][]Crossing)
	for i := range list {
		last := list[i].id
		if last.Less(j.seen.DroppedAt) {
			continue
		}
		for _, c := range d.Derive(track(list, func(s *sample) bool {
			return s.id.Less(j.seen.DroppedAt) || s.timeUS >= j.seen.DroppedUS && s.id.Compare(last) <= 0
		})) {
			c.Device = device
			if k := idOf(c); !slices.ContainsFunc(found[k], func(o Crossing) bool { return recheck.Same(o, c) }) {
				found[k] = append(found[k], c)
			}
		}
	}
	return found
}

func idOf(c Crossing) crossingID {
	return crossingID{c.Device, c.FenceID, c.Kind, c.LaterUS, c.Ordinal}
}
