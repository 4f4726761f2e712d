package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Publisher adds entries to the stream, in order and in one pipeline.
type Publisher interface {
	// Publish returns the IDs that the entries got. With an error it returns
	// the zero ID for each entry not known to be added, or leaves out the tail;
	// a *protocol.Failure of kind Misconfigured or Rejected says that these will never
	// be. It must not try again by itself: a silent second try makes entries
	// that are in no send log.
	Publish(ctx context.Context, entries [][]string) ([]telemetry.EntryID, error)
}

// Reader reads the stream back.
type Reader interface {
	// ReadRange returns at most count entries that follow an ID, in stream
	// order; fewer only at the end of the stream.
	ReadRange(ctx context.Context, after telemetry.EntryID, count int) ([]telemetry.Entry, error)
}

// ender is a Reader that knows the last entry of its stream, for streams to which
// others add.
type ender interface {
	Last(ctx context.Context) (telemetry.EntryID, error)
}

// SenderConfig bounds what a sender does at once.
type SenderConfig struct {
	MaxBatchRecords int           // entries in one pipeline
	MaxBatchBytes   int           // of names and values in one pipeline
	RetryDelay      time.Duration // between two tries while the server does not answer
}

// DefaultSenderConfig suits rates from one to a hundred thousand entries a
// second.
func DefaultSenderConfig() SenderConfig {
	return SenderConfig{MaxBatchRecords: 500, MaxBatchBytes: 4 << 20, RetryDelay: 100 * time.Millisecond}
}

// gather is the shortest pause between two polls of what is due: it lets a
// pipeline fill instead of sending entries one by one.
const gather = 5 * time.Millisecond

// warnEvery is the pause between two warnings of an outage.
const warnEvery = 10 * time.Second

// Sender sends what a source yields when the pacer says so, and writes the send
// log. Run and Settle are called by one goroutine, one after the other;
// Progress by any.
type Sender struct {
	cfg   SenderConfig
	src   Source
	pacer Pacer
	pub   Publisher
	log   *LogWriter
	slog  *slog.Logger

	last  telemetry.EntryID // of the newest entry known to be added
	doubt map[string]*doubt // by content, see keyOf
	left  int               // items taken from the source that got no ID when Run ended

	warned time.Time // of the last warning
	since  int64     // failures when it was written

	sent     atomic.Int64
	resent   atomic.Int64
	failures atomic.Int64
	behind   atomic.Int64
	worst    atomic.Int64
}

// doubt is an entry that may have been added without us learning its ID.
type doubt struct {
	sent  Sent
	after telemetry.EntryID   // its ID, if it has one, follows this
	known []telemetry.EntryID // entries with the same content that are in the log
}

// NewSender joins the parts of a run.
func NewSender(cfg SenderConfig, src Source, pacer Pacer, pub Publisher, sendLog *LogWriter, log *slog.Logger) (*Sender, error) {
	if cfg.MaxBatchRecords < 1 || cfg.MaxBatchBytes < 1 || cfg.RetryDelay <= 0 {
		return nil, fmt.Errorf("sender config %+v: want more than 0 everywhere", cfg)
	}
	return &Sender{
		cfg: cfg, src: src, pacer: pacer, pub: pub, log: sendLog,
		slog:  log.With("component", "fleet"),
		doubt: map[string]*doubt{},
	}, nil
}

// Progress is how far a run is.
type Progress struct {
	Sent     int64         // entries known to be added
	Resent   int64         // entries sent again because they got no ID
	Failures int64         // pipelines that failed
	Behind   time.Duration // by how much the oldest unsent entry is overdue
	Worst    time.Duration // the largest Behind so far: how far the load was from the plan
}

// Progress returns how far the run is. Behind and Worst mean nothing when the
// pace is as fast as possible.
func (s *Sender) Progress() Progress {
	return Progress{
		Sent: s.sent.Load(), Resent: s.resent.Load(), Failures: s.failures.Load(),
		Behind: time.Duration(s.behind.Load()), Worst: time.Duration(s.worst.Load()),
	}
}

// Run sends until the source ends or the context does, which is no error. A
// server that does not answer is waited for; only what cannot be fixed by
// waiting is returned.
func (s *Sender) Run(ctx context.Context) error {
	err := s.run(ctx)
	return errors.Join(err, s.log.Flush())
}

func (s *Sender) run(ctx context.Context) error {
	begin := time.Now()
	it, more := s.src.Next()
	for number := 0; more && ctx.Err() == nil; {
		due := s.pacer.Due(it.At, number)
		elapsed := time.Since(begin)
		if due > elapsed {
			s.behind.Store(0)
			pause(ctx, max(gather, due-elapsed))
			continue
		}
		s.behind.Store(int64(elapsed - due))
		s.worst.Store(max(s.worst.Load(), int64(elapsed-due)))
		var b batch
		for more && due <= elapsed && len(b.items) < s.cfg.MaxBatchRecords && b.bytes < s.cfg.MaxBatchBytes {
			b.add(it)
			number++
			if it, more = s.src.Next(); more {
				due = s.pacer.Due(it.At, number)
			}
		}
		err := s.publish(ctx, &b)
		s.left = len(b.items)
		if err != nil {
			return err
		}
	}
	if more {
		s.left++
	}
	s.behind.Store(0)
	return nil
}

