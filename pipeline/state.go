package pipeline

import (
	"hash/maphash"
	"math"
	"strings"

	"github.com/trmtracking/processor/internal/geofence"
)

// device is the state of one device: its last position that takes part in state.
// The tables can restore it, so it may be evicted whenever nothing uncommitted
// depends on it. It fills one cache line and has no pointers: with a million
// devices every record fetches one, and the garbage collector would visit all of
// them.
type device struct {
	watermark  int64 // device time of the last position in microseconds, or never
	lat, lon   float64
	batch      uint64 // the last batch with records of it; 0 for none
	touch      int32  // its index in that batch's deltas
	next       int32  // slot of the next device with the same hash, or -1
	generation uint32 // of the shard's state; older generations are invalid
	shard      uint16
	settled    bool  // with rules by which other fixes decide: all that has an influence on what is derived from the last position is known
	speed      uint8 // of the last position, as a fix has it
	size       uint8 // length of the ID in bytes, at most shortID+1, used and unheard; 0 in a slot that is free
	id         [shortID]byte
}

// shortID is the maximum length of an ID that a device holds itself, enough for
// every IMEI; longer ones are in state.long.
const shortID = 15

const (
	// used is set in a device's size since it was found, until evict passes it.
	used = 1 << 7
	// unheard is set in the size of a device that was loaded ahead, until it sends.
	unheard = 1 << 6
)

const never = math.MinInt64

func (d *device) length() uint8 { return d.size &^ (used | unheard) }

// fix is the last position of a device that has one.
func (d *device) fix() geofence.Fix {
	return geofence.Fix{TimeUS: d.watermark, Latitude: d.lat, Longitude: d.lon, Speed: d.speed}
}

func (d *device) moveTo(f geofence.Fix) {
	d.watermark, d.lat, d.lon, d.speed = f.TimeUS, f.Latitude, f.Longitude, f.Speed
}

// state caches one worker's devices: bounded (CLOCK eviction), and invalidated
// per shard in O(1) by advancing the shard's generation. One goroutine owns it.
//
// Devices lie in blocks that never move and are found by the hash of their ID. A
// list in order of use would touch three more cache lines per record
// (docs/performance.md, "What was tried").
type state struct {
	hash        func(id string) uint64
	slots       map[uint64]int32 // hash of an ID to the first slot with it
	blocks      []*[blockSize]device
	long        map[int32]string // IDs that do not fit, by slot
	free        []int32          // slots that hold nothing
	len         int
	max         int
	clockHand   int32    // the slot that evict visits next
	generations []uint32 // of the shards
	evicted     func()
	drops       uint64 // devices evicted so far
	// open are devices of which it is not known what counts at held borders, kept what is
	// known of others there, as long as their last position alone does not show it.
	open map[*device]geofence.Open
	kept map[*device]geofence.Kept
	// bereft are devices of which a crossing is recorded behind their last position, with the
	// device time of its fix: up to there only the tables know where they were.
	bereft map[*device]int64
}

const blockSize = 1024

func newState(maxDevices, shards int, evicted func()) *state {
	seed := maphash.MakeSeed()
	return &state{
		hash: func(id string) uint64 { return maphash.String(seed, id) }, slots: make(map[uint64]int32), long: make(map[int32]string),
		max: maxDevices, generations: make([]uint32, shards), evicted: evicted, open: make(map[*device]geofence.Open), kept: make(map[*device]geofence.Kept), bereft: make(map[*device]int64),
	}
}

func (s *state) at(slot int32) *device { return &s.blocks[slot/blockSize][slot%blockSize] }

// is reports whether a slot holds the device with an ID.
func (s *state) is(slot int32, d *device, id string) bool {
	if d.length() > shortID {
		return s.long[slot] == id
	}
	return string(d.id[:d.length()]) == id
}

// id returns the ID of the device in a slot.
func (s *state) id(slot int32, d *device) string {
	if d.length() > shortID {
		return s.long[slot]
	}
	return string(d.id[:d.length()])
}

// get returns a device, valid or not, or nil.
func (s *state) get(id string) *device {
	slot, ok := s.slots[s.hash(id)]
	for ok && slot >= 0 {
		d := s.at(slot)
		if s.is(slot, d, id) {
			return d
		}
		slot = d.next
	}
	return nil
}

// find returns a device with valid state, or nil. The pointer is valid until evict.
func (s *state) find(id string, shard int) *device {
	d := s.get(id)
	if d == nil || d.generation != s.generations[shard] || int(d.shard) != shard {
		return nil
	}
	d.size |= used
	return d
}

// learn stores the last position of a device that the tables hold; its time is never
// if they hold none.
func (s *state) learn(id string, shard int, last geofence.Fix) *device {
	d := s.get(id)
	if d == nil {
		d = s.add(id)
	}
	d.size &^= used | unheard
	d.shard, d.generation, d.batch, d.settled = uint16(shard), s.generations[shard], 0, false
	d.moveTo(last)
	delete(s.kept, d)
	delete(s.bereft, d)
	return d
}

func (s *state) add(id string) *device {
	if len(s.free) == 0 {
		first := int32(len(s.blocks) * blockSize)
		s.blocks = append(s.blocks, new([blockSize]device))
		for slot := first + blockSize - 1; slot >= first; slot-- {
			s.free = append(s.free, slot)
		}
	}
	slot := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	d := s.at(slot)
	d.size, d.next = uint8(min(len(id), shortID+1)), -1
	if len(id) > shortID {
		s.long[slot] = strings.Clone(id)
	} else {
		copy(d.id[:], id)
	}
	hash := s.hash(id)
	if other, ok := s.slots[hash]; ok {
		d.next = other
	}
	s.slots[hash] = slot
	s.len++
	return d
}

// drop frees a slot.
func (s *state) drop(slot int32) {
	d := s.at(slot)
	hash := s.hash(s.id(slot, d))
	delete(s.long, slot)
	switch first := s.slots[hash]; {
	case first != slot:
		before := s.at(first)
		for before.next != slot {
			before = s.at(before.next)
		}
		before.next = d.next
	case d.next >= 0:
		s.slots[hash] = d.next
	default:
		delete(s.slots, hash)
	}
	delete(s.open, d)
	delete(s.kept, d)
	delete(s.bereft, d)
	*d = device{}
	s.free = append(s.free, slot)
	s.len--
	s.drops++
}

// known returns the number of devices of a shard in memory.
func (s *state) known(shard int) int {
	n := 0
	for _, block := range s.blocks {
		for i := range block {
			if d := &block[i]; d.size > 0 && int(d.shard) == shard && d.generation == s.generations[shard] {
				n++
			}
		}
	}
	return n
}

// invalidate invalidates all devices of a shard.
func (s *state) invalidate(shard int) {
	s.generations[shard]++
	for d := range s.kept { // or a device that sends no more would keep its set of fences for ever
		if int(d.shard) == shard {
			delete(s.kept, d)
		}
	}
}

// evict keeps the bound, but spares devices that batches after the committed one
// depend on. It visits the slots in turn: one used since the last visit gets a
// second chance.
func (s *state) evict(committed uint64) {
	slots := int32(len(s.blocks) * blockSize)
	for left := 2 * slots; s.len > s.max && left > 0; left-- {
		slot := s.clockHand
		s.clockHand = (s.clockHand + 1) % slots
		switch d := s.at(slot); {
		case d.size == 0, d.batch > committed:
		case d.size&used != 0 && d.generation == s.generations[d.shard]:
			d.size &^= used
		default:
			s.drop(slot)
			s.evicted()
		}
	}
}
