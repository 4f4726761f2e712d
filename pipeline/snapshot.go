package pipeline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A snapshot is the state of a shard's devices, which its owner leaves for the next one
// when it releases the shard: version and checksum, a header that says where it belongs
// (snapshotOf), and the devices. It holds exactly for the owner
// that acquires the epoch after that release, since nothing commits in between: it goes
// on as the last owner would have. Whatever else is found is refused, and devices are
// loaded from the tables, as after a kill.

const (
	// snapshotVersion is raised with the format, and whenever what the state of a device
	// means changes.
	snapshotVersion = 3
	// snapshotMaxBytes bounds a snapshot: devices that do not fit are loaded from the tables.
	snapshotMaxBytes = 1 << 20
	// snapshotWait is how long a release waits for the worker, which may be at work for other shards.
	snapshotWait = 250 * time.Millisecond
)

// snapshotOf is where a snapshot belongs. All of it is compared.
type snapshotOf struct {
	shard, shards int
	epoch         int64 // of the owner that left it
	fences        int64 // version of the set
	rules         telemetry.Eligibility
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const snapshotHeader = 1 + 4 // version, checksum of all that follows

func (o snapshotOf) append(b []byte) []byte {
	for _, n := range []int64{
		int64(o.shard), int64(o.shards), o.epoch, o.fences,
		o.rules.MaxFutureSkew.Microseconds(), o.rules.MaxPast.Microseconds(), int64(o.rules.MinSatellites), int64(o.rules.MaxSpeed),
	} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b
}

// snapshot returns the state of a shard's devices. Of none it says so: an owner that left
// nothing at all did not come to it.
func (s *state) snapshot(of snapshotOf) []byte {
	b := append(make([]byte, 0, 64<<10), snapshotVersion, 0, 0, 0, 0)
	b = of.append(b)
	for slot := range int32(len(s.blocks) * blockSize) {
		d := s.at(slot)
		if d.size == 0 || int(d.shard) != of.shard || d.generation != s.generations[of.shard] || d.watermark == never {
			continue
		}
		if until, bereft := s.bereft[d]; bereft && d.watermark < until {
			continue // loaded from the tables, with what is recorded behind it
		}
		id := s.id(slot, d)
		if len(id) > math.MaxUint8 || len(b)+deviceBytes+len(id) > snapshotMaxBytes {
			continue
		}
		_, open := s.open[d]
		_, kept := s.kept[d]
		flags := byte(0)
		if d.settled && !open && !kept {
			flags |= leftSettled
		}
		if d.size&unheard != 0 {
			flags |= leftUnheard
		}
		b = append(append(b, byte(len(id))), id...)
		b = binary.BigEndian.AppendUint64(b, uint64(d.watermark))
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(d.lat))
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(d.lon))
		b = append(b, d.speed, flags)
	}
	binary.BigEndian.PutUint32(b[1:], crc32.Checksum(b[snapshotHeader:], castagnoli))
	return b
}

// The flags of a device in a snapshot.
const (
	leftSettled = 1 << iota
	leftUnheard
)

const deviceBytes = 1 + 3*8 + 2 // and the ID