// Unsent returns how many entries of the source got no ID: Run was stopped before
// their turn, or while the server did not answer. It is called after Run, which
// is not called again, and uses up the source.
func (s *Sender) Unsent() int {
	for _, more := s.src.Next(); more; _, more = s.src.Next() {
		s.left++
	}
	return s.left
}

// batch is what goes into one pipeline.
type batch struct {
	items  []Item
	fields [][]string
	bytes  int
}

func (b *batch) add(it Item) {
	fields := it.Fields()
	b.items = append(b.items, it)
	b.fields = append(b.fields, fields)
	for _, f := range fields {
		b.bytes += len(f)
	}
}

// publish sends a batch, and again what is not known to have arrived, as a
// tracker does that got no ack.
func (s *Sender) publish(ctx context.Context, b *batch) error {
	// A run stopped during an outage leaves entries unsent.
	for try := 0; len(b.items) > 0 && ctx.Err() == nil; try++ {
		if try > 0 {
			s.resent.Add(int64(len(b.items)))
		}
		// A run that ends lets its last pipeline finish, which leaves fewer
		// outcomes unknown.
		ids, err := s.pub.Publish(context.WithoutCancel(ctx), b.fields)
		rest := batch{}
		for i, it := range b.items {
			if i < len(ids) && !ids[i].IsZero() {
				if err := s.added(it, b.fields[i], ids[i]); err != nil {
					return err
				}
				continue
			}
			s.unsure(it, b.fields[i])
			rest.add(it)
		}
		if err == nil && len(rest.items) > 0 {
			return fmt.Errorf("publish: %d of %d entries got no ID and there was no error", len(rest.items), len(b.items))
		}
		if err == nil {
			b.items = nil
			return nil
		}
		s.failures.Add(1)
		var failure *protocol.Failure
		if errors.As(err, &failure) && (failure.Kind == protocol.Misconfigured || failure.Kind == protocol.Rejected) {
			return fmt.Errorf("publish %d entries: %w", len(rest.items), err)
		}
		s.warn(len(rest.items), err)
		pause(ctx, s.cfg.RetryDelay)
		*b = rest
	}
	return nil
}

// warn tells of a failure, and of those that follow every ten seconds.
func (s *Sender) warn(count int, err error) {
	if !s.warned.IsZero() && time.Since(s.warned) < warnEvery {
		return
	}
	failures := s.failures.Load()
	s.slog.Warn("publish failed, will retry", "count", count, "failures", failures-s.since, "err", err)
	s.warned, s.since = time.Now(), failures
}

// added logs an entry with its ID.
func (s *Sender) added(it Item, fields []string, id telemetry.EntryID) error {
	s.last = id
	s.sent.Add(1)
	if len(s.doubt) > 0 {
		if d := s.doubt[keyOf(fields)]; d != nil {
			d.known = append(d.known, id)
		}
	}
	sent := sentOf(it, fields, id)
	return s.log.Append(&sent)
}

// unsure remembers an entry until Settle.
func (s *Sender) unsure(it Item, fields []string) {
	key := keyOf(fields)
	if s.doubt[key] == nil {
		s.doubt[key] = &doubt{sent: sentOf(it, fields, telemetry.EntryID{}), after: s.last}
	}
}

// Settle reads the stream for entries that were added although the server did
// not say so, and logs them. It is called after Run, when the server answers
// again and before the stream is trimmed; it may be called more than once.
// It returns how many it found.
func (s *Sender) Settle(ctx context.Context, r Reader) (int, error) {
	if len(s.doubt) == 0 {
		return 0, nil
	}
	after := telemetry.MaxEntryID
	for _, d := range s.doubt {
		if d.after.Less(after) {
			after = d.after
		}
	}
	const page = 1000
	found := 0
	end := telemetry.MaxEntryID // what others add meanwhile would have no end
	if e, ok := r.(ender); ok {
		var err error
		if end, err = e.Last(ctx); err != nil {
			return 0, fmt.Errorf("settle unknown outcomes: %w", err)
		}
	}
	for {
		entries, err := r.ReadRange(ctx, after, page)
		if err != nil {
			return found, fmt.Errorf("settle unknown outcomes after entry %s: %w", after, err)
		}
		for i := range entries {
			e := &entries[i]
			after = e.ID
			d := s.doubt[keyOf(e.Fields)]
			if d == nil || !d.after.Less(e.ID) || slices.Contains(d.known, e.ID) {
				continue
			}
			d.known = append(d.known, e.ID)
			d.sent.ID = e.ID
			if err := s.log.Append(&d.sent); err != nil {
				return found, err
			}
			s.sent.Add(1)
			found++
		}
		if len(entries) < page || !after.Less(end) {
			return found, s.log.Flush()
		}
	}
}

func keyOf(fields []string) string { return strings.Join(fields, "\x00") }

func sentOf(it Item, fields []string, id telemetry.EntryID) Sent {
	sent := Sent{ID: id, Class: ClassOf(&it.Message), Message: it.Message}
	if it.Junk != nil {
		sent = Sent{ID: id, Junk: it.Junk.Kind, Class: it.Junk.Class, Message: Message{DeviceID: it.Junk.Device}}
	}
	if sent.Class != "" {
		sent.Sum = SumOf(fields)
	}
	return sent
}

// pause waits, or until the context ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
