package pipeline

import (
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// batch is what one transaction will write, and the entries it came from, so
// that it can be computed again if it does not commit as computed.
type batch struct {
	seq     uint64
	careful bool // nothing is taken to be new: all goes the idempotent path
	parts   []part
	fresh   []telemetry.Record
	late    []telemetry.Record
	links   []link
	entries int
	bytes   int64
	repeats int       // records that repeat an earlier one of the same batch
	opened  time.Time // when the first entry was applied
	parked  map[telemetry.EntryID]struct{}
}

// part is consecutive entries of one shard.
type part struct {
	shard   int
	grant   uint64
	epoch   int64
	entries []telemetry.Entry
}

// link chains the records of a device within a batch, newest first.
type link struct {
	prev int32
	us   int64
}

func (b *batch) reset(seq uint64, careful bool) {
	b.seq, b.careful = seq, careful
	clear(b.parts)
	clear(b.fresh)
	clear(b.late)
	b.parts, b.fresh, b.late, b.links = b.parts[:0], b.fresh[:0], b.late[:0], b.links[:0]
	b.entries, b.bytes, b.repeats = 0, 0, 0
	b.opened = time.Time{}
	b.parked = nil
}

// place puts a decoded record where it belongs, and moves the device's state.
func (b *batch) place(d *device, r *telemetry.Record, eligible bool) {
	if d.batch != b.seq {
		d.batch, d.base, d.top, d.last = b.seq, d.watermark, never, -1
	}
	if r.TimeUS <= d.top && b.repeated(d, r.TimeUS) {
		// Of two records with the same time the first in the stream counts.
		b.repeats++
		return
	}
	b.links = append(b.links, link{prev: d.last, us: r.TimeUS})
	d.last = int32(len(b.links) - 1)
	d.top = max(d.top, r.TimeUS)
	switch {
	case !eligible, b.careful, r.TimeUS <= d.base:
		b.late = append(b.late, *r)
	default:
		// Newer than all that took part in state when the batch began, so it is in
		// no table yet, wherever it stands among the records of this batch.
		b.fresh = append(b.fresh, *r)
	}
	if eligible && r.TimeUS > d.watermark {
		d.watermark, d.lat, d.lon = r.TimeUS, r.Latitude, r.Longitude
	}
}

func (b *batch) repeated(d *device, us int64) bool {
	for i := d.last; i >= 0; i = b.links[i].prev {
		if b.links[i].us == us {
			return true
		}
	}
	return false
}

// without takes the work of some shards out of the batch. The links stay, since
// devices of other shards refer to them.
func (b *batch) without(gone func(shard int) bool, shards int) {
	other := func(records []telemetry.Record) []telemetry.Record {
		return slices.DeleteFunc(records, func(r telemetry.Record) bool {
			return gone(telemetry.ShardOf(r.DeviceID, shards))
		})
	}
	b.fresh, b.late = other(b.fresh), other(b.late)
	b.parts = slices.DeleteFunc(b.parts, func(p part) bool {
		if !gone(p.shard) {
			return false
		}
		b.entries -= len(p.entries)
		b.bytes -= size(p.entries)
		return true
	})
}

// write is the transaction's content.
func (b *batch) write() *protocol.Batch {
	return &protocol.Batch{Held: b.held(), Fresh: b.fresh, Late: b.late}
}

// held is the shards of the batch, each once, ascending.
func (b *batch) held() []telemetry.Held {
	held := make([]telemetry.Held, 0, 16)
	for _, p := range b.parts {
		at, found := slices.BinarySearchFunc(held, p.shard, func(h telemetry.Held, shard int) int { return h.Shard - shard })
		if !found {
			held = slices.Insert(held, at, telemetry.Held{Shard: p.shard, Epoch: p.epoch})
		}
	}
	return held
}

// acks is what is to be acknowledged once the batch is committed.
func (b *batch) acks() []protocol.Ack {
	acks := make([]protocol.Ack, len(b.parts))
	for i, p := range b.parts {
		a := protocol.Ack{Shard: p.shard, IDs: make([]telemetry.EntryID, 0, len(p.entries))}
		for j := range p.entries {
			e := &p.entries[j]
			if e.Fields == nil {
				a.Gone = append(a.Gone, e.ID)
				continue
			}
			if _, ok := b.parked[e.ID]; !ok {
				a.IDs = append(a.IDs, e.ID)
			}
		}
		acks[i] = a
	}
	return acks
}

func (b *batch) park(id telemetry.EntryID) {
	if b.parked == nil {
		b.parked = make(map[telemetry.EntryID]struct{})
	}
	b.parked[id] = struct{}{}
}

func size(entries []telemetry.Entry) int64 {
	var n int64
	for i := range entries {
		n += int64(entries[i].Size())
	}
	return n
}