// restore learns the devices of a snapshot, as many as there is room for. If it belongs
// elsewhere, or is not whole, nothing is learned.
func (s *state) restore(b []byte, want snapshotOf) error {
	switch {
	case len(b) < snapshotHeader:
		return errors.New("it is cut off")
	case b[0] != snapshotVersion:
		return fmt.Errorf("it has version %d, not %d", b[0], snapshotVersion)
	case binary.BigEndian.Uint32(b[1:]) != crc32.Checksum(b[snapshotHeader:], castagnoli):
		return errors.New("its checksum is wrong")
	}
	b = b[snapshotHeader:]
	header := want.append(nil)
	if len(b) < len(header) || !bytes.Equal(b[:len(header)], header) {
		return errors.New("it belongs to another shard, epoch, set of fences or rules")
	}
	devices := b[len(header):]
	for b = devices; len(b) > 0; b = b[deviceBytes+int(b[0]):] {
		switch {
		case b[0] == 0:
			return errors.New("a device has no ID")
		case len(b) < deviceBytes+int(b[0]):
			return errors.New("its last device is cut off")
		}
	}
	for b = devices; len(b) > 0 && s.len < s.max; {
		size := int(b[0]) // a sum of bytes would be one, and overflow
		id := b[1 : 1+size]
		b = b[1+size:]
		d := s.learn(string(id), want.shard, geofence.Fix{
			TimeUS:   int64(binary.BigEndian.Uint64(b)),
			Latitude: math.Float64frombits(binary.BigEndian.Uint64(b[8:])), Longitude: math.Float64frombits(binary.BigEndian.Uint64(b[16:])),
			Speed: b[24],
		})
		d.settled = b[25]&leftSettled != 0
		if b[25]&leftUnheard != 0 {
			d.size |= unheard // the next owner registers it with its first record
		}
		b = b[deviceBytes-1:]
	}
	return nil
}

// Leave ends the work on a shard that was stopped and has nothing in flight, and returns
// the state of its devices for the next owner; nil if it is not known.
func (p *Pipeline) Leave(shard int) []byte {
	w, m := p.table.leave(shard)
	if w == nil {
		return nil
	}
	w.box.put(m)
	timer := time.NewTimer(snapshotWait)
	defer timer.Stop()
	select {
	case left := <-m.left:
		return left
	case <-timer.C:
		return nil
	case <-w.stopped:
	}
	select {
	case left := <-m.left: // before it stopped
		return left
	default:
	}
	if !w.drained {
		return nil
	}
	return w.leave(m.shard, m.grant)
}

// leave returns the worker of a shard and the message that ends its work there, nil if it is not owned.
func (t *table) leave(shard int) (*worker, message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.slots[shard]
	if !s.owned {
		return nil, message{}
	}
	return t.workers[s.worker], message{kind: leaving, shard: shard, grant: s.grant, left: make(chan []byte, 1)}
}

// snapshotOf is where the state of a shard belongs under an epoch.
func (w *worker) snapshotOf(shard int, epoch int64) snapshotOf {
	return snapshotOf{shard: shard, shards: w.cfg.Shards, epoch: epoch, fences: w.fences.now().Version, rules: w.cfg.Eligibility}
}

// leave returns the state of a shard under a grant.
func (w *worker) leave(shard int, grant uint64) []byte {
	t, ok := w.owned[shard]
	if !ok || t.grant != grant || w.uncommitted(shard) {
		return nil
	}
	left := w.state.snapshot(w.snapshotOf(shard, t.epoch))
	if left != nil {
		w.metrics.snapshot(snapshotLeft)
	}
	return left
}

// uncommitted reports whether the state of a shard is ahead of the tables.
func (w *worker) uncommitted(shard int) bool {
	of := func(p part) bool { return p.shard == shard }
	return slices.ContainsFunc(w.current.parts, of) || w.busy && slices.ContainsFunc(w.committing.parts, of)
}

// inherit learns what the last owner of a shard that is granted left.
func (w *worker) inherit(m *message) {
	if m.inherited == nil {
		if m.released {
			w.metrics.snapshot(snapshotMissing)
		}
		if m.acquired {
			w.ahead.want(m.shard)
		}
		return
	}
	if err := w.state.restore(m.inherited, w.snapshotOf(m.shard, m.epoch-1)); err != nil {
		rare.Reached(rare.SnapshotRefused)
		w.metrics.snapshot(snapshotRefused)
		w.log.Info("state left by the last owner refused; devices are loaded from the tables", "shard", m.shard, "reason", err)
		w.ahead.want(m.shard)
		return
	}
	rare.Reached(rare.Inherited)
	w.metrics.snapshot(snapshotUsed)
}
