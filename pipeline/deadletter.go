package pipeline

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// DeadLetterSink moves entries to the dead letters, of shards held under these tokens.
// Moving one again changes nothing. A Failure of kind Fenced names shards that
// were taken under another token since.
type DeadLetterSink interface {
	// DeadLetter takes them off the queues of their shards as well. A Failure of kind
	// Lost names the shards whose queues do not hold what they should.
	DeadLetter(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) error
	// DeadLetterDeferred is for entries that are on no queue any more.
	DeadLetterDeferred(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) error
}

// DeadLetterConfig says when an entry is given up, and under whose name.
type DeadLetterConfig struct {
	Instance    string
	Version     string
	MaxAttempts int             // how often an entry that cannot be decoded is tried
	RetryDelays []time.Duration // before the second attempt, the third and so on; the last one repeats
	PollEvery   time.Duration   // how often deferred entries are looked for
}

func (c DeadLetterConfig) check() error {
	if c.Instance == "" || c.Version == "" || c.MaxAttempts < 1 || len(c.RetryDelays) == 0 || c.PollEvery <= 0 {
		return errors.New("pipeline: DeadLetters is not complete")
	}
	return nil
}

// reject notes an entry that is no record, or one that the sink does not take:
// it becomes a dead letter once what precedes it is committed, unless another
// attempt makes sense. A newer instance in a rolling deploy may understand what
// this one cannot decode.
func (w *worker) reject(b *batch, p *part, e *telemetry.Entry, err error) {
	now := time.Now().UTC()
	l := telemetry.DeadLetter{
		Entry: *e, Shard: p.shard, Error: err.Error(), Attempts: 1, FirstFailed: now, LastFailed: now,
		Instance: w.cfg.DeadLetters.Instance, Version: w.cfg.DeadLetters.Version,
	}
	if before, ok := p.again[e.ID]; ok {
		l.Attempts, l.FirstFailed = before.Attempts, before.FirstFailed
	}
	classify(&l, err)
	if l.Class == telemetry.ClassDecode && l.Attempts < w.cfg.DeadLetters.MaxAttempts {
		b.deferred = append(b.deferred, protocol.Deferred{DeadLetter: l, NextAttempt: now.Add(w.cfg.DeadLetters.delay(l.Attempts))})
		return
	}
	b.giveUp(l, p.again != nil)
}

// classify says which class, field and fingerprint a failure has.
func classify(l *telemetry.DeadLetter, err error) {
	if d, ok := errors.AsType[*telemetry.DecodeError](err); ok {
		l.Class, l.Field, l.Fingerprint = d.Class, d.Field, d.Fingerprint()
		return
	}
	if c, ok := errors.AsType[*crashError](err); ok {
		l.Class, l.Fingerprint, l.Attempts = telemetry.ClassCrash, string(telemetry.ClassCrash), max(l.Attempts, c.crashCount)
		return
	}
	l.Class, l.Fingerprint = telemetry.ClassSink, string(telemetry.ClassSink)
	if f, ok := errors.AsType[*protocol.Failure](err); ok {
		l.Field = f.Field
		l.Fingerprint += "/" + f.Field + "/" + f.Code
	}
}

// giveUp notes a dead letter. An entry that was deferred is on no queue.
func (b *batch) giveUp(l telemetry.DeadLetter, deferred bool) {
	if deferred {
		b.deferredDeadLetters = append(b.deferredDeadLetters, l)
		return
	}
	b.letters = append(b.letters, l)
	if b.deadLettered == nil {
		b.deadLettered = make(map[telemetry.EntryID]struct{})
	}
	b.deadLettered[l.Entry.ID] = struct{}{}
}

// newlyDeferred is how many entries are deferred for the first time.
func (b *batch) newlyDeferred() int {
	n := 0
	for i := range b.deferred {
		if b.deferred[i].Attempts == 1 {
			n++
		}
	}
	return n
}

// givesUp reports whether entries are to be moved once the batch is committed.
func (b *batch) givesUp() bool { return len(b.letters) > 0 || len(b.deferredDeadLetters) > 0 }

// unconfirmed is the dead letters as the transaction keeps them.
func (b *batch) unconfirmed() []protocol.Unconfirmed {
	var list []protocol.Unconfirmed
	for _, l := range b.letters {
		list = append(list, protocol.Unconfirmed{DeadLetter: l, Queued: true})
	}
	for _, l := range b.deferredDeadLetters {
		list = append(list, protocol.Unconfirmed{DeadLetter: l})
	}
	return list
}

// moveToDLQ moves the dead letters of a committed batch. It goes on trying while
// Redis does not answer or is full: the entries are safe where they are. What
// was added is noted, since the leader adds again what Redis then loses.
func (w *worker) moveToDLQ(ctx context.Context, b *batch) error {
	var added []telemetry.Ref
	for _, step := range []struct {
		letters []telemetry.DeadLetter
		park    func(context.Context, []telemetry.DeadLetter, map[int]string) error
	}{{b.letters, w.deadLetterSink.DeadLetter}, {b.deferredDeadLetters, w.deadLetterSink.DeadLetterDeferred}} {
		if len(step.letters) == 0 {
			continue
		}
		left, err := w.move(ctx, b, step.letters, step.park)
		if err != nil {
			return err
		}
		for i := range step.letters {
			if l := &step.letters[i]; !left[l.Shard] {
				added = append(added, l.Entry.Ref())
			}
		}
	}
	if len(added) == 0 {
		return nil
	}
	return retry(ctx, w.log, "note dead letters as added", w.metrics.deferErrors, always,
		func() error { return w.deferrals.Added(ctx, added) })
}

// move has dead letters moved. It notes and returns the shards for which that
// was refused.
func (w *worker) move(ctx context.Context, b *batch, letters []telemetry.DeadLetter,
	park func(context.Context, []telemetry.DeadLetter, map[int]string) error,
) (map[int]bool, error) {
	tokens := b.tokens()
	err := retry(ctx, w.log, "move to the dead letters", w.metrics.deadLetterErrors,
		func(err error) bool { return !lostState(err) && dispositionOf(err) != dropFenced },
		func() error { defer w.callsReturned.Add(1); return park(ctx, letters, tokens) })
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	left := make(map[int]bool)
	switch {
	case err == nil:
	case dispositionOf(err) == dropFenced:
		w.log.Warn("dead-lettering failed; reacquiring shards", "err", err)
		left = lostShards(err, b)
		if b.stale == nil {
			b.stale = make(map[int]bool)
		}
		maps.Copy(b.stale, left)
	default:
		w.log.Warn("dead-lettering failed; rereading queues", "err", err)
		left = lostShards(err, b)
		b.reread = left
	}
	w.noteDeadLetters(letters, left)
	return left, nil
}

// tokens is what the shards of the batch are held under.
func (b *batch) tokens() map[int]string {
	tokens := make(map[int]string, len(b.parts))
	for i := range b.parts {
		tokens[b.parts[i].shard] = b.parts[i].token
	}
	return tokens
}

func (w *worker) noteDeadLetters(letters []telemetry.DeadLetter, except map[int]bool) {
	for i := range letters {
		l := &letters[i]
		if except[l.Shard] {
			continue
		}
		w.metrics.outcome(outcomeDeadLettered, 1)
		w.metrics.deadLetters.WithLabelValues(string(l.Class)).Inc()
		w.log.Debug("dead letter", "entry_id", l.Entry.ID.String(), "shard", l.Shard, "reason", l.Error)
	}
}
