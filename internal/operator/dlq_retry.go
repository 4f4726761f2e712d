package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Retry is the outcome of one dead letter.
type Retry struct {
	ID       string `json:"id"`
	SourceID string `json:"source_id"`
	Outcome  string `json:"outcome"` // replayed, gone, refused; in a dry run also stored, duplicate
	As       string `json:"replayed_as,omitempty"`
	Reason   string `json:"reason,omitempty"`

	Device, Fingerprint string `json:"-"` // of what was replayed
}

// RetryOptions bound a replay.
type RetryOptions struct {
	DryRun    bool                 // only tell what would happen
	Unchecked bool                 // send what this version cannot decode, too
	PerSecond float64              // maximum dead letters per second
	PauseAt   int64                // pause while the backlog exceeds this
	Waiting   func(backlog string) // told of each pause; may be nil
	Limit     int                  // replay only so many, the oldest first; 0 is all
	Progress  func(done, all int)  // told after each batch; may be nil
}

// Retried is the outcome of a replay.
type Retried struct {
	Letters []Retry
	Done    int // replayed
	Failed  int // not sent, since they would fail; in a dry run: would fail
	Missing []string
}

// sent returns how many were replayed, or would be.
func (r *Retried) sent(dry bool) (n int) {
	if !dry {
		return r.Done
	}
	for _, l := range r.Letters {
		if l.Outcome == "stored" || l.Outcome == "duplicate" {
			n++
		}
	}
	return n
}

// KeptError says that some of a replay's dead letters would come back, and stay.
type KeptError struct {
	DryRun     bool
	Sent, Kept int
}

// Error says how many of each there are.
func (e *KeptError) Error() string {
	them := "it"
	if e.Kept > 1 {
		them = "them"
	}
	if e.DryRun {
		return fmt.Sprintf("%d of %d would be replayed, %d would fail: edit %s first", e.Sent, e.Sent+e.Kept, e.Kept, them)
	}
	return fmt.Sprintf("%d replayed, %d refused and kept: edit %s, then replay", e.Sent, e.Kept, them)
}

// RetryDeadLetters adds the selected dead letters, as edited, to the source stream
// again, in the order of their entries, and removes them. One that cannot be
// decoded would come back: it stays, and is refused. Interrupted, it continues
// where it ended. The outcomes so far come with an error, too.
func (f *Fleet) RetryDeadLetters(ctx context.Context, by Filter, o RetryOptions) (Retried, error) {
	out := Retried{Letters: []Retry{}}
	d, s, err := f.selected(ctx, by, !o.DryRun)
	if err != nil {
		return out, err
	}
	list, err := d.chosen(ctx, s, false)
	if err != nil {
		return out, err
	}
	if out.Missing = s.missing(); len(list) == 0 {
		return out, by.NoMatch()
	}
	if o.Limit > 0 {
		list = list[:min(len(list), o.Limit)]
	}
	r := &replay{progress: o.Progress, deadLetters: d, limiter: rate.NewLimiter(rate.Limit(o.PerSecond), 1), pauseAt: o.PauseAt, waiting: o.Waiting, unchecked: o.Unchecked, report: out.Letters}
	if r.waiting == nil {
		r.waiting = func(string) {}
	}
	if o.DryRun {
		err = r.try(ctx, list)
	} else {
		err = r.send(ctx, list)
		if auditErr := d.note(ctx, "dlq retry", by.String(), r.done); err == nil {
			err = auditErr
		}
	}
	out.Letters, out.Done, out.Failed = r.report, r.done, r.failed
	if err == nil && r.failed > 0 {
		err = fault.Exit(fault.Finding, &KeptError{DryRun: o.DryRun, Sent: out.sent(o.DryRun), Kept: r.failed})
	}
	return out, d.explained(err)
}

// replay replays dead letters, or predicts the outcome.
type replay struct {
	*deadLetters
	limiter *rate.Limiter
	pauseAt int64
	waiting func(backlog string)

	unchecked bool
	progress  func(done, all int)
	report    []Retry
	done      int
	failed    int
}

func (r *replay) send(ctx context.Context, list []ref) error {
	return r.letters(ctx, list, func(some []protocol.DLQEntry, gone []ref) error {
		if err := r.await(ctx); err != nil {
			return err
		}
		if r.progress != nil {
			defer func() { r.progress(len(r.report), len(list)) }()
		}
		for _, g := range gone {
			r.report = append(r.report, Retry{ID: g.id.String(), SourceID: g.source.String(), Outcome: "gone"})
		}
		edited, err := r.archive.Edited(ctx, idsOf(some))
		if err != nil {
			return err
		}
		if some = r.able(some, edited); len(some) == 0 {
			return nil
		}
		// Archived before they leave their stream.
		if err := r.archive.Export(ctx, some, r.by); err != nil {
			return err
		}
		as := make(map[telemetry.EntryID]telemetry.EntryID, len(some))
		err = r.sendSome(ctx, some, edited, as)
		return errors.Join(err, r.noteReplayed(ctx, as))
	})
}

