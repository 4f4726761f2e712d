package testbed

import (
	"context"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/oracle"
)

const (
	probeEvery   = 300 * time.Millisecond
	probeBack    = 400 * time.Millisecond // how old the entries are that a probe begins with
	probeEntries = 1000
)

// Probe looks again and again at entries that are acknowledged: each record
// among them has to be stored by now. A run without a crash at the wrong moment
// would not show that they are acknowledged too early.
type Probe struct {
	ground  *Servers
	decoder *telemetry.Decoder
	Seen    int64 // acknowledged records looked at
	Early   int64 // those that were not stored
}

// NewProbe returns a probe of what is acknowledged while the run goes on.
func NewProbe(g *Servers) *Probe {
	return &Probe{ground: g, decoder: telemetry.NewDecoder(telemetry.DefaultLimits())}
}

// Run looks every probeEvery until ctx ends.
func (p *Probe) Run(ctx context.Context) {
	for Pause(ctx, probeEvery) == nil {
		p.poll(ctx)
	}
}

// poll takes the last entries that were dispatched, leaves out those still pending or
// deferred, and only then asks for the rows of the others. A server that does not answer
// ends the look.
func (p *Probe) poll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info, err := p.ground.Inspector.Info(ctx)
	if err != nil || !info.GroupExists {
		return
	}
	after := telemetry.EntryID{Ms: uint64(info.Delivered.Time().Add(-probeBack).UnixMilli())}
	entries, err := p.ground.Inspector.ReadRange(ctx, after, probeEntries)
	if err != nil {
		return
	}
	ids, err := p.ground.Inspector.Pending(ctx, int(info.Pending)+10*probeEntries)
	if err != nil || len(ids) >= int(info.Pending)+10*probeEntries {
		return
	}
	pending := make(map[telemetry.EntryID]bool, len(ids))
	for _, id := range ids {
		pending[id] = true
	}
	deferred := map[oracle.ID]bool{}
	if p.ground.Dated {
		names := make([]string, len(entries))
		for i := range entries {
			names[i] = entries[i].ID.String()
		}
		if deferred, err = p.ground.Observer.Deferrals(ctx, names); err != nil {
			return
		}
	}
	var devices []string
	var times []int64
	for i := range entries {
		e := &entries[i]
		var r telemetry.Record
		if info.Delivered.Less(e.ID) || pending[e.ID] || deferred[oracle.ID(e.ID)] || p.decoder.Decode(e, &r) != nil {
			continue
		}
		devices, times = append(devices, r.DeviceID), append(times, r.TimeUS)
	}
	missing, err := p.ground.Observer.Missing(ctx, devices, times)
	if err != nil {
		return
	}
	p.Seen += int64(len(devices))
	p.Early += int64(missing)
}

// Follow reads the feed of crossings until ctx ends, as one that keeps a copy would, and
// where it is published the stream, too. A server that does not answer is asked again.
func (g *Servers) Follow(ctx context.Context, published bool) {
	for Pause(ctx, probeEvery) == nil {
		_ = g.Feed.Read(ctx)
		if published {
			_ = g.Published.Read(ctx)
		}
	}
}
