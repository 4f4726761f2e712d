package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A row that the sink refuses becomes a dead letter only once the fault is shown
// to be its own: another row has been taken since, the row is refused again after
// that, and again in later attempts, for which it is deferred meanwhile. While no
// other row is taken either, and while most rows of many devices are refused for one
// reason, its shard pauses: nothing is given up, no attempt is used, and the row
// itself is what is tried until the cause is gone, apart from the other shards of the
// worker, which go on. While rows of several devices are refused alike, and not few of
// all, they stay deferred.

// The breaker opens for a reason, in all shards or in one, once so many rows of so many
// devices were refused for it, and more than were stored meanwhile. It closes when a row
// is taken, or many times as many are stored, and for a shard when most devices that wait
// on its queue have a row taken: behind a row that is refused none of them would be
// stored, so a count of those alone would never close it. While it is open for one shard
// alone, fewer than so many other devices refused among those that wait show nothing of the
// shard: they may fill what is read of a queue that holds others. Each window counts half
// of the one before.
const (
	breakerWindow  = time.Minute
	breakerRows    = 20
	breakerDevices = 5
	breakerShare   = 10 // rows stored for each one refused
)

// notedFor is how long a person is called after a row was kept last.
const notedFor = 5 * time.Minute

// probeRecords bounds the rows that one probe tries, sampleDevices those that show
// whether most of a shard are refused.
const (
	probeRecords  = 12
	sampleDevices = 20
)

// breaker is what the workers know of each other's refusals.
type breaker struct {
	mu          sync.Mutex
	storedBegan time.Time          // when the last transaction that stored a row began
	storedRows  map[int]uint64     // by shard, and of allShards; of a shard only while rows are refused
	samples     []telemetry.Record // that were stored, of devices apart, the newest last
	sampledAt   time.Time
	refused     map[refusedBy]*refusals
	refusedAt   time.Time        // the last time
	kept        protocol.Refusal // why rows are kept deferred
	keptAt      time.Time
	keptSince   time.Time
	quiet       lograte.Limit // of rows that stayed
}

// refusedBy is what refusals are counted by.
type refusedBy struct {
	reason string
	shard  int
}

const allShards = -1

// refusals is the rows refused for one reason, and those stored meanwhile.
type refusals struct {
	began   time.Time // of the window
	rows    uint64
	before  uint64 // rows stored until they were counted
	devices map[string]struct{}
	open    bool
}

func newBreaker() *breaker {
	return &breaker{refused: make(map[refusedBy]*refusals), storedRows: make(map[int]uint64)}
}

// stored notes rows that a transaction stored.
func (k *breaker) stored(began time.Time, b *batch, c protocol.CommitResult, shards int) {
	rows := b.newlyStored(c)
	if rows == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.storedRows[allShards] += uint64(rows)
	if began.After(k.storedBegan) {
		k.storedBegan = began
		if c.Swallowed == 0 {
			k.sample(began, b, c)
		}
	}
	if began.Sub(k.refusedAt) > breakerWindow {
		return
	}
	for i := range b.fresh {
		k.storedRows[telemetry.ShardOf(b.fresh[i].DeviceID, shards)]++
	}
	for i, isNew := range c.Stored {
		if isNew {
			k.storedRows[telemetry.ShardOf(b.undetermined(i).DeviceID, shards)]++
		}
	}
}

// probeSamples bounds the rows that are kept to be tried in place of one that is refused, and
// sampleBytes the size of each.
const (
	probeSamples = 4
	sampleBytes  = 4096
)

