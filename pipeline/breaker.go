package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A row that the sink refuses becomes a dead letter only once the fault is shown
// to be its own: another row has been taken since, the row is refused again after
// that, and again in later attempts, for which it is deferred meanwhile. While no
// other row is taken either, and while most rows of many devices are refused for one
// reason, the worker pauses: nothing is given up, no attempt is used, and the row
// itself is what is tried until the cause is gone. While rows of several devices are
// refused alike, and not few of all, they stay deferred; the others go on.

// The breaker opens for a reason once so many rows of so many devices were refused
// for it within a window, and more than were stored meanwhile. It closes when a row
// is taken, or many times as many are stored.
const (
	breakerWindow  = time.Minute
	breakerRows    = 20
	breakerDevices = 5
	breakerShare   = 10 // rows stored for each one refused
)

// notedFor is how long a person is called after a row was kept last.
const notedFor = 5 * time.Minute

// probeRecords bounds the rows that one probe tries.
const probeRecords = 12

// breaker is what the workers know of each other's refusals.
type breaker struct {
	mu          sync.Mutex
	storedBegan time.Time // when the last transaction that stored a row began
	storedRows  uint64
	reasons     map[string]*refusals
	paused      map[*worker]protocol.Refusal
	kept        protocol.Refusal // why rows are kept deferred
	keptAt      time.Time
}

// refusals is the rows refused for one reason since the window began.
type refusals struct {
	began   time.Time
	rows    uint64
	before  uint64 // rows stored until then
	devices map[string]struct{}
	open    bool
}

func newBreaker(reg prometheus.Registerer) *breaker {
	k := &breaker{reasons: make(map[string]*refusals), paused: make(map[*worker]protocol.Refusal)}
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "processor_pipeline_paused_workers", Help: "Workers that wait because the sink refuses rows for a reason that is not theirs.",
	}, func() float64 {
		k.mu.Lock()
		defer k.mu.Unlock()
		return float64(len(k.paused))
	})
	return k
}

// stored notes rows that a transaction stored.
func (k *breaker) stored(began time.Time, rows int) {
	if rows == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.storedRows += uint64(rows)
	if began.After(k.storedBegan) {
		k.storedBegan = began
	}
}

// storedSince reports whether a transaction that began after a moment stored a row.
func (k *breaker) storedSince(t time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.storedBegan.After(t)
}

// verdict is what becomes of a row that is refused though others are taken.
type verdict uint8

const (
	ownFault verdict = iota + 1 // given up after its last attempt
	doubtful                    // kept: many rows are refused for this reason
	noFault                     // the worker pauses
)

// refuse notes a row that is refused though others are taken.
func (k *breaker) refuse(reason, device string, now time.Time) verdict {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.reasons[reason]
	if r == nil || !r.open && now.Sub(r.began) > breakerWindow {
		if len(k.reasons) > 1000 {
			clear(k.reasons) // so many reasons are none
		}
		r = &refusals{began: now, before: k.storedRows, devices: make(map[string]struct{})}
		k.reasons[reason] = r
	}
	if len(r.devices) < breakerDevices {
		r.devices[strings.Clone(device)] = struct{}{}
	}
	stored := k.storedRows - r.before
	if r.open {
		r.open = stored <= breakerShare*r.rows
	} else {
		r.rows++
		r.open = r.rows > breakerRows && len(r.devices) >= breakerDevices && r.rows > stored
	}
	switch {
	case r.open:
		return noFault
	case len(r.devices) >= breakerDevices && stored < breakerShare*r.rows:
		return doubtful
	}
	return ownFault
}

// keep notes that rows stay deferred until a person has removed the reason, and
// reports whether none did.
func (k *breaker) keep(r protocol.Refusal, now time.Time) (first bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	first = k.kept.Reason != r.Reason || now.Sub(k.keptAt) > notedFor
	k.kept, k.keptAt = r, now
	return first
}

// taken notes that a row is taken that was refused before.
func (k *breaker) taken(reason string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.reasons, reason)
}

// passed notes that a row is taken that was kept.
func (k *breaker) passed() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = protocol.Refusal{}
}

// pause notes that a worker waits. It reports whether none did for this reason.
func (k *breaker) pause(w *worker, r protocol.Refusal) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	first := true
	for _, other := range k.paused {
		first = first && other.Reason != r.Reason
	}
	k.paused[w] = r
	return first
}

// resume notes that a worker goes on.
func (k *breaker) resume(w *worker) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.paused, w)
}

// refusal is one of the reasons why workers wait, the first by name, or else why rows
// do; nil where none does.
func (k *breaker) refusal() *protocol.Refusal {
	k.mu.Lock()
	defer k.mu.Unlock()
	var first *protocol.Refusal
	for _, r := range k.paused {
		if first == nil || r.Reason < first.Reason {
			first = &r
		}
	}
	if first == nil && k.kept.Reason != "" && time.Since(k.keptAt) < notedFor {
		kept := k.kept
		first = &kept
	}
	return first
}

// swallowed notes that triggers kept rows out of the table.
func (w *worker) swallowed(c protocol.CommitResult) {
	count := c.Swallowed + c.SwallowedLate
	if count == 0 || c.Triggers == "" { // without a trigger another session deleted what was there
		return
	}
	r := protocol.Refusal{
		Reason: "trigger " + c.Triggers,
		Error:  fmt.Sprintf("a trigger before insert on positions (%s) returned null: rows are acknowledged and not stored", c.Triggers),
		Remedy: "drop or correct the trigger, then processor replay the time since",
	}
	if w.breaker.keep(r, time.Now()) {
		w.log.Error("a trigger swallows rows: they are not stored", "reason", r.Reason, "count", count, "remedy", r.Remedy)
	}
}

