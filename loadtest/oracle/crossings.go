package oracle

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	"github.com/trmtracking/processor/internal/recheck"
)

// Rules are what crossings depend on besides the records.
type Rules struct {
	Limits
	Fences []Fence // all versions in force; those that are invalid are passed over
	// Faulty reports which rows of positions an operator has marked. Nil means
	// none.
	Faulty func(device string, timeUS int64) bool
}

func (r *Rules) faulty(device string, timeUS int64) bool {
	return r.Faulty != nil && r.Faulty(device, timeUS)
}

// eligible reports whether a record takes part in what is derived.
func (r *Rules) eligible(row *Row) bool {
	return r.Eligible(new(positionOf(row)))
}

func positionOf(row *Row) recheck.Position {
	return recheck.Position{
		TimeUS: row.TimeUS, StreamUS: row.IngestedUS, Latitude: row.Latitude, Longitude: row.Longitude,
		SpeedKMH: row.Speed, Satellites: int(row.Satellites),
	}
}

// Limits say which positions take part, and how far apart they may be.
type Limits = recheck.Rules

// Fence is one version of a fence, as the table geofences holds it.
type Fence = recheck.Fence

// Crossing is a row of timing_records.
type Crossing = recheck.Crossing

// Crossings yields the rows that timing_records must hold, ordered by device
// ID in bytes, the later fix, time, fence and ordinal.
func (o *Oracle) Crossings(rules Rules) iter.Seq2[Crossing, error] {
	return func(yield func(Crossing, error) bool) {
		if err := o.prefer(rules); err != nil {
			yield(Crossing{}, err)
			return
		}
		d, _ := recheck.New(rules.Fences, rules.Limits)
		device, fixes := uint32(0), []recheck.Fix(nil)
		end := func() bool {
			for _, c := range d.Derive(fixes) {
				c.Device = o.devices[device]
				if !yield(c, nil) {
					return false
				}
			}
			fixes = fixes[:0]
			return true
		}
		for group := range o.groups() {
			if group[0].device != device {
				if !end() {
					return
				}
				device = group[0].device
			}
			s, err := o.log.At(group[0].place)
			if err != nil {
				yield(Crossing{}, err)
				return
			}
			row := rowOf(&s)
			if rules.eligible(&row) && !rules.faulty(row.Device, row.TimeUS) {
				fixes = append(fixes, new(positionOf(&row)).Fix())
			}
		}
		if len(fixes) > 0 {
			end()
		}
	}
}

// crossings compares the rows of timing_records with those that must be there,
// device by device.
func (j *judge) crossings() error {
	if j.seen.Crossings == nil {
		return nil
	}
	if j.seen.DroppedUS != 0 {
		return j.crossingsAfterDrop()
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
	for _, c := range got {
		j.noteRevision(c)
	}
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
		if w, g := want[0], got[0]; !recheck.Same(w, g) {
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

func (j *judge) noteRevision(c Crossing) {
	if j.seen.Changes != nil {
		j.revision[idOf(c)] = c.Revision
	}
}

func crossingText(c Crossing) string {
	return fmt.Sprintf("version %d time %s earlier %s at %v,%v initial %t suppressed %t, %s, %g m, %g km/h, within %d ms", c.FenceVersion, clock(c.TimeUS), clock(c.EarlierUS), c.Latitude, c.Longitude, c.Initial, c.Suppressed,
		c.Method, c.DistanceM, c.SpeedKMH, c.MaxErrorMS)
}

func (j *judge) crossing(kind Kind, c Crossing, text string) {
	j.report.find(Finding{
		Kind: kind, Device: c.Device, Time: clock(c.LaterUS),
		Text: fmt.Sprintf("%s of fence %q, ordinal %d, %s", c.Kind, c.FenceID, c.Ordinal, text),
	})
}
