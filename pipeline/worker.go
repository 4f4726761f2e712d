package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// worker runs several shards: it decodes their entries, applies them in order
// and batches the result. While one batch commits the next one is computed on
// top of it, and while one is acknowledged the next one commits.
//
// run owns every field. The two other goroutines, which commit and acknowledge,
// receive whole batches and return them.
type worker struct {
	cfg       Config
	pace      pace // of batches
	table     *table
	sink      Sink
	acker     Acker
	history   History
	fences    *fences
	scheduler *requestScheduler
	requests  Requests
	lost      func(ShardLost)
	metrics   *metrics
	log       *slog.Logger

	deadLetterSink DeadLetterSink
	deferrals      Deferrals
	probeLog       ProbeLog
	breaker        *breaker    // shared by all workers
	attempts       *Attempts   // shared by all workers of the process
	exclusive      bool        // no other worker applies entries
	inApply        atomic.Bool // meanwhile this one does
	ahead          *ahead

	box     *mailbox
	inbox   []message // taken and not applied yet
	next    int       // in inbox
	offset  int       // entries of inbox[next] that are applied
	owned   map[int]ownedShard
	state   *state
	decoder *telemetry.Decoder

	seq        uint64
	current    *batch
	spare      []*batch
	commits    chan *batch    // to the committer; at most one under way
	results    chan committed // from the committer
	ackQueue   chan *batch    // to the acknowledger; at most one waits
	ackDone    chan *batch    // from the acknowledger; has room for all batches
	busy       bool           // a commit is under way
	steps      map[int]*step  // of requests, by shard, under way beside the worker
	stepping   sync.WaitGroup // their goroutines
	ended      bool           // intake is over
	wanted     []message      // devices that may be loaded ahead
	looking    bool           // a look-up for that is under way
	slow       map[int]*slowShard
	slowTurn   bool // the next batch is one of a slow shard
	ackPending int  // batches committed and not acknowledged

	againSince   time.Time // when the deferred entries of a claim began to be tried
	againClaimed int       // how many they were

	costs     costs
	stateSize atomic.Int64 // devices in state; written by run, read by metrics

	applying      telemetry.EntryID          // the entry applied last
	rest          []part                     // what redo has not decided, the part it is at first
	committing    *batch                     // with the committer while busy
	view          atomic.Pointer[workerView] // what run has in flight
	panicked      func(value any)            // set before run
	refusals      refusalLog
	stopped       chan struct{} // closed when run has ended
	drained       bool          // nothing was in flight then; read after stopped is closed
	callsReturned atomic.Uint64 // server calls that returned, successfully or not: grows while the worker is not stuck

	records []decoded // scratch of apply
	cold    []string
}

// ownedShard is a shard as this worker runs it.
type ownedShard struct {
	grant          uint64
	epoch          int64
	token          string
	checkpointedAt time.Time // when its progress mark was written last
	seq            uint64    // of the last batch that had entries of it
	// unmarked is the last entry of that batch, zero once the progress mark is there.
	unmarked telemetry.EntryID

	quarantine protocol.Quarantine
}

// decoded is the outcome of decoding one entry.
type decoded struct {
	record   telemetry.Record
	device   *device // nil while it is cold
	eligible bool
	err      error // a *telemetry.DecodeError
}

// committed is the outcome of a commit.
type committed struct {
	batch   *batch
	seq     uint64 // of the batch, which may be acknowledged, and emptied, before this is read
	written protocol.CommitResult
	took    time.Duration // the last attempt
	err     error

	entries     int
	apart       bool
	shard, late int // the one with the most late records, where one stands out
}

// batches is the maximum per worker: one filling, one committing, one waiting to
// be acknowledged and one being acknowledged.
const batches = 4

func newWorker(p *Pipeline, box *mailbox, ahead *ahead) *worker {
	perWorker := (p.cfg.StateMaxDevices + p.cfg.Workers - 1) / p.cfg.Workers
	// Leaves room for all batches of a worker, of the records in flight and of those dispatched
	// ahead: dispatch would wait for batches that gather.
	limit := max(1, min(p.cfg.BatchMaxRecords, p.cfg.MaxInFlightRecords/p.cfg.Workers/batches, p.cfg.DispatchAhead/p.cfg.Workers/batches))
	w := &worker{
		cfg: p.cfg, pace: newPace(limit), table: p.table, sink: p.sink, acker: p.acker, history: p.history, fences: p.fences, scheduler: p.scheduler, requests: p.scheduler.requests,
		deadLetterSink: p.deadLetterSink, deferrals: p.deferrals, probeLog: p.probeLog, attempts: p.attempts, breaker: p.breaker, ahead: ahead, lost: p.lost, metrics: p.metrics, log: p.log,
		box: box, owned: make(map[int]ownedShard), steps: make(map[int]*step), slow: make(map[int]*slowShard), state: newState(perWorker, p.cfg.Shards, p.metrics.evictions.Inc),
		decoder: telemetry.NewDecoder(p.cfg.Limits),
		commits: make(chan *batch), results: make(chan committed, 1),
		ackQueue: make(chan *batch, 1), ackDone: make(chan *batch, batches), stopped: make(chan struct{}),
	}
	for range batches {
		w.spare = append(w.spare, &batch{})
	}
	w.open(false)
	return w
}

