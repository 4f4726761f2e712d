package oracle

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/geofence"
)

// Rules are what crossings depend on besides the records.
type Rules struct {
	Fences         []geofence.Fence // all versions; those that are invalid are passed over
	MaxFutureSkew  time.Duration
	MaxCrossingGap time.Duration
	// Faulty reports which rows of positions an operator has marked. Nil means
	// none.
	Faulty func(device string, timeUS int64) bool
}

// Crossing is a row of timing_records. Its key is Device, FenceID, Kind,
// LaterUS and Ordinal; Fence, the number of the version in its set, is not
// compared.
type Crossing struct {
	Device string
	geofence.Crossing
}

// Crossings yields the rows that timing_records must hold, ordered by device
// ID in bytes and the later fix.
func (o *Oracle) Crossings(rules Rules) iter.Seq2[Crossing, error] {
	return func(yield func(Crossing, error) bool) {
		set, _ := geofence.NewSet(rules.Fences)
		w := walk{set: set, rules: rules}
		for group := range o.groups() {
			device := o.devices[group[0].device]
			w.crossings = w.crossings[:0]
			if err := w.step(o, device, group[0]); err != nil {
				yield(Crossing{}, err)
				return
			}
			for _, c := range w.crossings {
				if !yield(Crossing{Device: device, Crossing: c}, nil) {
					return
				}
			}
		}
	}
}

// walk follows the eligible fixes of one device after the other.
type walk struct {
	set       *geofence.Set
	rules     Rules
	device    string
	last      geofence.Fix
	moved     bool // last is a fix of device
	crossings []geofence.Crossing
}

func (w *walk) step(o *Oracle, device string, r sentRecord) error {
	if device != w.device {
		w.device, w.moved = device, false
	}
	s, err := o.log.At(r.place)
	if err != nil {
		return err
	}
	row := rowOf(&s)
	if !row.Eligible(w.rules.MaxFutureSkew) || w.rules.Faulty != nil && w.rules.Faulty(device, row.TimeUS) {
		return nil
	}
	fix := geofence.Fix{TimeUS: row.TimeUS, Latitude: row.Latitude, Longitude: row.Longitude}
	if w.moved {
		w.crossings = w.set.Crossings(w.crossings, w.last, fix, w.rules.MaxCrossingGap)
	} else {
		w.crossings = w.set.Initial(w.crossings, fix)
	}
	w.last, w.moved = fix, true
	return nil
}

// crossings compares the rows of timing_records with those that must be there,
// device by device.
func (j *judge) crossings() error {
	if j.seen.Crossings == nil {
		return nil
	}
	nextWant, stopWant := iter.Pull2(j.o.Crossings(j.seen.Rules))
	defer stopWant()
	nextGot, stopGot := iter.Pull2(j.seen.Crossings)
	defer stopGot()
	want := runs{next: nextWant, what: "crossings"}
	got := runs{next: nextGot, what: "timing records"}
	for {
		if err := want.fill(); err != nil {
			return err
		}
		if err := got.fill(); err != nil {
			return err
		}
		switch {
		case want.device == "" && got.device == "":
			return nil
		case got.device == "" || want.device != "" && want.device < got.device:
			j.sameCrossings(want.take(), nil)
		case want.device == "" || got.device < want.device:
			if rows := got.take(); !j.others(rows[0].Device) {
				j.sameCrossings(nil, rows)
			}
		default:
			j.sameCrossings(want.take(), got.take())
		}
	}
}

// runs reads crossings one device at a time.
type runs struct {
	next   func() (Crossing, error, bool)
	what   string
	ahead  *Crossing // read, but not of device
	device string    // of rows, "" at the end
	rows   []Crossing
	last   string // device taken before
}

// fill reads the rows of the next device, unless they are there.
func (r *runs) fill() error {
	if r.device != "" {
		return nil
	}
	for {
		c := r.ahead
		r.ahead = nil
		if c == nil {
			row, err, more := r.next()
			if err != nil {
				return fmt.Errorf("read %s: %w", r.what, err)
			}
			if !more {
				return nil
			}
			c = &row
		}
		switch {
		case r.device == "" && c.Device <= r.last:
			return fmt.Errorf("read %s: device %q follows device %q, want them ordered by device_id collate \"C\"", r.what, c.Device, r.last)
		case r.device == "":
			r.device = c.Device
		case r.device != c.Device:
			r.ahead = c
			return nil
		}
		r.rows = append(r.rows, *c)
	}
}

func (r *runs) take() []Crossing {
	rows := r.rows
	r.last, r.device, r.rows = r.device, "", nil
	return rows
}

func compareKeys(a, b Crossing) int {
	return cmp.Or(
		cmp.Compare(a.LaterUS, b.LaterUS), cmp.Compare(a.FenceID, b.FenceID),
		cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Ordinal, b.Ordinal),
	)
}

// sameCrossings compares the rows of one device.
func (j *judge) sameCrossings(want, got []Crossing) {
	slices.SortFunc(want, compareKeys)
	slices.SortFunc(got, compareKeys)
	for len(want) > 0 || len(got) > 0 {
		c := 0
		switch {
		case len(got) == 0:
			c = -1
		case len(want) == 0:
			c = 1
		default:
			c = compareKeys(want[0], got[0])
		}
		switch {
		case c < 0:
			j.crossing(KindCrossing, want[0], "is missing")
			want = want[1:]
			continue
		case c > 0:
			j.crossing(KindCrossing, got[0], "must not be there")
			got = got[1:]
			continue
		}
		if w, g := want[0].Crossing, got[0].Crossing; !sameCrossing(w, g) {
			j.crossing(KindCrossing, want[0], fmt.Sprintf("want %s, got %s", crossingText(w), crossingText(g)))
		} else {
			j.report.Crossings++
		}
		last := got[0]
		want, got = want[1:], got[1:]
		for len(got) > 0 && compareKeys(last, got[0]) == 0 {
			j.crossing(KindDouble, got[0], "is there twice")
			got = got[1:]
		}
	}
}

func sameCrossing(a, b geofence.Crossing) bool {
	a.Fence, b.Fence = 0, 0
	return a == b
}

func crossingText(c geofence.Crossing) string {
	return fmt.Sprintf("time %s earlier %s at %v,%v initial %t", clock(c.TimeUS), clock(c.EarlierUS), c.Latitude, c.Longitude, c.Initial)
}

func (j *judge) crossing(kind Kind, c Crossing, text string) {
	j.report.find(Finding{
		Kind: kind, Device: c.Device, Time: clock(c.LaterUS),
		Text: fmt.Sprintf("%s of fence %q, ordinal %d, %s", c.Kind, c.FenceID, c.Ordinal, text),
	})
}