// sample keeps a row that was stored, at most one a second. The caller holds the lock.
func (k *breaker) sample(now time.Time, b *batch, c protocol.CommitResult) {
	stored := b.firstStored(c)
	if stored == nil || len(stored.Attributes) > sampleBytes || len(k.samples) == probeSamples && now.Sub(k.sampledAt) < time.Second {
		return
	}
	k.sampledAt = now
	r := *stored
	r.DeviceID, r.Codec, r.Attributes = strings.Clone(r.DeviceID), strings.Clone(r.Codec), bytes.Clone(r.Attributes)
	k.samples = slices.DeleteFunc(k.samples, func(s telemetry.Record) bool { return s.DeviceID == r.DeviceID })
	if len(k.samples) == probeSamples {
		k.samples = slices.Delete(k.samples, 0, 1)
	}
	k.samples = append(k.samples, r)
}

// instead is rows of other devices that are like ones that were stored, at the time of a
// refused one, since its time may be what is refused; or at their own.
func (k *breaker) instead(refused *telemetry.Record, ownTime bool) (list []telemetry.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.samples {
		if r.DeviceID != refused.DeviceID {
			if !ownTime {
				r.ID, r.TimeUS, r.StreamUS = refused.ID, refused.TimeUS, refused.StreamUS
			}
			r.TimeUS++ // no row that may be there
			list = append(list, r)
		}
	}
	return list
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
	noFault                     // the shard pauses
)

// refuse notes a row that is refused though others are taken.
func (k *breaker) refuse(reason string, shard int, device string, now time.Time) verdict {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refusedAt = now
	return max(k.count(refusedBy{reason, allShards}, device, now), k.count(refusedBy{reason, shard}, device, now))
}

// count notes a refused row among those of its reason, in all shards or in its own.
func (k *breaker) count(by refusedBy, device string, now time.Time) verdict {
	r := k.refused[by]
	if r == nil {
		if len(k.refused) > 1000 {
			clear(k.refused) // so many reasons are none
		}
		r = &refusals{began: now, before: k.storedRows[by.shard], devices: make(map[string]struct{})}
		k.refused[by] = r
	}
	for ; !r.open && now.Sub(r.began) > breakerWindow; r.began = r.began.Add(breakerWindow) {
		r.rows /= 2
		r.before += (k.storedRows[by.shard] - r.before + 1) / 2
		if r.rows == 0 {
			r.began, r.before = now, k.storedRows[by.shard]
			clear(r.devices)
		}
	}
	if len(r.devices) < breakerDevices {
		r.devices[strings.Clone(device)] = struct{}{}
	}
	stored := k.storedRows[by.shard] - r.before
	if r.open {
		r.open = stored <= breakerShare*r.rows
	} else {
		r.rows++
		r.open = r.rows > breakerRows && len(r.devices) >= breakerDevices && r.rows > stored
	}
	switch {
	case r.open:
		return noFault
	case by.shard == allShards && len(r.devices) >= breakerDevices && stored < breakerShare*r.rows:
		return doubtful
	}
	return ownFault
}

// openForAll reports whether the breaker is open in all shards.
func (k *breaker) openForAll(reason string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.refused[refusedBy{reason, allShards}]
	return r != nil && r.open
}

// closeFor closes the breaker of a shard, and returns what becomes of the row that is
// refused: while rows are refused in most shards, it is kept.
func (k *breaker) closeFor(reason string, shard int) verdict {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.refused, refusedBy{reason, shard})
	if r := k.refused[refusedBy{reason, allShards}]; r != nil && len(r.devices) >= breakerDevices && k.storedRows[allShards]-r.before < breakerShare*r.rows {
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
	if first {
		k.keptSince = now
	}
	k.kept, k.keptAt = r, now
	return first
}

// taken notes that a row is taken that was refused before.
func (k *breaker) taken(reason string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.refused, func(by refusedBy, _ *refusals) bool { return by.reason == reason })
}

// passed notes that a row is taken that was kept.
func (k *breaker) passed() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = protocol.Refusal{}
}

// keeps is why rows stay deferred, and since when; nil where none do.
func (k *breaker) keeps() (*protocol.Refusal, time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept.Reason == "" || time.Since(k.keptAt) >= notedFor {
		return nil, time.Time{}
	}
	kept := k.kept
	return &kept, k.keptSince
}