// run works until intake has ended and everything in flight is finished, or until
// ctx is cancelled, which gives up what is in flight.
func (w *worker) run(ctx context.Context, intakeEnded <-chan struct{}) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.commitLoop(ctx) })
	g.Go(func() error { return w.ackLoop(ctx) })
	g.Go(func() error {
		defer close(w.commits)
		return w.loop(ctx, intakeEnded)
	})
	err := g.Wait()
	w.stepping.Wait()
	w.drained = err == nil
	close(w.stopped)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (w *worker) loop(ctx context.Context, intakeEnded <-chan struct{}) error {
	defer w.reportPanic()
	look := time.NewTicker(viewEvery)
	defer look.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	ended := false
	for {
		if err := w.advance(ctx); err != nil {
			return err
		}
		if ended && w.idle() {
			return nil
		}
		var mail, ring <-chan struct{} = nil, intakeEnded
		if w.next >= len(w.inbox) {
			mail = w.box.signal
		}
		if ended {
			ring = nil
		}
		var due <-chan time.Time
		if w.current.entries > 0 && !w.busy && w.ackPending < 2 {
			timer.Reset(max(0, time.Until(w.current.due)))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-mail:
		case <-look.C:
			w.publishView()
			w.markSilent()
		case <-due:
		case <-ring:
			ended, w.ended = true, true
		case c := <-w.results:
			w.busy = false
			if err := w.handleResult(ctx, c); err != nil {
				return err
			}
		case b := <-w.ackDone:
			w.ackPending--
			w.finish(b)
			w.put(b)
		}
		if ended {
			w.flushNow()
		}
	}
}

// idle reports whether nothing at all is in flight.
func (w *worker) idle() bool {
	if w.next < len(w.inbox) || w.current.entries > 0 || w.busy || w.ackPending > 0 || len(w.steps) > 0 || w.slowWaits() {
		return false
	}
	w.fetch()
	return len(w.inbox) == 0
}

