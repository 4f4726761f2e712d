package demo

import (
	"fmt"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
)

// Auto is the speed at which the whole input takes pace, whatever its length.
const Auto = -1

// pace is how long an input takes at the automatic speed.
const pace = 40 * time.Second

// Input says what to feed.
type Input struct {
	Tracks []string    // recorded tracks, or none for the simulated rally
	Order  fleet.Order // of recorded tracks
	Speed  float64     // multiple of the recorded speed; 0 as fast as possible, Auto
	Seed   uint64      // of the simulated fleet
	Junk   float64     // share of its entries that are no valid record
}

// Load is an input, ready to be fed.
type Load struct {
	Name    string
	Entries int64
	Devices int
	Speed   float64 // in use
	source  func() (fleet.Source, error)
}

// Open reads the input and measures it.
func (in Input) Open() (*Load, error) {
	if len(in.Tracks) > 0 {
		tracks, err := fleet.ReadTracks(in.Tracks...)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("%d track files", len(in.Tracks))
		return NewLoad(name, in.Speed, func() (fleet.Source, error) { return tracks.Replay(in.Order), nil })
	}
	profile := fleet.Rally(in.Seed)
	profile.Junk = in.Junk
	return NewLoad(profile.Name+", "+profile.About, in.Speed, func() (fleet.Source, error) { return profile.Source() })
}

// NewLoad measures what source yields; each call of source begins again.
func NewLoad(name string, speed float64, source func() (fleet.Source, error)) (*Load, error) {
	l := &Load{Name: name, Speed: speed, source: source}
	items, err := source()
	if err != nil {
		return nil, err
	}
	devices := map[string]struct{}{}
	var span time.Duration
	for it, ok := items.Next(); ok; it, ok = items.Next() {
		l.Entries++
		span = it.At
		if it.Junk == nil {
			devices[it.Message.DeviceID] = struct{}{}
		}
	}
	l.Devices = len(devices)
	if speed == Auto {
		l.Speed = max(1, span.Seconds()/pace.Seconds())
	}
	return l, nil
}
