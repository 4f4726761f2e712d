package oracle

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"
)

// Change is one change of a row of timing_records.
type Change struct {
	Device  string
	FenceID string
	Kind    string
	LaterUS int64
	Ordinal int
	Old     int  // revision before, 0 for a row that came
	New     int  // revision after, 0 for a row that went
	Same    bool // only the revision changed
}

// crossingID is the key of a row of timing_records.
type crossingID struct {
	device, fence, kind string
	laterUS             int64
	ordinal             int
}

func (c crossingID) String() string {
	return fmt.Sprintf("%s of fence %q, ordinal %d", c.kind, c.fence, c.ordinal)
}

// rowHistory is what became of one row.
type rowHistory struct {
	revision int // 0 while there is no row
	changes  int // of it and withdrawals: each wants a record that came late
}

// revisions replays the changes of timing_records. A row comes with revision 1,
// each change raises it by one and changes something, and what remains is the
// table. Only a record that came after the later fix and precedes it in device
// time changes or withdraws a crossing, and each does so at most once.
func (j *judge) revisions() error {
	if j.seen.Changes == nil {
		return nil
	}
	find := func(k crossingID, format string, args ...any) {
		j.report.find(Finding{Kind: KindRevision, Device: k.device, Time: clock(k.laterUS), Text: k.String() + ", " + fmt.Sprintf(format, args...)})
	}
	rows := map[crossingID]*rowHistory{}
	for c, err := range j.seen.Changes {
		if err != nil {
			return fmt.Errorf("read changes of timing records: %w", err)
		}
		k := crossingID{c.Device, c.FenceID, c.Kind, c.LaterUS, c.Ordinal}
		h := rows[k]
		if h == nil {
			h = &rowHistory{}
			rows[k] = h
		}
		want := h.revision + 1
		if c.New == 0 {
			want = 0
		}
		switch {
		case c.Old != h.revision || c.New != want || c.Old == 0 && c.New == 0:
			find(k, "went from revision %d to %d, it was %d", c.Old, c.New, h.revision)
		case c.Same:
			find(k, "got revision %d and nothing changed", c.New)
		}
		if h.revision = c.New; c.Old > 0 {
			h.changes++
		}
	}
	keys := make([]crossingID, 0, len(rows))
	for k := range rows {
		keys = append(keys, k)
	}
	for k := range j.revision {
		if rows[k] == nil {
			keys = append(keys, k)
			rows[k] = &rowHistory{}
		}
	}
	sort.Slice(keys, func(a, b int) bool {
		x, y := keys[a], keys[b]
		return cmp.Or(cmp.Compare(x.device, y.device), cmp.Compare(x.laterUS, y.laterUS), cmp.Compare(x.fence, y.fence),
			cmp.Compare(x.kind, y.kind), cmp.Compare(x.ordinal, y.ordinal)) < 0
	})
	changed := map[string]bool{}
	for _, k := range keys {
		if h := rows[k]; h.revision != j.revision[k] {
			find(k, "its changes end at revision %d, the table holds %d", h.revision, j.revision[k])
		}
		j.report.Revised += int64(rows[k].changes)
		changed[k.device] = changed[k.device] || rows[k].changes > 0
	}
	late, err := j.late(changed)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if n := late[fixOf{k.device, k.laterUS}]; rows[k].changes > n {
			find(k, "changed %d times, %d records came late enough for that", rows[k].changes, n)
		}
	}
	return nil
}

// fixOf names a record by device and time.
type fixOf struct {
	device string
	us     int64
}

// late counts, for each eligible record of the devices given, those that precede it in
// device time and follow it in the stream, or may, since they were deferred.
func (j *judge) late(devices map[string]bool) (map[fixOf]int, error) {
	found := map[fixOf]int{}
	var ids []ID // of the records so far of a device, in stream order
	device := uint32(0)
	for group := range j.o.groups() {
		r := group[0]
		if r.device != device {
			device, ids = r.device, ids[:0]
		}
		if !devices[j.o.devices[device]] {
			continue
		}
		s, err := j.o.log.At(r.place)
		if err != nil {
			return nil, err
		}
		if row := rowOf(&s); !j.seen.Rules.eligible(&row) {
			continue
		}
		at, _ := slices.BinarySearchFunc(ids, r.id, ID.Compare)
		found[fixOf{j.o.devices[device], r.timeUS}] = len(ids) - at
		if j.seen.Deferred[r.id] {
			ids = append(ids, ID{Ms: math.MaxUint64})
			continue
		}
		ids = slices.Insert(ids, at, r.id)
	}
	return found, nil
}