// advance applies arrived messages while there is room, and starts a commit
// when one is due.
func (w *worker) advance(ctx context.Context) error {
	for {
		if w.next > 0 {
			w.inbox[w.next-1] = message{} // it would pin the reply that its entries came in
		}
		if w.next >= len(w.inbox) {
			w.fetch()
		}
		nothing := w.next >= len(w.inbox)
		if nothing && w.slowWaits() {
			w.makeDue() // they have every second batch to themselves
		}
		w.commitIfDue(nothing)
		if w.current.entries == 0 && (w.slowTurn || nothing) && w.slowWaits() {
			w.slowTurn = false
			if err := w.applySlow(ctx); err != nil {
				return err
			}
			w.commitIfDue(true)
			continue
		}
		if nothing && !w.ended {
			w.lookAhead(ctx)
		}
		if nothing || w.full() {
			return nil
		}
		m := &w.inbox[w.next]
		if s := w.steps[m.shard]; s != nil && m.kind != stepped {
			if m.kind == dropped {
				s.stop() // it could not commit
			}
			s.aside = append(s.aside, m.detached())
			w.next++
			continue
		}
		switch m.kind {
		case granted:
			w.owned[m.shard] = ownedShard{grant: m.grant, epoch: m.epoch, token: m.token, quarantine: m.quarantine}
			if m.apart {
				w.slow[m.shard] = &slowShard{limit: 1}
			}
			w.inherit(m)
			w.next++
		case dropped:
			delete(w.owned, m.shard)
			delete(w.slow, m.shard)
			w.state.invalidate(m.shard)
			w.current.without(func(shard int) bool { return shard == m.shard }, w.cfg.Shards)
			w.next++
		case flushShard:
			w.makeDue()
			w.next++
		case leaving:
			if t, ok := w.owned[m.shard]; ok && t.grant == m.grant && w.uncommitted(m.shard) {
				w.flushNow()
				return nil // until the tables have what the state has
			}
			m.left <- w.leave(m.shard, m.grant)
			if t, ok := w.owned[m.shard]; ok && t.grant == m.grant {
				delete(w.owned, m.shard) // nothing may follow that the state does not have
			}
			w.next++
		case asked:
			if w.busy || w.current.entries > 0 {
				w.flushNow()
				return nil // until what was applied before is committed
			}
			if err := w.serve(ctx, m); err != nil {
				return err
			}
			w.next++
		case stepped:
			w.served(m)
		case wanted:
			w.wanted = append(w.wanted, *m)
			w.next++
		case lookedUp:
			w.learnAhead(m.looked)
			w.next++
		case emptied:
			w.next++
			if err := w.clear(ctx, m); err != nil {
				return err
			}
		case retried:
			if w.busy || w.current.entries > 0 {
				w.flushNow()
				return nil // what is computed and not committed may concern the same devices
			}
			w.next++
			if err := w.tryAgain(ctx, m); err != nil {
				return err
			}
		case work:
			t, ok := w.owned[m.shard]
			if !ok || t.grant != m.grant {
				// The shard was given up, perhaps halfway through the message.
				w.next, w.offset = w.next+1, 0
				continue
			}
			if w.commitsEarlier(m.shard, m.grant) {
				return nil // until the tables have it: acknowledged, the queue would not bring it again
			}
			if t.quarantine.Limit > 0 {
				w.next++
				w.flushNow() // the attempt may wait for that of another worker
				p := part{shard: m.shard, grant: m.grant, epoch: t.epoch, token: t.token, entries: m.entries}
				if err := w.try(ctx, p, t.quarantine); err != nil {
					return err
				}
				continue
			}
			if s := w.slow[m.shard]; s != nil {
				m.entries = m.entries[w.offset:]
				s.queue = append(s.queue, m.detached())
				w.next, w.offset = w.next+1, 0
				continue
			}
			room := w.pace.limit - w.current.entries
			n := min(room, len(m.entries)-w.offset)
			p := part{shard: m.shard, grant: m.grant, epoch: t.epoch, token: t.token, entries: m.entries[w.offset : w.offset+n]}
			if err := w.apply(ctx, w.current, p); err != nil {
				return err
			}
			if t.seq == 0 { // the first since it was acquired
				w.makeDue()
			}
			if w.offset += n; w.offset == len(m.entries) {
				w.next, w.offset = w.next+1, 0
			}
		}
	}
}

func (w *worker) fetch() {
	w.inbox = w.box.take(w.inbox)
	w.next, w.offset = 0, 0
}

func (w *worker) full() bool {
	return w.current.entries >= w.pace.limit || w.current.bytes >= w.cfg.batchMaxBytes() || w.current.apart && w.current.entries > 0
}

// maxBatchWait returns how long a batch may wait for more entries:
// (age-gathered)/8, clamped to [maxAge-gathered, max(maxAge, 1 s)], with age that of its first
// entry in the stream, and gathered how long the dispatcher let entries gather. Old entries
// mean a backlog, where larger batches cost less: 32 workers, of two instances with eight
// streams, take a second to fill theirs. A skewed clock moves the wait only within the clamp.
func maxBatchWait(age, gathered, maxAge time.Duration) time.Duration {
	return min(max((age-gathered)/8, maxAge-gathered), max(maxAge, time.Second))
}

// commitIfDue passes the batch to the committer when it is full, or old enough and either
// urgent or with nothing here that could go with it, and the committer is free.
func (w *worker) commitIfDue(nothing bool) {
	if w.busy || w.current.entries == 0 || w.ackPending >= 2 {
		return
	}
	if w.full() || (nothing || w.current.urgent) && !time.Now().Before(w.current.due) {
		w.flushNow()
	}
}

func (w *worker) flushNow() {
	if w.busy || w.current.entries == 0 || w.ackPending >= 2 {
		return
	}
	w.lockApply()
	w.current.seal()
	w.unlockApply()
	w.checkpoint(w.current)
	w.send()
}

// send hands the batch to the committer, which must be free.
func (w *worker) send() {
	w.busy = true
	w.slowTurn = !w.current.apart
	w.committing = w.current
	w.commits <- w.current
	w.open(false)
}

// checkpointInterval bounds how often a shard's applied ID is written: entries
// acknowledged beyond it are redelivered after a force-acquire.
const checkpointInterval = time.Second

