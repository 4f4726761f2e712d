package telemetry

import (
	"hash/maphash"
	"math/bits"
)

// keySet finds duplicate keys. One table serves every object of a payload: an
// entry is a key together with the number of its object. Objects are numbered
// on from payload to payload, so that nothing has to be cleared in between.
// The hash is seeded, so that no publisher can predict collisions.
type keySet struct {
	slots  []keySlot
	shift  uint // 64 minus the bits of the table's index
	used   int  // slots taken since base
	base   uint32
	object uint32
	seed   maphash.Seed
	odd    uint64
}

// keySlot holds the position of its key: the key itself would pin the payload.
type keySlot struct {
	object uint32
	hash   uint32
	at     int32 // in the payload, or in the unescaped text when negative (^at)
	length int32
}

const (
	minKeySlots  = 64
	keepKeySlots = 4096 // a table beyond this is dropped after the payload that needed it
)

func newKeySet() keySet {
	s := keySet{seed: maphash.MakeSeed()}
	s.odd = maphash.String(s.seed, "") | 1
	s.resize(minKeySlots)
	return s
}

func (s *keySet) resize(n int) {
	s.slots = make([]keySlot, n)
	s.shift = uint(64 - bits.TrailingZeros(uint(n)))
}

// start forgets the keys of the payload before.
func (s *keySet) start() {
	// A payload of 1 MiB has fewer than 2^20 objects; stay clear of the wrap.
	if s.object > 1<<32-1<<30 || len(s.slots) > keepKeySlots {
		s.resize(minKeySlots)
		s.object = 0
	}
	s.object++
	s.base = s.object
	s.used = 0
}

// next returns the number of a new object.
func (s *keySet) next() uint32 {
	s.object++
	return s.object
}

func (s *keySet) hash(key string) uint64 {
	if len(key) > 8 {
		return maphash.String(s.seed, key) * s.odd
	}
	h := uint64(len(key))
	for i := range len(key) {
		h = h<<8 | uint64(key[i])
	}
	return (h ^ h>>29) * s.odd
}

// add reports whether key is new in object; at is where it begins. src and
// escaped are the texts that positions refer to.
func (s *keySet) add(object uint32, key string, at int, src string, escaped []byte) bool {
	if s.used*2 >= len(s.slots) {
		s.grow(src, escaped)
	}
	hash := s.hash(key) + uint64(object)*0x9e3779b97f4a7c15
	mask := len(s.slots) - 1
	for i := int(hash >> s.shift); ; i = (i + 1) & mask {
		slot := &s.slots[i]
		if slot.object < s.base {
			*slot = keySlot{object, uint32(hash >> 32), int32(at), int32(len(key))}
			s.used++
			return true
		}
		if slot.hash == uint32(hash>>32) && slot.object == object && slot.key(src, escaped) == key {
			return false
		}
	}
}

func (k *keySlot) key(src string, escaped []byte) string {
	if k.at < 0 {
		return view(escaped[^k.at : ^k.at+k.length])
	}
	return src[k.at : k.at+k.length]
}

func (s *keySet) grow(src string, escaped []byte) {
	old := s.slots
	s.resize(len(old) * 4)
	mask := len(s.slots) - 1
	for _, slot := range old {
		if slot.object < s.base {
			continue
		}
		hash := s.hash(slot.key(src, escaped)) + uint64(slot.object)*0x9e3779b97f4a7c15
		i := int(hash >> s.shift)
		for s.slots[i].object >= s.base {
			i = (i + 1) & mask
		}
		s.slots[i] = slot
	}
}
