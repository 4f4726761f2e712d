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
	l := &Load{Speed: in.Speed}
	if len(in.Tracks) > 0 {
		tracks, err := fleet.ReadTracks(in.Tracks...)
		if err != nil {
			return nil, err
		}
		l.Name = fmt.Sprintf("%d track files", len(in.Tracks))
		l.source = func() (fleet.Source, error) { return tracks.Replay(in.Order), nil }
	} else {
		profile := fleet.Rally(in.Seed)
		l.Name = profile.Name + ", " + profile.About
		l.source = func() (fleet.Source, error) { return profile.Source() }
	}
	source, err := l.source()
	if err != nil {
		return nil, err
	}
	devices := map[string]struct{}{}
	var span time.Duration
	for it, ok := source.Next(); ok; it, ok = source.Next() {
		l.Entries++
		span = it.At
		if it.Junk == nil {
			devices[it.Message.DeviceID] = struct{}{}
		}
	}
	l.Devices = len(devices)
	if in.Speed == Auto {
		l.Speed = max(1, span.Seconds()/pace.Seconds())
	}
	return l, nil
}
