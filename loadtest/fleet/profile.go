package fleet

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Profile describes a simulated fleet. Shares run from 0 to 1. The shares of
// incidents (Gaps to NoFixes) are shares of a device's legs, a leg being 100 of
// its reporting intervals, with at most one incident each; they add up to no
// more than 1.
type Profile struct {
	Name     string        // shown in reports
	About    string        // one sentence for lists
	Seed     uint64        // of everything random
	Start    time.Time     // device time at the beginning of the run
	Duration time.Duration // of the run in device time
	Devices  int
	First    int           // number of the first device, see DeviceID
	Interval time.Duration // between two fixes of a device under way
	Slow     float64       // share of devices that report every tenth interval only
	Skew     float64       // s of Zipf's law: the device of rank k reports every k^s intervals; 0 means all alike

	Parked    float64 // ignition off: the device stands and reports every tenth interval
	Gaps      float64 // no coverage: buffered fixes follow in frames, newest first
	Overtakes float64 // a high-priority record is sent before the ordinary ones it follows
	LostAcks  float64 // a whole frame is sent again
	Twins     float64 // a second, different record with the device and time of the one before
	BadClocks float64 // some fixes carry 1970 or a year far ahead
	NoFixes   float64 // some fixes have the position (0, 0)

	Hot   float64 // share of all records that one more device sends
	Junk  float64 // share of all entries that are no valid record
	Limit int     // at most this many items; 0 means no limit
}

// The start of the named profiles: a fixed time in the past, so that two runs
// of one profile and seed send the same bytes.
var defaultStart = time.Date(2025, time.September, 13, 8, 0, 0, 0, time.UTC)

// Rally returns the default of the demo: 100 vehicles on one course at 1 Hz with
// everything that happens to trackers, about 200,000 records.
func Rally(seed uint64) Profile {
	return Profile{
		Name:     "rally",
		About:    "100 vehicles on one course at 1 Hz with stops, coverage gaps, lost acks and bad clocks",
		Seed:     seed,
		Start:    defaultStart,
		Duration: 2000 * time.Second,
		Devices:  100,
		Interval: time.Second,
		Gaps:     0.12, Overtakes: 0.06, LostAcks: 0.08, Twins: 0.03, BadClocks: 0.01, NoFixes: 0.04,
	}
}

// City returns a mixed fleet: most devices report every ten seconds, many are
// parked.
func City(seed uint64) Profile {
	return Profile{
		Name:     "city",
		About:    "1,000 vehicles, four in five at 0.1 Hz, ignition on and off",
		Seed:     seed,
		Start:    defaultStart,
		Duration: 30 * time.Minute,
		Devices:  1000,
		Interval: time.Second,
		Slow:     0.8,
		Parked:   0.3, Gaps: 0.1, Overtakes: 0.03, LostAcks: 0.05, Twins: 0.01, BadClocks: 0.01, NoFixes: 0.05,
	}
}

// HotDevice returns a fleet of which one device sends half of all records.
func HotDevice(seed uint64) Profile {
	return Profile{
		Name:     "hot",
		About:    "100 vehicles at 1 Hz and one that sends half of all records",
		Seed:     seed,
		Start:    defaultStart,
		Duration: 500 * time.Second,
		Devices:  100,
		Interval: time.Second,
		Gaps:     0.1, LostAcks: 0.05, Twins: 0.02,
		Hot: 0.5,
	}
}

// Polluted returns a rally with junk among the records.
func Polluted(seed uint64) Profile {
	p := Rally(seed)
	p.Name = "junk"
	p.About = "the rally with one entry in fifty that is no valid record"
	p.Duration = 500 * time.Second
	p.Junk = 0.02
	return p
}

// Steady returns devices that together send rate records a second, evenly and
// without incidents: the load for measuring rates and latencies.
func Steady(seed uint64, devices int, rate float64, duration time.Duration) Profile {
	return Profile{
		Name:     "steady",
		About:    "an even load without incidents",
		Seed:     seed,
		Start:    defaultStart,
		Duration: duration,
		Devices:  devices,
		Interval: time.Duration(float64(devices) / rate * float64(time.Second)),
	}
}

// Skewed returns devices that together send rate records a second by Zipf's law, as
// fleets do in which few vehicles report most.
func Skewed(seed uint64, devices int, rate, s float64, duration time.Duration) Profile {
	p := Steady(seed, devices, rate, duration)
	p.Name, p.About, p.Skew = "skewed", "an uneven load without incidents: few devices send most", s
	perInterval := 0.0
	for d := range devices {
		perInterval += 1 / float64(p.every(d))
	}
	p.Interval = time.Duration(perInterval / rate * float64(time.Second))
	return p
}

// every is after how many intervals a device reports, but for slow ones.
func (p *Profile) every(d int) int {
	return max(1, int(math.Round(math.Pow(float64(d+1), p.Skew))))
}

// Profiles returns the named profiles with the given seed, in the order in which
// they are shown.
func Profiles(seed uint64) []Profile {
	return []Profile{
		Rally(seed), City(seed), HotDevice(seed), Polluted(seed),
		Steady(seed, 1000, 1000, time.Minute),
	}
}

// ByName returns the named profile with the given seed.
func ByName(name string, seed uint64) (Profile, error) {
	all := Profiles(seed)
	i := slices.IndexFunc(all, func(p Profile) bool { return p.Name == name })
	if i < 0 {
		var names []string
		for _, p := range all {
			names = append(names, p.Name)
		}
		return Profile{}, fmt.Errorf("profile %q: want one of %q", name, names)
	}
	return all[i], nil
}

// Validate tells every problem of the profile at once.
func (p Profile) Validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("profile "+format, args...))
		}
	}
	require(p.Devices >= 1 && p.Devices <= maxDevices, "devices %d: want 1 to %d", p.Devices, maxDevices)
	require(p.Interval >= time.Millisecond, "interval %s: want at least 1ms", p.Interval)
	require(p.Duration > 0, "duration %s: want more than 0", p.Duration)
	require(!p.Start.IsZero(), "start: want a time")
	require(p.Limit >= 0, "limit %d: want 0 or more", p.Limit)
	incidents := p.incidents()
	sum := 0.0
	for _, s := range append(incidents[:], p.Slow, p.Hot, p.Junk) {
		require(s >= 0 && s <= 1, "share %v: want 0 to 1", s)
	}
	for _, s := range incidents {
		sum += s
	}
	require(sum <= 1+1e-9, "incidents: their shares add up to %v, want at most 1", math.Round(sum*1000)/1000)
	require(p.Skew >= 0 && p.Skew <= 3, "skew %v: want 0 to 3", p.Skew)
	require(p.Hot < 1, "hot share 1: want less, the other devices send the rest")
	require(p.Junk < 1, "junk share 1: want less, the devices send the rest")
	return errors.Join(errs...)
}

// Source returns the simulated fleet that the profile describes.
func (p Profile) Source() (*Simulation, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return newSimulation(p), nil
}
