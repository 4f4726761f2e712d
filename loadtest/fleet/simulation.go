package fleet

import "time"

// maxDevices is the largest fleet.
const maxDevices = 10_000_000

// legTicks is the length of a leg in reporting intervals of the device. An
// incident lies within one leg, so that the leg and its number are all that is
// needed to tell what a device does.
const legTicks = 100

// frameRecords is how many buffered records a tracker puts in one frame.
const frameRecords = 16

// Simulation is a simulated fleet. What a device does in a leg is computed from
// a hash of seed, device and leg; the only memory it has is how far it came.
type Simulation struct {
	p        Profile
	course   course
	distance []float64 // of each device in metres, at the beginning of its leg

	tick   int // reporting interval of the fleet
	ticks  int
	device int // next in this tick

	due    []Item // of one device at one tick
	next   int
	sent   int
	hot    hotDevice
	junked int     // junk items so far
	debt   float64 // junk items due, not yet a whole one
}

func newSimulation(p Profile) *Simulation {
	s := &Simulation{
		p:        p,
		course:   newCourse(p.Seed),
		distance: make([]float64, p.Devices),
		ticks:    int((p.Duration + p.Interval - 1) / p.Interval),
	}
	for d := range s.distance {
		s.distance[d] = s.course.length * uniform(hash(p.Seed, uint64(d), 0, saltGrid))
	}
	s.hot = hotDevice{id: DeviceID(p.First + p.Devices), ratio: p.Hot / (1 - p.Hot)}
	return s
}

// Next implements Source.
func (s *Simulation) Next() (Item, bool) {
	for s.next >= len(s.due) {
		if !s.advance() {
			return Item{}, false
		}
	}
	if s.p.Limit > 0 && s.sent >= s.p.Limit {
		return Item{}, false
	}
	it := s.due[s.next]
	s.next++
	s.sent++
	return it, true
}

// advance fills due with what the next device of the fleet sends.
func (s *Simulation) advance() bool {
	if s.tick >= s.ticks {
		return false
	}
	s.due, s.next = s.due[:0], 0
	d := s.device
	at := time.Duration(s.tick)*s.p.Interval + s.p.Interval*time.Duration(d)/time.Duration(s.p.Devices)
	if at < s.p.Duration {
		s.report(d, at)
		s.others(at)
	}
	if s.device++; s.device == s.p.Devices {
		s.device = 0
		s.tick++
	}
	return true
}

// report adds what device d sends at this tick.
func (s *Simulation) report(d int, at time.Duration) {
	n, every := s.tick, s.p.every(d)
	if s.slow(d) {
		every *= 10
	}
	if n%every != d%every {
		return
	}
	n /= every
	v := vehicle{
		s: s, d: d, at: at,
		leg: n / legTicks, tick: n % legTicks,
		interval: time.Duration(every) * s.p.Interval,
	}
	v.plan = s.plan(d, v.leg)
	v.report()
	if v.tick == legTicks-1 {
		s.distance[d] += v.plan.travelled(legTicks, v.interval)
	}
}

// others adds what the hot device and broken publishers send beside the
// records in due.
func (s *Simulation) others(at time.Duration) {
	own := len(s.due)
	for range own {
		s.due = s.hot.append(s, s.due, at)
	}
	s.debt += float64(len(s.due)) * s.p.Junk / (1 - s.p.Junk)
	for ; s.debt >= 1; s.debt-- {
		r := hash(s.p.Seed, uint64(s.junked), 0, saltJunk)
		j := newJunk(junkKind(s.junked), DeviceID(s.p.First+int(r%uint64(s.p.Devices))), s.clock(at), r)
		s.due = append(s.due, Item{At: at, Junk: j})
		s.junked++
	}
}

// slow reports whether device d reports every tenth interval only.
func (s *Simulation) slow(d int) bool {
	return s.p.Slow > 0 && uniform(hash(s.p.Seed, uint64(d), 0, saltSlow)) < s.p.Slow
}

// clock returns the device time at a moment of the run, in microseconds, to the
// millisecond that trackers have.
func (s *Simulation) clock(at time.Duration) int64 {
	return s.p.Start.Add(at).UnixMilli() * 1000
}

// DeviceID returns the IMEI of the simulated device with the given number, check
// digit included.
func DeviceID(n int) string {
	const firstTAC = 35630704
	var b [15]byte
	rest := firstTAC*1_000_000 + uint64(n)
	for i := 13; i >= 0; i-- {
		b[i] = byte('0' + rest%10)
		rest /= 10
	}
	sum := 0
	for i := range 14 {
		digit := int(b[i] - '0')
		if i%2 == 1 {
			if digit *= 2; digit > 9 {
				digit -= 9
			}
		}
		sum += digit
	}
	b[14] = byte('0' + (10-sum%10)%10)
	return string(b[:])
}

// hotDevice sends ratio records for each record of the others.
type hotDevice struct {
	id    string
	ratio float64
	debt  float64
	last  int64 // device time, so that no two of its records have the same
	seq   int
}

func (h *hotDevice) append(s *Simulation, due []Item, at time.Duration) []Item {
	for h.debt += h.ratio; h.debt >= 1; h.debt-- {
		h.last = max(s.clock(at), h.last+1000)
		metres := s.course.length / 3600 * time.Duration(h.last-s.clock(0)).Seconds() * 1000
		pos := s.course.at(metres, s.course.length/3600)
		due = append(due, Item{At: at, Message: pos.message(h.id, h.last, h.seq, int64(metres), ignitionOn)})
		h.seq++
	}
	return due
}