// pause is a shard that waits since the sink refuses its rows.
type pause struct {
	protocol.Refusal
	since  time.Time
	wait   *backoff.ExponentialBackOff
	reread bool // nothing of it is tried until its queue is read again
}

// refusal is one of the reasons why shards wait, the first by name; nil where none
// does. The caller holds the lock.
func (t *table) refusal() *protocol.Refusal {
	var first *protocol.Refusal
	for i := range t.slots {
		if p := t.slots[i].pause; p != nil && (first == nil || p.Reason < first.Reason) {
			r := p.Refusal
			first = &r
		}
	}
	return first
}

// paused reports whether a shard waits.
func (t *table) paused(shard int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.slots[shard].pause != nil
}

// pausing counts the shards that wait for a reason, or for any. The caller holds
// the lock.
func (t *table) pausing(reason string) (n int) {
	for i := range t.slots {
		if p := t.slots[i].pause; p != nil && (reason == "" || p.Reason == reason) {
			n++
		}
	}
	return n
}

// pause notes that parts wait, and reports whether no shard did for this reason.
func (t *table) pause(parts []part, r protocol.Refusal) (first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first = t.pausing(r.Reason) == 0
	for _, p := range parts {
		s := &t.slots[p.shard]
		if !s.owned || s.grant != p.grant {
			continue
		}
		if s.pause == nil {
			s.pause = &pause{since: time.Now(), wait: newBackOff()}
		}
		s.pause.Refusal, s.pause.reread = r, false
	}
	return first
}

// retryPaused is how often all shards that wait for one reason are tried, at most.
const retryPaused = 250 * time.Millisecond

// restartPaused reads the queue of a shard that waits again after a while, the longer
// the more shards wait for the same.
func (t *table) restartPaused(shard int, grant uint64) {
	t.mu.Lock()
	var wait time.Duration
	if s := &t.slots[shard]; s.owned && s.grant == grant && s.pause != nil {
		s.pause.reread = true
		wait = max(s.pause.wait.NextBackOff(), time.Duration(t.pausing(s.pause.Reason)-1)*retryPaused)
	}
	t.mu.Unlock()
	t.restart(shard, grant, time.Now().Add(wait))
}

// resume ends the pause of parts whose entries have an outcome, and lets the other
// shards that wait for the same try now. It returns the reason of the pause.
func (t *table) resume(parts []part) (reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range parts {
		if s := &t.slots[p.shard]; s.owned && s.grant == p.grant && s.pause != nil {
			reason, s.pause = s.pause.Reason, nil
		}
	}
	if reason == "" {
		return ""
	}
	for i := range t.slots {
		if s := &t.slots[i]; s.pause != nil && s.pause.Reason == reason {
			s.notBefore = time.Time{}
		}
	}
	wakeUp(t.wake)
	return reason
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

// stayed notes that rows did not give way to records that take part.
func (w *worker) stayed(c protocol.CommitResult) {
	if c.Stayed == 0 || !w.breaker.logsStayed() {
		return
	}
	w.log.Warn("rows keep the time of records that should replace them; these are in processor.conflicts", "count", c.Stayed, "err", c.StayedWhy,
		"remedy", "processor migrate verify names what keeps them")
}

// logsStayed reports whether to log that rows did not give way.
func (k *breaker) logsStayed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.quiet.Pass()
}

// hold notes that shards wait for a person.
func (w *worker) hold(parts []part, err error) {
	rare.Reached(rare.RefusalWaits)
	r := refusalOf(err)
	if w.table.pause(parts, r) {
		w.log.Error("sink refuses rows for a reason that is not theirs; paused until it is gone", "reason", r.Reason, "err", err, "remedy", r.Remedy)
	}
}