// checkpoint adds the applied IDs that are due to the batch: of its own shards, and
// of those that have fallen silent since, which it gets as parts without entries.
// No earlier batch may be uncommitted.
func (w *worker) checkpoint(b *batch) {
	now := time.Now()
	for i := len(b.parts) - 1; i >= 0; i-- {
		p := &b.parts[i]
		t, ok := w.owned[p.shard]
		if !ok || t.grant != p.grant || t.seq == b.seq {
			continue
		}
		t.seq, t.unmarked = b.seq, p.entries[len(p.entries)-1].ID
		if now.Sub(t.checkpointedAt) >= checkpointInterval {
			b.applied = append(b.applied, protocol.Applied{Shard: p.shard, ID: t.unmarked})
			t.checkpointedAt, t.unmarked = now, telemetry.EntryID{}
		}
		w.owned[p.shard] = t
	}
	for shard, t := range w.owned {
		if t.unmarked.IsZero() || t.seq == b.seq || now.Sub(t.checkpointedAt) < checkpointInterval {
			continue
		}
		if w.table.stops(shard, t.grant) {
			continue // its release writes the mark, and nothing is in flight that it would wait for
		}
		b.parts = append(b.parts, part{shard: shard, grant: t.grant, epoch: t.epoch, token: t.token})
		b.applied = append(b.applied, protocol.Applied{Shard: shard, ID: t.unmarked})
		t.checkpointedAt, t.unmarked = now, telemetry.EntryID{}
		w.owned[shard] = t
	}
}

// markSilent writes the progress marks that are due while nothing arrives that
// they could go with. What a mark falls short of is redelivered after a take-over.
func (w *worker) markSilent() {
	if w.busy || w.current.entries > 0 || w.ackPending >= 2 {
		return
	}
	w.checkpoint(w.current)
	if len(w.current.applied) > 0 {
		w.current.rules = w.rules()
		w.send()
	}
}

// makeDue makes the batch due: a hand-over waits for it. More entries would make it cheaper,
// but a shard that moves waits for them twice.
func (w *worker) makeDue() {
	if now := time.Now(); w.current.entries > 0 {
		w.current.urgent = true
		if now.Before(w.current.due) {
			w.current.due = now
		}
	}
}

// open starts a new batch.
func (w *worker) open(idempotent bool) {
	w.seq++
	w.current = w.spare[len(w.spare)-1]
	w.spare = w.spare[:len(w.spare)-1]
	w.current.reset(w.seq, idempotent)
}

// put keeps a batch for reuse. It is emptied immediately: a single record in it
// would pin the whole reply of Redis that it came in.
func (w *worker) put(b *batch) {
	b.reset(0, false)
	w.spare = append(w.spare, b)
}

// rules returns the current rules for deriving crossings.
func (w *worker) rules() protocol.Rules {
	return protocol.Rules{Fences: w.fences.now(), Eligibility: w.cfg.Eligibility, MaxGap: w.cfg.MaxCrossingGap}
}

// apply decodes entries, looks up unknown devices in one query, and places the
// records in order.
func (w *worker) apply(ctx context.Context, b *batch, p part) error {
	if len(p.entries) == 0 {
		return nil
	}
	if b.entries == 0 {
		now := time.Now()
		age := now.Sub(time.UnixMilli(int64(p.entries[0].ID.Ms)))
		b.due = now.Add(maxBatchWait(age, w.cfg.gatherTime(), w.cfg.BatchMaxAge))
		b.rules, b.open, b.kept, b.bereft = w.rules(), w.state.open, w.state.kept, w.state.bereft
	}
	if cap(w.records) < len(p.entries) {
		w.records = make([]decoded, len(p.entries))
	}
	records := w.records[:len(p.entries)]
	w.cold = w.cold[:0]
	w.lockApply()
	for i := range p.entries {
		e, d := &p.entries[i], &records[i]
		if e.Fields == nil {
			continue
		}
		if d.err = w.decode(e, &d.record); d.err != nil {
			continue
		}
		d.eligible = w.cfg.Eligibility.Of(&d.record) == telemetry.Eligible
		switch d.device = w.state.find(d.record.DeviceID, p.shard); {
		case d.device == nil:
			w.cold = append(w.cold, d.record.DeviceID)
		case d.device.size&unheard != 0:
			d.device.size &^= unheard
			b.loaded = append(b.loaded, d.record.DeviceID)
		}
	}
	w.unlockApply()
	if len(w.cold) > 0 {
		cold := unique(w.cold)
		if err := w.rehydrate(ctx, p.shard, cold); err != nil {
			return err
		}
		b.loaded = append(b.loaded, cold...)
		clear(w.cold) // they would pin the replies that they came in
	}
	w.lockApply()
	for i := range p.entries {
		e, d := &p.entries[i], &records[i]
		w.applying = e.ID
		switch {
		case e.Fields == nil:
			rare.Reached(rare.Trimmed)
		case d.err != nil:
			w.reject(b, &p, e, d.err)
		case mutantDrops():
		default:
			if d.device == nil {
				d.device = w.state.find(d.record.DeviceID, p.shard)
			}
			b.place(d.device, &d.record, d.eligible)
		}
	}
	w.unlockApply()
	clear(records)
	b.parts = append(b.parts, p)
	b.entries += len(p.entries)
	b.bytes += size(p.entries)
	return nil
}

