package fleet

import (
	"time"
)

// incident is what befalls a device during a leg.
type incident uint8

const (
	parked incident = iota
	gap
	overtake
	lostAck
	twin
	badClock
	noFix
	uneventful
)

// incidents returns the shares in the order of the constants.
func (p *Profile) incidents() [uneventful]float64 {
	return [uneventful]float64{p.Parked, p.Gaps, p.Overtakes, p.LostAcks, p.Twins, p.BadClocks, p.NoFixes}
}

// plan is what a device does in one leg. From and until lie within it with
// room for what follows the incident.
type plan struct {
	incident    incident
	from, until int     // ticks of the incident
	shape       uint64  // random bits for its details
	stop, start int     // ticks at which the vehicle stands still
	pace        float64 // metres a second while it moves
}

func (s *Simulation) plan(d, leg int) plan {
	r := func(salt uint64) uint64 { return hash(s.p.Seed, uint64(d), uint64(leg), salt) }
	pl := plan{incident: uneventful, shape: r(saltShape)}
	dice := uniform(r(saltPlan))
	for i, share := range s.p.incidents() {
		if dice -= share; dice < 0 {
			pl.incident = incident(i)
			break
		}
	}
	place := r(saltPlace)
	pl.from = between(place, 5, 30)
	pl.until = pl.from + between(place>>16, 4, 60)
	stop := r(saltStop)
	if stop%4 == 0 {
		pl.stop = between(stop>>8, 0, legTicks-1)
		pl.start = min(legTicks, pl.stop+between(stop>>16, 5, 40))
	}
	pl.pace = 6 + 26*uniform(r(saltPace))
	if pl.incident == parked {
		pl.stop, pl.start = 0, legTicks
	}
	return pl
}

// travelled returns how far the vehicle comes in the first n ticks of the leg.
func (pl *plan) travelled(n int, interval time.Duration) float64 {
	standing := max(0, min(n, pl.start)-pl.stop)
	return pl.pace * float64(n-standing) * interval.Seconds()
}

// vehicle is one device at one of its ticks.
type vehicle struct {
	s         *Simulation
	d         int
	at        time.Duration
	leg, tick int
	interval  time.Duration
	plan      plan
}

// report adds what the device sends at this tick to what is due.
func (v *vehicle) report() {
	pl := &v.plan
	inside := v.tick >= pl.from && v.tick < pl.until
	switch {
	case pl.incident == parked && v.tick%10 != 0:
		// A parked tracker wakes up now and then only.
	case pl.incident == gap && inside:
		// Out of coverage: the records wait in the tracker.
	case pl.incident == gap && v.tick == pl.until:
		v.burst(pl.from)
	case pl.incident == overtake && (v.tick == pl.from || v.tick == pl.from+1):
		// Held back, until something more urgent opens the connection.
	case pl.incident == overtake && v.tick == pl.from+2:
		urgent := v.record(v.tick)
		urgent.Priority = 1 + int(pl.shape%2)
		v.send(urgent)
		v.frame(v.tick-1, v.tick-2)
	case pl.incident == lostAck && v.tick == pl.until:
		v.frame(v.tick-1, max(pl.from, v.tick-frameRecords))
		v.frame(v.tick, v.tick)
	case pl.incident == twin && inside:
		v.frame(v.tick, v.tick)
		v.send(v.twin())
	default:
		v.frame(v.tick, v.tick)
	}
}

// burst sends what was buffered since tick from, newest first inside each
// frame. Some trackers send the newest frame first, some the oldest. One in
// four first frames is sent twice because its ack was lost.
func (v *vehicle) burst(from int) {
	repeat := v.plan.shape%4 == 0
	first := true
	send := func(newest, oldest int) {
		v.frame(newest, oldest)
		if first && repeat {
			v.frame(newest, oldest)
		}
		first = false
	}
	if v.plan.shape>>2%2 == 0 {
		for newest := v.tick; newest >= from; newest -= frameRecords {
			send(newest, max(from, newest-frameRecords+1))
		}
		return
	}
	for oldest := from; oldest <= v.tick; oldest += frameRecords {
		send(min(v.tick, oldest+frameRecords-1), oldest)
	}
}

// frame sends the records of the ticks from newest down to oldest.
func (v *vehicle) frame(newest, oldest int) {
	for t := newest; t >= oldest; t-- {
		v.send(v.record(t))
	}
}

func (v *vehicle) send(m Message) {
	v.s.due = append(v.s.due, Item{At: v.at, Message: m})
}

// record returns what the device recorded at a tick of this leg, now or before.
func (v *vehicle) record(tick int) Message {
	pl := &v.plan
	at := v.at - time.Duration(v.tick-tick)*v.interval
	seq := v.leg*legTicks + tick
	standing := tick >= pl.stop && tick < pl.start
	metres := v.s.distance[v.d] + pl.travelled(tick, v.interval)
	pace, status := pl.pace, ignitionOn
	if standing {
		pace = 0
	}
	if pl.incident == parked {
		status = ignitionOff
	}
	place := v.s.course.at(metres, pace)
	us := v.s.clock(at)
	if tick >= pl.from && tick < pl.until {
		switch pl.incident {
		case noFix:
			place = fix{heading: place.heading}
		case badClock:
			us = v.wrongTime(seq)
		}
	}
	return place.message(DeviceID(v.s.p.First+v.d), us, seq, int64(metres), status)
}

// twin returns a record with the device and time of the one at this tick that says
// something else: only the first of the two counts.
func (v *vehicle) twin() Message {
	m := v.record(v.tick)
	m.Latitude = roundTo(m.Latitude+0.0005, 1e7)
	m.Speed++
	m.Attributes[0].Number += 1_000_000_000 // the odometer
	return m
}

// wrongTime returns what a clock shows that was never set (it counts from 1970), or
// whose date has a week number too many: the records stay apart.
func (v *vehicle) wrongTime(seq int) int64 {
	if v.plan.shape%2 == 0 {
		return int64(seq+1) * v.interval.Milliseconds() * 1000
	}
	ahead := time.Date(2076, time.March, 1, 0, 0, 0, 0, time.UTC)
	return ahead.UnixMicro() + int64(seq)*v.interval.Milliseconds()*1000
}
