package pipeline

import (
	"math"
	"strings"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/trmtracking/processor/internal/geofence"
)

// device is what is known of one device: its last position that takes part in
// state. Everything in it can be derived from the tables, so it may be
// forgotten whenever nothing uncommitted rests on it.
type device struct {
	id        string
	shard     int
	era       uint64 // of the shard's state; older ones are void
	watermark int64  // device time of the last position in microseconds, or math.MinInt64
	lat, lon  float64

	// What follows belongs to the batch that touched the device last.
	batch            uint64
	base             int64 // the watermark when that batch began
	baseLat, baseLon float64
	top              int64 // newest device time in that batch, of any record
	last             int32 // newest link of the device's records in that batch
	tangled          bool  // records came out of order in that batch
}

const never = math.MinInt64

// state is the devices of one worker: bounded, least recently used first out,
// and void per shard at a stroke. One goroutine owns it.
type state struct {
	devices *simplelru.LRU[string, *device]
	max     int
	eras    map[int]uint64
	evicted func()
}

func newState(maxDevices int, evicted func()) (*state, error) {
	// The bound is kept by evict, which knows what is committed.
	lru, err := simplelru.NewLRU[string, *device](math.MaxInt, nil)
	if err != nil {
		return nil, err
	}
	return &state{devices: lru, max: maxDevices, eras: make(map[int]uint64), evicted: evicted}, nil
}

// find returns a device that is known, or nil.
func (s *state) find(id string, shard int) *device {
	d, ok := s.devices.Get(id)
	if !ok || d.era != s.eras[shard] || d.shard != shard {
		return nil
	}
	return d
}

// learn notes what is stored of a device; never for a device without positions.
func (s *state) learn(id string, shard int, watermark int64, lat, lon float64) *device {
	d := &device{
		id: strings.Clone(id), shard: shard, era: s.eras[shard],
		watermark: watermark, lat: lat, lon: lon,
	}
	s.devices.Add(d.id, d)
	return d
}

// known is how many devices of a shard are in memory.
func (s *state) known(shard int) int {
	n := 0
	for _, d := range s.devices.Values() {
		if d.shard == shard && d.era == s.eras[shard] {
			n++
		}
	}
	return n
}

// fix is the last position of a device that has one.
func (d *device) fix() geofence.Fix {
	return geofence.Fix{TimeUS: d.watermark, Latitude: d.lat, Longitude: d.lon}
}

// void forgets all devices of a shard.
func (s *state) void(shard int) { s.eras[shard]++ }

// evict keeps the bound, but spares what batches after the committed one rest on.
func (s *state) evict(committed uint64) {
	for s.devices.Len() > s.max {
		_, d, ok := s.devices.GetOldest()
		if !ok || d.batch > committed {
			return
		}
		s.devices.RemoveOldest()
		s.evicted()
	}
}
