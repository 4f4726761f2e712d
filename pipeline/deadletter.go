package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// DeadLetterSink moves entries of shards owned under these tokens to the dead
// letters. It is idempotent. A Failure of kind Fenced names shards that were
// acquired under another token since.
type DeadLetterSink interface {
	// DeadLetter also takes them off the queues of their shards. A Failure of kind
	// Lost names the shards whose queues lack entries they should hold.
	DeadLetter(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) error
	// DeadLetterDeferred is for entries that are no longer on a queue.
	DeadLetterDeferred(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) error
}

// DeadLetterConfig says when an entry is dead-lettered, and by which instance.
type DeadLetterConfig struct {
	Instance    string
	Version     string
	MaxAttempts int             // maximum attempts to decode an entry
	RetryDelays []time.Duration // before the second attempt, the third and so on; the last one repeats
	PollEvery   time.Duration   // interval of polls for deferred entries
}

func (c DeadLetterConfig) check() error {
	if c.Instance == "" || c.Version == "" || c.MaxAttempts < 1 || len(c.RetryDelays) == 0 || c.PollEvery <= 0 {
		return errors.New("pipeline: DeadLetters is incomplete: Instance, Version, MaxAttempts, RetryDelays and PollEvery are required")
	}
	return nil
}

// reject defers an entry that cannot be decoded or stored if a retry can help
// (a newer instance of a rolling deploy may decode it, and what makes the sink refuse
// it may go away), otherwise marks it to be dead-lettered once what precedes it is
// committed.
func (w *worker) reject(b *batch, p *part, e *telemetry.Entry, err error) {
	now := time.Now().UTC()
	l := telemetry.DeadLetter{
		Entry: *e, Shard: p.shard, Error: err.Error(), Attempts: 1, FirstFailed: now, LastFailed: now,
		Instance: w.cfg.DeadLetters.Instance, Version: w.cfg.DeadLetters.Version,
	}
	before, again := p.again[e.ID]
	if again {
		l.Attempts, l.FirstFailed = before.Attempts, before.FirstFailed
	}
	classify(&l, err)
	if kept, ok := errors.AsType[*keptError](err); ok {
		l.Error = kept.error.Error()
		l.Attempts = max(1, min(l.Attempts, w.cfg.DeadLetters.MaxAttempts-1))
		b.deferred = append(b.deferred, protocol.Deferred{DeadLetter: l, NextAttempt: now.Add(w.cfg.DeadLetters.delay(l.Attempts)), Again: again})
		return
	}
	if (l.Class == telemetry.ClassDecode || l.Class == telemetry.ClassSink) && l.Attempts < w.cfg.DeadLetters.MaxAttempts {
		b.deferred = append(b.deferred, protocol.Deferred{DeadLetter: l, NextAttempt: now.Add(w.cfg.DeadLetters.delay(l.Attempts)), Again: again})
		return
	}
	l.Attempts += e.EarlierAttempts() // a replay has all attempts anew, and they are counted on
	b.giveUp(l, p.again != nil)
}

// classify sets the class, field and fingerprint of a failure.
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

// giveUp adds a dead letter. A deferred entry is on no queue.
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

// newlyDeferred returns the number of entries deferred for the first time.
func (b *batch) newlyDeferred() int {
	n := 0
	for i := range b.deferred {
		if !b.deferred[i].Again {
			n++
		}
	}
	return n
}

// givesUp reports whether the batch has dead letters to move after its commit.
func (b *batch) givesUp() bool { return len(b.letters) > 0 || len(b.deferredDeadLetters) > 0 }

// unconfirmed returns the dead letters as the transaction keeps them.
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

