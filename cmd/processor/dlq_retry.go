package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// retryJSON is the outcome of one dead letter.
type retryJSON struct {
	ID       string `json:"id"`
	SourceID string `json:"source_id"`
	Outcome  string `json:"outcome"` // replayed, gone; in a dry run stored, duplicate, refused
	As       string `json:"replayed_as,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

func newDLQRetryCommand() *cobra.Command {
	var f filter
	var all, dry bool
	var perSecond float64
	var pauseAt int64
	cmd := &cobra.Command{
		Use:   "retry [ID...]",
		Short: "Replay dead letters, as edited, in the order of their entries",
		Long: `Adds dead letters to the source stream again, in the order of their entries, and
removes them. They are processed like late records and keep the stream time of the
original entries. Pauses while the service has too large a backlog. After an
interruption, the same command continues where it ended.

With --dry-run nothing is sent: each is decoded, and the write is run in a
transaction that is rolled back. Exits 1 if one would fail, or if none matches.`,
		Example: `  processor dlq retry --fingerprint decode/payload/truncated --dry-run
  processor dlq retry --class sink --rate 500`,
		Args: cobra.ArbitraryArgs,
		RunE: withDLQ(func(cmd *cobra.Command, m *dlqClient, args []string) error {
			if err := f.set(cmd, args); err != nil {
				return err
			}
			if perSecond <= 0 || pauseAt < 1 {
				return usageError(cmd, errors.New("--rate and --pause-at must be more than 0"))
			}
			list, err := m.chosen(cmd, &f, all)
			if err != nil {
				return err
			}
			if err := f.matched(cmd, len(list)); err != nil || len(list) == 0 {
				return errors.Join(outputOf(cmd).Result([]retryJSON{}, func() error { return nil }), err)
			}
			r := &replay{dlqClient: m, limiter: rate.NewLimiter(rate.Limit(perSecond), 1), pauseAt: pauseAt, say: func(format string, args ...any) {
				say(cmd.ErrOrStderr(), format, args...)
			}}
			if dry {
				err = r.try(cmd.Context(), list)
			} else {
				err = r.send(cmd.Context(), list)
				if auditErr := m.note(cmd, "dlq retry", &f, r.done); err == nil {
					err = auditErr
				}
			}
			if printErr := r.print(outputOf(cmd), dry); err == nil {
				err = printErr
			}
			if err == nil && r.failed > 0 {
				err = exit(exitFinding, fmt.Errorf("%d of %d would fail; see processor dlq edit", r.failed, len(list)))
			}
			return err
		}),
	}
	f.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "select all dead letters")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only report what would happen")
	cmd.Flags().Float64Var(&perSecond, "rate", 200, "maximum dead letters per second")
	cmd.Flags().Int64Var(&pauseAt, "pause-at", 5000, "pause while the backlog exceeds this")
	return cmd
}

// replay replays dead letters, or predicts the outcome.
type replay struct {
	*dlqClient
	limiter *rate.Limiter
	pauseAt int64
	say     func(format string, args ...any)

	report []retryJSON
	done   int
	failed int
}

func (r *replay) send(ctx context.Context, list []ref) error {
	return r.letters(ctx, list, func(some []protocol.DLQEntry, gone []ref) error {
		if err := r.await(ctx); err != nil {
			return err
		}
		for _, g := range gone {
			r.report = append(r.report, retryJSON{ID: g.id.String(), SourceID: g.source.String(), Outcome: "gone"})
		}
		// Archived before they leave their stream.
		if err := r.archive.Export(ctx, some, operatorName()); err != nil {
			return err
		}
		edited, err := r.archive.Edited(ctx, idsOf(some))
		if err != nil {
			return err
		}
		as := make(map[telemetry.EntryID]telemetry.EntryID, len(some))
		err = r.sendSome(ctx, some, edited, as)
		noting, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		return errors.Join(err, r.archive.Replayed(noting, as, operatorName()))
	})
}

func (r *replay) sendSome(ctx context.Context, some []protocol.DLQEntry, edited map[telemetry.EntryID][]string, as map[telemetry.EntryID]telemetry.EntryID) error {
	for i := range some {
		l := &some[i]
		if err := r.limiter.Wait(ctx); err != nil {
			return errors.New("interrupted; run the same command to continue")
		}
		id, ok, err := r.dead.Replay(ctx, l.ID, stream.ReplayFields(&l.DeadLetter, edited[l.ID]))
		if err != nil {
			return err
		}
		line := retryJSON{ID: l.ID.String(), SourceID: l.Entry.ID.String(), Outcome: "gone"}
		if ok {
			line.Outcome, line.As = "replayed", id.String()
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
		if !info.GroupExists || info.Pending+info.Lag.N < r.pauseAt {
			return nil
		}
		if !said {
			said = true
			r.say("waiting: %s entries in the backlog", cli.Number(info.Pending+info.Lag.N))
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
	rules := protocol.Rules{Fences: fences, MaxFutureSkew: r.cfg.Telemetry.MaxFutureSkew, MaxGap: r.cfg.Geofences.MaxCrossingGap}
	var records []telemetry.Record
	var at []int // in the report
	err = r.letters(ctx, list, func(some []protocol.DLQEntry, gone []ref) error {
		for _, g := range gone {
			r.report = append(r.report, retryJSON{ID: g.id.String(), SourceID: g.source.String(), Outcome: "gone"})
		}
		edited, err := r.archive.Edited(ctx, idsOf(some))
		if err != nil {
			return err
		}
		for i := range some {
			r.report = append(r.report, retryJSON{ID: some[i].ID.String(), SourceID: some[i].Entry.ID.String()})
			record, err := r.decode(&some[i], edited[some[i].ID])
			if err != nil {
				r.refuse(len(r.report)-1, err)
				continue
			}
			records, at = append(records, record), append(at, len(r.report)-1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.archive.Try(ctx, records, rules, func(n int, stored bool, err error) {
		switch i := at[n]; {
		case err != nil:
			r.refuse(i, err)
		case stored:
			r.report[i].Outcome = "stored"
		default:
			r.report[i].Outcome = "duplicate"
		}
	})
}

func (r *replay) refuse(i int, err error) {
	r.failed++
	r.report[i].Outcome, r.report[i].Reason = "refused", err.Error()
}

func (r *replay) print(out *cli.Output, dry bool) error {
	if r.report == nil {
		r.report = []retryJSON{}
	}
	return out.Result(r.report, func() error {
		t := cli.NewTable("ID", "ENTRY", "OUTCOME", "DETAIL")
		for _, l := range r.report {
			c := cli.Green
			if l.Outcome == "refused" || l.Outcome == "gone" {
				c = cli.Yellow
			}
			t.Row(l.ID, l.SourceID, cli.Colored(l.Outcome, c), l.As+l.Reason)
		}
		if err := out.Table(t); err != nil {
			return err
		}
		if dry {
			return out.Line("%d would fail; nothing was changed", r.failed)
		}
		return out.Line("replayed %d", r.done)
	})
}

func idsOf(list []protocol.DLQEntry) []telemetry.EntryID {
	ids := make([]telemetry.EntryID, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	return ids
}