// pause sets the shard of an entry aside that is refused for what is not its fault,
// until its queue is read again. A deferred entry stays where it is.
func (w *worker) pause(ctx context.Context, p part, refusal error) error {
	if p.again != nil {
		return w.keep(ctx, p, refusal)
	}
	w.hold([]part{p}, refusal)
	b := &batch{parts: []part{p}}
	w.dropWork(b, nil, func(p part) { w.table.restartPaused(p.shard, p.grant) })
	return nil
}

// judge decides about an entry that is refused alone.
func (w *worker) judge(ctx context.Context, p part, refusal error) error {
	others, err := w.othersTaken(ctx, &p.entries[0], isOfRow(refusal), time.Now())
	if err != nil {
		return err
	}
	switch {
	case !others && isMisconfigured(refusal) && !w.exclusive: // during an exclusive attempt not all was tried
		return refusal
	case !others:
		return w.pause(ctx, p, refusal)
	}
	b, err := w.again(ctx, p)
	if b == nil || ctx.Err() != nil {
		return err
	}
	if v := dispositionOf(err); err == nil || v != bisect && v != recompute {
		w.breaker.taken(refusalOf(refusal).Reason)
		return w.conclude(ctx, b, p, true, err)
	}
	w.state.invalidate(p.shard)
	reason := refusalOf(err).Reason
	v := w.breaker.refuse(reason, p.shard, deviceOf(&p.entries[0]), time.Now())
	switch {
	case p.again != nil && w.table.paused(p.shard):
		v = max(v, doubtful) // claimed before its shard paused
	case w.exclusive && (p.again != nil && v == noFault || w.lastAttempt(&p)):
		return w.rejectEntry(ctx, p, &keptError{err}) // a later attempt decides, which looks at what waits
	case v == noFault || v == ownFault && w.lastAttempt(&p):
		most, others, err := w.mostRefused(ctx, p)
		if err != nil {
			return err
		}
		switch {
		case v == ownFault && most && others >= breakerDevices-1:
			v = doubtful // attempts that follow each other at once end before enough rows are counted
		case v == noFault && (!most || others < breakerDevices && !w.breaker.openForAll(reason)):
			v = w.breaker.closeFor(reason, p.shard)
		}
	}
	switch v {
	case ownFault:
		return w.rejectEntry(ctx, p, err)
	case doubtful:
		return w.keep(ctx, p, err)
	default: // the breaker is open
		return w.pause(ctx, p, err)
	}
}

// lastAttempt reports whether the one entry of a part is given up if it fails now.
func (w *worker) lastAttempt(p *part) bool {
	return max(1, p.again[p.entries[0].ID].Attempts) >= w.cfg.DeadLetters.MaxAttempts
}