// decode decodes an entry, between lockApply and unlockApply.
func (w *worker) decode(e *telemetry.Entry, r *telemetry.Record) error {
	w.applying = e.ID
	beforeDecode(e)
	return w.decoder.Decode(e, r)
}

// rehydrate loads devices. It retries while Postgres is
// unavailable, since nothing can be applied without them.
func (w *worker) rehydrate(ctx context.Context, shard int, cold []string) error {
	return retry(ctx, w.log, "load last positions", w.metrics.historyErrors, isTransient, func() error { return w.load(ctx, shard, cold) })
}

// load loads devices, or fails.
func (w *worker) load(ctx context.Context, shard int, cold []string) error {
	for _, id := range cold {
		w.state.learn(id, shard, geofence.Fix{TimeUS: never})
	}
	defer w.callsReturned.Add(1)
	w.metrics.loads.WithLabelValues(loadedForRecord).Add(float64(len(cold)))
	err := w.history.LastFixes(ctx, cold, w.cfg.Eligibility, func(i int, last geofence.Fix) {
		w.state.find(cold[i], shard).moveTo(last)
	})
	if err != nil || w.fences.now().Len() == 0 {
		return err
	}
	return w.history.LastCrossings(ctx, cold, func(i int, us int64) {
		if d := w.state.find(cold[i], shard); d.watermark < us {
			w.state.bereft[d] = us
		}
	})
}

// finish releases the entries of an acknowledged batch.
func (w *worker) finish(b *batch) {
	w.resume(b)
	w.table.mu.Lock()
	for _, p := range b.parts {
		if p.again != nil || len(p.entries) == 0 {
			continue // on no queue, so not counted in flight
		}
		if s := &w.table.slots[p.shard]; s.grant == p.grant && b.refused[p.shard] == "" {
			s.refusal = protocol.Wait{}
		}
		w.orphan(b, p)
		if slices.ContainsFunc(b.letters, func(l telemetry.DeadLetter) bool { return l.Shard == p.shard }) {
			w.table.slots[p.shard].deadLettered = time.Now()
		}
		w.table.finish(p.shard, p.grant, len(p.entries), size(p.entries), p.entries[len(p.entries)-1].ID)
	}
	w.table.mu.Unlock()
	for _, p := range b.parts {
		switch {
		case b.stale[p.shard]:
			if w.table.dropGrant(p.shard, p.grant) {
				w.lost(ShardLost{Shard: p.shard, Epoch: p.epoch, Cause: OutcomeUnknown})
			}
		case b.reread[p.shard]:
			w.table.restart(p.shard, p.grant, time.Time{})
		case b.refused[p.shard] != "" && p.again == nil:
			w.table.restartRefused(p.shard, p.grant, b.refused[p.shard])
		}
	}
	w.stateSize.Store(int64(w.state.len))
	wakeUp(w.table.room)
	wakeUp(w.table.wake)
}

// orphan notes what is unqueued and not finished of a part of an acknowledged batch. Of one whose
// shard was given up meanwhile all was noted, and what is finished is taken out. The caller holds the table's lock.
func (w *worker) orphan(b *batch, p part) {
	if b.stale[p.shard] {
		w.table.orphanFirst(p.shard, p.grant, len(p.entries), func(telemetry.EntryID) bool { return true })
		return
	}
	waits := b.reread[p.shard] || b.refused[p.shard] != ""
	left := func(id telemetry.EntryID) bool {
		_, ok := b.deadLettered[id]
		return ok && waits
	}
	if waits {
		w.table.orphanFirst(p.shard, p.grant, len(p.entries), left)
	}
	if w.table.slots[p.shard].grant != p.grant {
		w.table.adopt(p.shard, slices.DeleteFunc(idsOf(p.entries), left))
	}
}

func unique(ids []string) []string {
	seen := make(map[string]struct{}, len(ids))
	out := make([]string, 0, len(ids))
	for _, id := range ids {
		if _, ok := seen[id]; !ok {
			seen[id] = struct{}{}
			out = append(out, id)
		}
	}
	return out
}
