package oracle

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/trmtracking/processor/loadtest/fleet"
)

// Oracle knows what was sent, in the order in which it is judged.
type Oracle struct {
	log     *fleet.Log
	devices []string // in byte order
	records []sentRecord
	refused []sentRefused
	replays map[ID]bool // source entries of replays
	first   map[ID]bool // stored before others of their device and time, since those were deferred
}

// sentRecord is a valid record of the log.
type sentRecord struct {
	id     ID
	timeUS int64
	place  int64
	device uint32 // in devices
}

// sentRefused is an entry that is no valid record.
type sentRefused struct {
	id    ID
	place int64
	class string
}

// New reads the log once and orders what it says.
func New(log *fleet.Log) (*Oracle, error) {
	o := &Oracle{log: log, replays: map[ID]bool{}, first: map[ID]bool{}}
	numbers := map[string]uint32{}
	ids := 0
	err := log.Scan(func(place int64, s *fleet.Sent) error {
		ids++
		if s.ID.IsZero() {
			return errors.New("read send log: an entry without ID")
		}
		if !s.ReplayOf.IsZero() {
			o.replays[ID(s.ReplayOf)] = true
		}
		if s.Class != "" {
			o.refused = append(o.refused, sentRefused{id: ID(s.ID), place: place, class: string(s.Class)})
			return nil
		}
		n, ok := numbers[s.Message.DeviceID]
		if !ok {
			if len(o.devices) == math.MaxUint32 {
				return errors.New("read send log: too many devices")
			}
			n = uint32(len(o.devices))
			numbers[s.Message.DeviceID] = n
			o.devices = append(o.devices, s.Message.DeviceID)
		}
		o.records = append(o.records, sentRecord{id: ID(s.ID), timeUS: s.Message.Time.UnixMicro(), place: place, device: n})
		return nil
	})
	if err != nil {
		return nil, err
	}
	o.order(numbers)
	return o, o.checkIDs()
}

// order numbers the devices by name and sorts the entries.
func (o *Oracle) order(numbers map[string]uint32) {
	slices.Sort(o.devices)
	rank := make([]uint32, len(o.devices))
	for i, name := range o.devices {
		rank[numbers[name]] = uint32(i)
	}
	for i := range o.records {
		o.records[i].device = rank[o.records[i].device]
	}
	slices.SortFunc(o.records, func(a, b sentRecord) int {
		return cmp.Or(cmp.Compare(a.device, b.device), cmp.Compare(a.timeUS, b.timeUS), a.id.Compare(b.id))
	})
	slices.SortFunc(o.refused, func(a, b sentRefused) int { return a.id.Compare(b.id) })
}

// checkIDs finds entries that are in the log twice; they would be counted
// twice.
func (o *Oracle) checkIDs() error {
	ids := make([]ID, 0, o.Entries())
	for i := range o.records {
		ids = append(ids, o.records[i].id)
	}
	for i := range o.refused {
		ids = append(ids, o.refused[i].id)
	}
	slices.SortFunc(ids, ID.Compare)
	for i := 1; i < len(ids); i++ {
		if ids[i] == ids[i-1] {
			return fmt.Errorf("read send log: entry %s is in it twice", ids[i])
		}
	}
	return nil
}

// Entries returns the number of entries in the log.
func (o *Oracle) Entries() int { return len(o.records) + len(o.refused) }

// Devices returns the number of devices with a valid record.
func (o *Oracle) Devices() int { return len(o.devices) }

// groups yields the records of one device and time together, in stream order;
// groups are ordered by device name in bytes, then time.
func (o *Oracle) groups() iter.Seq[[]sentRecord] {
	return func(yield func([]sentRecord) bool) {
		for rest := o.records; len(rest) > 0; {
			n := 1
			for n < len(rest) && rest[n].device == rest[0].device && rest[n].timeUS == rest[0].timeUS {
				n++
			}
			if !yield(rest[:n]) {
				return
			}
			rest = rest[n:]
		}
	}
}

// prefer puts first, of the records of a device and time, the one that counts:
// the first eligible one in the order of the stream, else the first.
func (o *Oracle) prefer(rules Rules) error {
	for group := range o.groups() {
		if len(group) == 1 {
			continue
		}
		takesPart := make(map[ID]bool, len(group))
		for _, r := range group {
			s, err := o.log.At(r.place)
			if err != nil {
				return err
			}
			row := rowOf(&s)
			takesPart[r.id] = rules.eligible(&row)
		}
		slices.SortFunc(group, func(a, b sentRecord) int {
			switch {
			case o.first[a.id] != o.first[b.id]:
				if o.first[a.id] {
					return -1
				}
				return 1
			case takesPart[a.id] && !takesPart[b.id]:
				return -1
			case takesPart[b.id] && !takesPart[a.id]:
				return 1
			}
			return a.id.Compare(b.id)
		})
	}
	return nil
}

// Positions yields the rows that the table positions must hold, ordered by
// device ID in bytes and device time. The row's ID is the entry it comes from.
func (o *Oracle) Positions() iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for group := range o.groups() {
			s, err := o.log.At(group[0].place)
			if err != nil {
				yield(Row{}, err)
				return
			}
			row := rowOf(&s)
			if row.Attributes, err = json.Marshal(attributesOf(&s.Message)); !yield(row, err) {
				return
			}
		}
	}
}

// rowOf returns the row that an entry makes, apart from its attributes.
func rowOf(s *fleet.Sent) Row {
	m := &s.Message
	of := ID(s.ID) // the stream time is that of the entry, or of the one it is a replay of
	if !s.ReplayOf.IsZero() {
		of = ID(s.ReplayOf)
	}
	return Row{
		Entry: ID(s.ID), Device: m.DeviceID, Codec: m.Codec,
		TimeUS: m.Time.UnixMicro(), IngestedUS: int64(of.Ms) * 1000,
		Latitude: m.Latitude, Longitude: m.Longitude,
		Altitude: float32(m.Altitude), Angle: float32(m.Angle), Speed: float32(m.Speed),
		Satellites: int16(m.Satellites), Priority: int16(m.Priority),
	}
}