// noteEvery bounds how long what was replayed is not noted: a restoration would bring it
// back.
const noteEvery = time.Second

// noteReplayed records what dead letters were replayed as, and forgets it.
func (r *replay) noteReplayed(ctx context.Context, as map[telemetry.EntryID]telemetry.EntryID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	err := r.archive.Replayed(ctx, as, r.by)
	if err == nil {
		clear(as)
	}
	return err
}

// able returns the dead letters that can be decoded, and refuses the others.
func (r *replay) able(some []protocol.DLQEntry, edited map[telemetry.EntryID][]string) []protocol.DLQEntry {
	if r.unchecked {
		return some
	}
	return slices.DeleteFunc(some, func(l protocol.DLQEntry) bool {
		_, err := r.decode(&l, edited[l.ID])
		if err != nil {
			r.report = append(r.report, Retry{ID: l.ID.String(), SourceID: l.Entry.ID.String()})
			r.refuse(len(r.report)-1, err)
		}
		return err != nil
	})
}

func (r *replay) sendSome(ctx context.Context, some []protocol.DLQEntry, edited map[telemetry.EntryID][]string, as map[telemetry.EntryID]telemetry.EntryID) error {
	pause := 1 / float64(r.limiter.Limit()) // seconds until the next one is sent
	noted := time.Now()
	for i := range some {
		l := &some[i]
		if time.Since(noted).Seconds()+pause >= noteEvery.Seconds() {
			if err := r.noteReplayed(ctx, as); err != nil {
				return err
			}
			noted = time.Now()
		}
		if err := r.limiter.Wait(ctx); err != nil {
			return errors.New("interrupted; run the same command to continue")
		}
		id, ok, err := r.dead.Replay(ctx, l.ID, stream.ReplayFields(&l.DeadLetter, l.ID, edited[l.ID]))
		if err != nil {
			return err
		}
		line := Retry{ID: l.ID.String(), SourceID: l.Entry.ID.String(), Outcome: "gone"}
		if ok {
			line.Outcome, line.As, line.Device, line.Fingerprint = "replayed", id.String(), strings.Clone(l.Entry.DeviceID()), strings.Clone(l.Fingerprint)
			as[l.ID] = id
			r.done++
		}
		r.report = append(r.report, line)
	}
	return nil
}

// await waits while the backlog is too large.
func (r *replay) await(ctx context.Context) error {
	said := false
	for {
		info, err := r.group.Info(ctx)
		if err != nil {
			return err
		}
		lag, most := info.Lag.N, ""
		if !info.Lag.Known {
			lag, most = info.Length, "at most "
		}
		if !info.GroupExists || info.Pending+lag < r.pauseAt {
			return nil
		}
		if !said {
			said = true
			r.waiting(most + cli.Count(info.Pending+lag, "entry"))
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted; run the same command to continue")
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// try predicts the outcome of dead letters without changing anything.
func (r *replay) try(ctx context.Context, list []ref) error {
	fences, _, err := store.NewFences(r.pool, askTimeout).Load(ctx)
	if err != nil {
		return err
	}
	rules := protocol.Rules{Fences: fences, Eligibility: r.cfg.Telemetry.Eligibility(), MaxGap: r.cfg.Geofences.MaxCrossingGap}
	taken := make(map[deviceTime]bool) // by those before; whether by one that takes part
	return r.letters(ctx, list, func(some []protocol.DLQEntry, gone []ref) error {
		for _, g := range gone {
			r.report = append(r.report, Retry{ID: g.id.String(), SourceID: g.source.String(), Outcome: "gone"})
		}
		edited, err := r.archive.Edited(ctx, idsOf(some))
		if err != nil {
			return err
		}
		for i := range some {
			r.report = append(r.report, Retry{ID: some[i].ID.String(), SourceID: some[i].Entry.ID.String()})
			line := len(r.report) - 1
			record, err := r.decode(&some[i], edited[some[i].ID])
			if err != nil {
				r.refuse(line, err)
				continue
			}
			stored, rejected, err := r.archive.Try(ctx, record, rules)
			if err != nil {
				return err
			}
			at := deviceTime{strings.Clone(record.DeviceID), record.TimeUS}
			eligible := rules.Eligibility.Of(&record) == telemetry.Eligible
			first, there := taken[at]
			switch {
			case rejected != nil:
				r.refuse(line, rejected)
			case !stored, there && (first || !eligible):
				r.report[line].Outcome = "duplicate"
			default:
				r.report[line].Outcome = "stored"
				taken[at] = eligible
			}
		}
		return nil
	})
}

// deviceTime is the key of a position.
type deviceTime struct {
	device string
	us     int64
}

func (r *replay) refuse(i int, err error) {
	r.failed++
	r.report[i].Outcome, r.report[i].Reason = "refused", err.Error()
}