// resume ends the pause of shards whose entries have an outcome.
func (w *worker) resume(b *batch) {
	if len(b.parts) > 0 && b.parts[0].again != nil {
		return // deferred entries, always a batch of their own: what the shard waits for is on its queue
	}
	if reason := w.table.resume(b.parts); reason != "" && len(b.deferred)+len(b.letters) == 0 {
		w.breaker.taken(reason)
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
// other workers, or what a probe tries, at other times too where those may be refused.
func (w *worker) othersTaken(ctx context.Context, e *telemetry.Entry, anyTime bool, since time.Time) (taken bool, err error) {
	if w.breaker.storedSince(since) {
		return true, nil
	}
	records := w.probeRecords(e, anyTime)
	if len(records) == 0 {
		return false, nil
	}
	n, _, err := w.tryRows(ctx, records, 1)
	taken = n > 0
	return taken || w.breaker.storedSince(since), err
}

// tryRows counts which of some rows the sink would take now, until there are enough.
func (w *worker) tryRows(ctx context.Context, records []telemetry.Record, enough int) (taken, refused int, err error) {
	err = retry(ctx, w.log, "probe the sink", w.metrics.commitErrors, isTransient, func() (err error) {
		defer w.callsReturned.Add(1)
		taken, refused, err = w.sink.Probe(ctx, records, enough)
		return err
	})
	return taken, refused, err
}

// mostRefused reports whether the sink refuses a row of most devices that wait on the
// queue of a shard, that of the refused entry included, and of how many others it does.
func (w *worker) mostRefused(ctx context.Context, p part) (most bool, others int, err error) {
	seen := map[string]struct{}{deviceOf(&p.entries[0]): {}}
	var records []telemetry.Record
	looked := 0
	w.waiting(p.entries[0].ID, func(entries []telemetry.Entry) bool {
		for i := range entries {
			device := deviceOf(&entries[i])
			if _, known := seen[device]; known || entries[i].Fields == nil || telemetry.ShardOf(device, w.cfg.Shards) != p.shard {
				continue
			}
			var r telemetry.Record
			if looked++; w.decode(&entries[i], &r) == nil {
				seen[device] = struct{}{}
				records = append(records, r)
			}
			if len(records) == sampleDevices || looked == 20*sampleDevices {
				return false
			}
		}
		return true
	})
	if len(records) == 0 {
		return true, 0, nil
	}
	taken, others, err := w.tryRows(ctx, records, len(records)/2+1)
	return taken < others+1, others, err
}

// waiting calls f, which decodes them, for the entries that wait in the worker behind a refused one, until it
// says no. During an exclusive attempt none may be looked at: a crash would be held against its entry.
func (w *worker) waiting(refused telemetry.EntryID, f func([]telemetry.Entry) bool) {
	if w.exclusive {
		return
	}
	w.lockApply()
	w.eachWaiting(refused, f)
	w.unlockApply()
}

func (w *worker) eachWaiting(refused telemetry.EntryID, f func([]telemetry.Entry) bool) {
	for _, p := range w.rest {
		entries := p.entries
		if at := slices.IndexFunc(entries, func(e telemetry.Entry) bool { return e.ID == refused }); at >= 0 {
			entries = entries[at+1:] // what precedes it is decided
		}
		if !f(entries) {
			return
		}
	}
	for _, s := range w.slow {
		for i := range s.queue {
			if !f(s.queue[i].entries) {
				return
			}
		}
	}
	for i := w.next; i < len(w.inbox); i++ {
		if m := &w.inbox[i]; m.kind == work && !f(m.entries) {
			return
		}
	}
	w.box.each(f)
}

// probeRecords is some rows to try in place of that of a refused entry: of other devices
// that wait behind it, else of its own; where few do, what was stored of others before, and
// what the entry would be with nothing of its own but device and time. Of any time are
// those that were stored before at theirs, and the entry now.
func (w *worker) probeRecords(refused *telemetry.Entry, anyTime bool) []telemetry.Record {
	var own telemetry.Record
	w.lockApply()
	err := w.decode(refused, &own)
	w.unlockApply()
	if err != nil {
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
			if looked++; w.decode(e, &r) != nil {
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
	w.waiting(refused.ID, look)
	records := append(others, same...)
	if len(others) < breakerDevices {
		plain := own
		plain.Attributes = []byte("{}")
		empty := plain
		empty.Latitude, empty.Longitude, empty.Altitude, empty.Angle, empty.Speed, empty.Satellites, empty.Priority = 0, 0, 0, 0, 0, 0, 0
		records = append(append(records, w.breaker.instead(&own, false)...), plain, empty)
	}
	if anyTime {
		own.TimeUS = time.Now().UnixMicro()
		records = append(append(records, w.breaker.instead(&own, true)...), own)
	}
	return records
}

// firstStored is a row that a committed batch added, nil if there is none: what is applied alone, as after a
// crash, is never fresh.
func (b *batch) firstStored(c protocol.CommitResult) *telemetry.Record {
	if len(b.fresh) > 0 {
		return &b.fresh[0]
	}
	if i := slices.Index(c.Stored, true); i >= 0 {
		return b.undetermined(i)
	}
	return nil
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