// moveToDLQ moves the dead letters of a committed batch. It retries while Redis
// is unavailable: the entries are safe in their queues. While it is full, or refuses them
// for what only a person can change, the letters wait apart, so that the other shards of the worker go on: those on a queue
// until their shard reads it again, deferred ones until the leader adds them from
// Postgres. It records which were added, since the leader adds those again that
// Redis loses later.
func (w *worker) moveToDLQ(ctx context.Context, b *batch) error {
	var added []telemetry.Ref
	for _, step := range []struct {
		letters []telemetry.DeadLetter
		add     func(context.Context, []telemetry.DeadLetter, map[int]string) error
	}{{b.letters, w.deadLetterSink.DeadLetter}, {b.deferredDeadLetters, w.deadLetterSink.DeadLetterDeferred}} {
		if len(step.letters) == 0 {
			continue
		}
		if err := w.move(ctx, b, step.letters, step.add); err != nil {
			return err
		}
		for i := range step.letters {
			if l := &step.letters[i]; l.Moved {
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

// move moves dead letters, as far as it can, and records the shards of the others.
func (w *worker) move(ctx context.Context, b *batch, letters []telemetry.DeadLetter,
	add func(context.Context, []telemetry.DeadLetter, map[int]string) error,
) error {
	var unqueued map[int]bool
	err := retry(ctx, w.log, "move to the dead letters", w.metrics.deadLetterErrors,
		func(err error) bool {
			return !lostState(err) && dispositionOf(err) != dropFenced && refusalState(err) == ""
		},
		func() error {
			defer w.callsReturned.Add(1)
			err := add(ctx, letters, b.tokens())
			if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Code == protocol.Unqueued {
				unqueued = lostShards(err, b)
				return nil
			}
			return err
		})
	w.noteDeadLetters(letters)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	w.refusals.note(w.log, err)
	switch {
	case err == nil:
		if len(unqueued) > 0 {
			b.reread = unqueued // they are read from their queues once they are there
		}
	case refusalState(err) != "":
		b.refused = make(map[int]string)
		for i := range letters {
			if !letters[i].Moved {
				b.refused[letters[i].Shard] = refusalState(err)
			}
		}
	case dispositionOf(err) == dropFenced:
		w.log.Warn("dead-lettering failed; reacquiring shards", "err", err)
		if b.stale == nil {
			b.stale = make(map[int]bool)
		}
		maps.Copy(b.stale, lostShards(err, b))
	default:
		w.log.Warn("dead-lettering failed; rereading queues", "err", err)
		b.reread = lostShards(err, b)
	}
	return nil
}

// refusedPause is how long a shard waits after Redis refused its dead letter, or
// its row was locked.
const refusedPause = 2 * time.Second

// refusalState is the state of a shard whose dead letter Redis refuses until a person has
// acted, "" where it may succeed by itself. Other keys may be written to all the while: the
// one of dead letters may have another type, or be one that the user may not use.
func refusalState(err error) string {
	f, ok := errors.AsType[*protocol.Failure](err)
	switch {
	case !ok:
		return ""
	case f.Code == "OOM":
		return protocol.WaitRedisFull
	case f.Kind == protocol.Misconfigured, f.Code == "ERR" && !strings.Contains(f.Error(), "max number of clients"):
		return protocol.WaitDLQRefused
	}
	return ""
}

// refusalLog logs that dead letters are refused, and that they are not any more.
type refusalLog struct {
	mu    sync.Mutex
	since time.Time
	quiet lograte.Limit
}

func (r *refusalLog) note(log *slog.Logger, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case refusalState(err) != "":
		if r.since.IsZero() {
			r.since = time.Now()
		}
		if r.quiet.Pass() {
			log.Warn("operation failed, will retry", "what", "move to the dead letters", "err", err)
		}
	case err == nil && !r.since.IsZero():
		log.Info("operation recovered", "what", "move to the dead letters", "duration", time.Since(r.since))
		r.since, r.quiet = time.Time{}, lograte.Limit{}
	}
}

// tokens returns the owner tokens of the batch's shards.
func (b *batch) tokens() map[int]string {
	tokens := make(map[int]string, len(b.parts))
	for i := range b.parts {
		tokens[b.parts[i].shard] = b.parts[i].token
	}
	return tokens
}

func (w *worker) noteDeadLetters(letters []telemetry.DeadLetter) {
	for i := range letters {
		l := &letters[i]
		if !l.Moved {
			continue
		}
		w.metrics.outcome(outcomeDeadLettered, 1)
		w.metrics.deadLetters.WithLabelValues(string(l.Class)).Inc()
		w.log.Debug("dead letter", "entry_id", l.Entry.ID.String(), "shard", l.Shard, "reason", l.Error)
	}
}
