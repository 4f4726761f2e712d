package pipeline

import (
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// WorkerDump lists what one worker has in flight.
type WorkerDump struct {
	Worker   int          `json:"worker"`
	Messages int          `json:"messages"` // in its mailbox
	Entries  int          `json:"entries"`
	Shards   []shardDump  `json:"shards"`
	View     *workerView  `json:"view,omitempty"` // published last; nil before the first
	Devices  []deviceView `json:"devices"`
}

// IDs are entry IDs, one text in JSON since there may be many.
type IDs []telemetry.EntryID

// MarshalText writes the IDs with spaces in between.
func (ids IDs) MarshalText() ([]byte, error) {
	text := make([]byte, 0, 20*len(ids))
	for i, id := range ids {
		if i > 0 {
			text = append(text, ' ')
		}
		text = id.AppendTo(text)
	}
	return text, nil
}

// shardDump is the entries of one shard that are in flight, in order.
type shardDump struct {
	Shard int   `json:"shard"`
	Epoch int64 `json:"epoch"`
	IDs   IDs   `json:"entries"`
}

// workerView is what a worker publishes of itself: every viewEvery while it
// works, and when it panics.
type workerView struct {
	At         time.Time `json:"at"`
	Applying   string    `json:"applying"` // the entry applied last
	Batch      int       `json:"batch"`    // entries of the batch that fills
	Committing int       `json:"committing"`
	Unacked    int       `json:"unacked"` // batches committed and not acknowledged
	Known      int       `json:"known"`   // devices in memory

	devices []deviceView
}

// deviceView is the state of a device in flight. Its location is personal data.
type deviceView struct {
	Device    string    `json:"device"`
	Shard     int       `json:"shard"`
	Known     bool      `json:"known"` // whether it has any position
	Watermark time.Time `json:"watermark,omitzero"`
	Latitude  *float64  `json:"latitude,omitempty"`
	Longitude *float64  `json:"longitude,omitempty"`
}

// viewEvery is the interval at which a worker publishes its view; viewDevices
// bounds its cost.
const (
	viewEvery   = time.Second
	viewDevices = 500
)

// Dump returns what every worker has in flight. Coordinates are omitted unless
// positions is set.
func (p *Pipeline) Dump(positions bool) []WorkerDump {
	hands := make([]WorkerDump, len(p.workers))
	p.table.mu.Lock()
	for i := range hands {
		hands[i] = WorkerDump{Worker: i, Entries: p.table.load[i].records, Messages: p.workers[i].box.waiting()}
	}
	for shard := range p.table.slots {
		s := &p.table.slots[shard]
		if ids := s.queue.InFlightIDs(); s.owned && len(ids) > 0 {
			h := &hands[s.worker]
			h.Shards = append(h.Shards, shardDump{Shard: shard, Epoch: s.epoch, IDs: ids})
		}
	}
	p.table.mu.Unlock()
	for i, w := range p.workers {
		view := w.view.Load()
		if view == nil {
			continue
		}
		hands[i].View = view
		for _, d := range view.devices {
			if !positions {
				d.Latitude, d.Longitude = nil, nil
			}
			hands[i].Devices = append(hands[i].Devices, d)
		}
	}
	return hands
}

// OnPanic registers f to be called with the value when any goroutine of the pipeline
// panics, before the panic propagates. Call it before Run.
func (p *Pipeline) OnPanic(f func(value any)) {
	p.panicked = f
	for _, w := range p.workers {
		w.panicked = f
	}
}

// publishView publishes what this worker has in flight. Only its own goroutine calls it.
func (w *worker) publishView() {
	v := &workerView{
		At: time.Now().UTC(), Applying: w.applying.String(), Batch: w.current.entries,
		Unacked: w.ackPending, Known: w.state.len,
	}
	seen := make(map[string]struct{})
	look := func(records []telemetry.Record) {
		for i := range records {
			id := records[i].DeviceID
			if _, ok := seen[id]; ok || len(seen) == viewDevices {
				continue
			}
			seen[id] = struct{}{}
			if d := w.state.get(id); d != nil {
				v.devices = append(v.devices, d.view(id))
			}
		}
	}
	look(w.current.fresh)
	look(w.current.late)
	if w.busy {
		v.Committing = w.committing.entries
		look(w.committing.fresh) // the committer only reads it
		look(w.committing.late)
	}
	w.view.Store(v)
}

func (d *device) view(id string) deviceView {
	v := deviceView{Device: id, Shard: int(d.shard)}
	if d.watermark != never {
		lat, lon := d.lat, d.lon
		v.Known, v.Watermark, v.Latitude, v.Longitude = true, time.UnixMicro(d.watermark).UTC(), &lat, &lon
	}
	return v
}

// reportPanic publishes what this worker had in flight, then lets the panic propagate.
func (w *worker) reportPanic() {
	value := recover()
	if value == nil {
		return
	}
	func() {
		defer func() {
			if retrySame := recover(); retrySame != nil { // the state itself is broken
				value = fmt.Errorf("%v; and while reading what is in flight: %v", value, retrySame)
			}
		}()
		w.publishView()
	}()
	if w.panicked != nil {
		w.panicked(value)
	}
	panic(value) // propagates and ends the process
}

// endWithPanic reports a panic beside a worker, then lets it propagate. It is to be deferred.
func endWithPanic(panicked func(value any)) {
	if value := recover(); value != nil {
		if panicked != nil {
			panicked(value)
		}
		panic(value)
	}
}