// hold notes that the worker waits for a person.
func (w *worker) hold(err error) {
	rare.Reached(rare.RefusalWaits)
	r := refusalOf(err)
	if w.breaker.pause(w, r) {
		w.log.Error("sink refuses rows for a reason that is not theirs; paused until it is gone", "reason", r.Reason, "err", err, "remedy", r.Remedy)
	}
}

// judge decides about an entry that is refused alone.
func (w *worker) judge(ctx context.Context, p part, refusal error) error {
	wait := newBackOff()
	defer w.breaker.resume(w)
	for at := time.Now(); ; at = time.Now() {
		others, err := w.othersTaken(ctx, &p.entries[0], at)
		if err != nil {
			return err
		}
		if !others {
			w.hold(refusal)
			if err := sleep(ctx, wait.NextBackOff()); err != nil {
				return err
			}
		}
		b, err := w.again(ctx, p)
		if b == nil || ctx.Err() != nil {
			return err
		}
		if v := dispositionOf(err); err == nil || v != bisect && v != recompute {
			w.breaker.taken(refusalOf(refusal).Reason)
			return w.settle(ctx, b, p, true, err)
		}
		w.state.invalidate(p.shard)
		refusal = err
		if !others {
			continue
		}
		switch w.breaker.refuse(refusalOf(err).Reason, deviceOf(&p.entries[0]), time.Now()) {
		case ownFault:
			return w.rejectEntry(ctx, p, err)
		case doubtful:
			return w.keep(ctx, p, err)
		default: // the breaker is open
			w.hold(refusal)
			if err := sleep(ctx, wait.NextBackOff()); err != nil {
				return err
			}
		}
	}
}

// keep defers an entry until a person has removed the reason why it is refused; what
// else arrives goes on.
func (w *worker) keep(ctx context.Context, p part, err error) error {
	if r := refusalOf(err); w.breaker.keep(r, time.Now()) {
		w.log.Error("sink refuses rows for a reason that is not theirs; they are deferred until it is gone", "reason", r.Reason, "err", err, "remedy", r.Remedy)
	}
	return w.rejectEntry(ctx, p, &keptError{err})
}

// again applies and commits one entry. There is no batch where the shard is not
// held any more, or the entry could not be applied.
func (w *worker) again(ctx context.Context, p part) (*batch, error) {
	if t, ok := w.owned[p.shard]; !ok || t.grant != p.grant {
		return nil, nil
	}
	w.seq++
	b := &batch{}
	b.reset(w.seq, true)
	if err := w.apply(ctx, b, p); err != nil {
		return nil, err
	}
	b.resolveDeferred(&p)
	return b, w.commit(ctx, b).err
}

func deviceOf(e *telemetry.Entry) string {
	id, _ := e.Field(telemetry.FieldDeviceID)
	return id
}

// othersTaken reports whether the sink takes other rows than that of an entry: those of
// other workers, or what a probe tries.
func (w *worker) othersTaken(ctx context.Context, e *telemetry.Entry, since time.Time) (taken bool, err error) {
	if w.breaker.storedSince(since) {
		return true, nil
	}
	records := w.probeRecords(e)
	if len(records) == 0 {
		return false, nil
	}
	err = retry(ctx, w.log, "probe the sink", w.metrics.commitErrors, isTransient, func() (err error) {
		defer w.callsReturned.Add(1)
		taken, err = w.sink.Probe(ctx, records)
		return err
	})
	return taken || w.breaker.storedSince(since), err
}

// probeRecords is some rows to try in place of that of a refused entry: of other devices
// that wait behind it, else of its own; where few do, what the entry would be with nothing
// of its own but device and time.
func (w *worker) probeRecords(refused *telemetry.Entry) []telemetry.Record {
	var own telemetry.Record
	if err := w.decoder.Decode(refused, &own); err != nil {
		return nil
	}
	var others, same []telemetry.Record
	seen := make(map[string]struct{})
	looked := 0
	look := func(entries []telemetry.Entry) bool {
		for i := range entries {
			e := &entries[i]
			if e.ID == refused.ID || e.Fields == nil {
				continue
			}
			device := deviceOf(e)
			_, known := seen[device]
			if known || device == own.DeviceID && len(same) >= 2 {
				continue
			}
			var r telemetry.Record
			if looked++; w.decoder.Decode(e, &r) != nil {
				continue
			}
			if device == own.DeviceID {
				same = append(same, r)
				continue
			}
			seen[device] = struct{}{}
			if others = append(others, r); len(others) >= probeRecords-3 {
				return false
			}
		}
		return looked < 20*probeRecords
	}
	for _, p := range w.rest {
		entries := p.entries
		if at := slices.IndexFunc(entries, func(e telemetry.Entry) bool { return e.ID == refused.ID }); at >= 0 {
			entries = entries[at+1:] // what precedes it is decided
		}
		if !look(entries) {
			break
		}
	}
	for i := w.next; i < len(w.inbox); i++ {
		if m := &w.inbox[i]; m.kind == work && !look(m.entries) {
			break
		}
	}
	w.box.each(look)
	records := append(others, same...)
	if len(others) < breakerDevices {
		plain := own
		plain.Attributes = []byte("{}")
		empty := plain
		empty.Latitude, empty.Longitude, empty.Altitude, empty.Angle, empty.Speed, empty.Satellites, empty.Priority = 0, 0, 0, 0, 0, 0, 0
		records = append(records, plain, empty)
	}
	return records
}

// newlyStored is how many rows a committed batch added.
func (b *batch) newlyStored(c protocol.CommitResult) int {
	n := len(b.fresh) - c.Swallowed
	for _, isNew := range c.Stored {
		if isNew {
			n++
		}
	}
	return n
}
