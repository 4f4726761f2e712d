package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
)

// listFlags are the flags of a list, newest first.
type listFlags struct {
	limit  int
	before int64
}

func (l *listFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&l.limit, "limit", 50, "maximum number to list")
	cmd.Flags().Int64Var(&l.before, "before", 0, "only those before this number, the older ones")
}

// listCommand returns a command that prints a page of a list.
func listCommand[T any](cmd *cobra.Command, l *listFlags, ask func(f *operator.Fleet, ctx context.Context) (operator.Page[T], error), header []string, row func(t *cli.Table, r T)) *cobra.Command {
	l.add(cmd)
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.LoadServers(os.Environ())
		if err != nil {
			return err
		}
		return listOfEach(cmd, cfg, func(f *operator.Fleet) (operator.Page[T], error) { return ask(f, cmd.Context()) }, func(out *cli.Output, p operator.Page[T]) error {
			if len(p.Rows) == 0 {
				return out.Line("none")
			}
			t := cli.NewTable(header...)
			for _, r := range p.Rows {
				row(t, r)
			}
			if err := out.Table(t); err != nil || p.Next == 0 {
				return err
			}
			return out.Line("more exist: --before %d", p.Next)
		})
	}
	return cmd
}

func stamp(t time.Time) string { return t.UTC().Format(shortTime) }

func stampOr(t *time.Time, none any) any {
	if t == nil {
		return none
	}
	return stamp(*t)
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func newAuditCommand() *cobra.Command {
	var l listFlags
	return listCommand(&cobra.Command{
		Use: "audit", Short: "List what operators changed, newest first",
		Long:    `Lists processor.audit: who did what to what, when and why.`,
		Example: "  processor audit\n  processor audit --limit 500 --json",
	}, &l, func(f *operator.Fleet, ctx context.Context) (operator.Page[store.AuditRow], error) {
		return f.Audit(ctx, l.before, l.limit)
	}, []string{"NUMBER", "WHEN", "WHO", "ACTION", "ON", "COUNT", "DETAIL"}, func(t *cli.Table, r store.AuditRow) {
		t.Row(r.Number, stamp(r.At), r.Who, r.Action, r.Target, cli.Number(r.Count), detailText(r.Detail))
	})
}

func newIncidentsCommand() *cobra.Command {
	var l listFlags
	var open bool
	cmd := listCommand(&cobra.Command{
		Use: "incidents", Short: "List incidents, newest first",
		Long:    `Lists all incidents that are recorded, open and closed ones, with what to do about them.`,
		Example: "  processor incidents --open\n  processor incidents --limit 500 --json",
	}, &l, func(f *operator.Fleet, ctx context.Context) (operator.Page[store.NumberedIncident], error) {
		return f.Incidents(ctx, open, l.before, l.limit)
	}, []string{"NUMBER", "INCIDENT", "OPENED", "CLOSED", "PAGE", "SUBJECT", "DETAIL"}, func(t *cli.Table, r store.NumberedIncident) {
		t.Row(r.Number, r.Kind, stamp(r.Opened), stampOr(r.Closed, cli.Colored("open", cli.Red)), operator.GuideOf(r.Kind).Page, r.Subject, detailText(r.Detail))
	})
	cmd.Flags().BoolVar(&open, "open", false, "only open ones")
	return cmd
}

func newDLQArchiveCommand() *cobra.Command {
	var l listFlags
	var f store.ArchiveFilter
	cmd := listCommand(&cobra.Command{
		Use: "archive", Short: "List archived dead letters, newest first",
		Long:    `Lists the dead letters that were dropped, edited or replayed, and those whose retention is over.`,
		Example: "  processor dlq archive --device 356307042441013\n  processor dlq archive --open --json",
	}, &l, func(fleet *operator.Fleet, ctx context.Context) (operator.Page[store.ArchivedLetter], error) {
		return fleet.Archived(ctx, f, l.before, l.limit)
	}, []string{"NUMBER", "ID", "CLASS", "DEVICE", "ARCHIVED", "BY", "REPLAYED AS", "ERROR"}, func(t *cli.Table, r store.ArchivedLetter) {
		t.Row(r.Number, r.ID, r.Class, text(r.Device), stamp(r.Exported), r.By, text(r.ReplayedAs), r.Error)
	})
	archiveFlags(cmd, &f)
	cmd.Flags().BoolVar(&f.OpenOnly, "open", false, "only those that were not replayed")
	return cmd
}

func archiveFlags(cmd *cobra.Command, f *store.ArchiveFilter) {
	cmd.Flags().StringVar(&f.Class, "class", "", "reason: decode, invalid, sink, crash or too_large")
	cmd.Flags().StringVar(&f.Device, "device", "", "device ID")
	cmd.Flags().StringVar(&f.Fingerprint, "fingerprint", "", "failure group")
}

func newDLQRestoreCommand() *cobra.Command {
	var f store.ArchiveFilter
	var o operator.RestoreOptions
	var all bool
	cmd := &cobra.Command{
		Use:   "restore [ID...]",
		Short: "Put dropped dead letters back",
		Long: `Puts archived dead letters that were dropped, or whose retention is over, back into
their stream with their edits. IDs are those of the dead letters or of the original
entries. What was replayed, and what is there, is left alone. Recorded in
processor.audit. Exits 1 if none matches.`,
		Example: `  processor dlq restore 1764000000000-0
  processor dlq restore --fingerprint decode/payload/truncated --dry-run`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.IDs, f.OpenOnly = args, true
			if len(args) == 0 && f.Class+f.Device+f.Fingerprint == "" && !all {
				return usageError(cmd, operator.ErrChooseAll)
			}
			fleet, err := openWithSettings(cmd)
			if err != nil {
				return err
			}
			defer fleet.Close()
			list, missing, err := fleet.RestoreDeadLetters(cmd.Context(), f, o)
			if err != nil && len(list) == 0 && !errors.Is(err, operator.ErrNoMatch) {
				return err
			}
			for _, id := range missing {
				if len(list) > 0 {
					say(cmd.ErrOrStderr(), "no dead letter in the archive has the ID %s, nor was it the entry %s, or it was replayed", id, id)
				}
			}
			if shown := printed(cmd, list, func(out *cli.Output, list []operator.Restored) error {
				if len(list) == 0 {
					return out.Line("none")
				}
				t := cli.NewTable("ID", "ENTRY", "OUTCOME", "RESTORED AS")
				for _, r := range list {
					t.Row(r.ID, r.SourceID, r.Outcome, r.As)
				}
				return out.Table(t)
			}); shown != nil {
				return shown
			}
			return err
		},
	}
	archiveFlags(cmd, &f)
	cmd.Flags().BoolVar(&all, "all", false, "all that were not replayed")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only report what would be restored")
	cmd.Flags().IntVar(&o.Limit, "limit", 0, "restore at most so many; 0 is all")
	return cmd
}

func newDLQDeferredCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:     "deferred",
		Short:   "List entries that wait for another attempt",
		Long:    `Lists the entries that could not be processed and are tried again later, the next ones first.`,
		Example: "  processor dlq deferred\n  processor dlq deferred --limit 1000 --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			return listOfEach(cmd, cfg, func(f *operator.Fleet) ([]store.DeferredRow, error) { return f.Deferred(cmd.Context(), limit) }, func(out *cli.Output, list []store.DeferredRow) error {
				if len(list) == 0 {
					return out.Line("none")
				}
				t := cli.NewTable("ENTRY", "CLASS", "DEVICE", "SHARD", "TRIES", "NEXT", "ERROR")
				for _, r := range list {
					t.Row(r.Entry, r.Class, text(r.Device), r.Shard, r.Attempts, stamp(r.Next), r.Error)
				}
				return out.Table(t)
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 50, "maximum number to list")
	return cmd
}

func newDeviceListCommand() *cobra.Command {
	var prefix, after string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List devices with stored positions",
		Long: `Lists the IDs of devices that have stored positions, in order. In a database that
orders by the rules of a language, --prefix may miss some that came before an upgrade,
until a change of fences or a recompute of all devices has found them.`,
		Example: "  processor device list --prefix 3563\n  processor device list --limit 100000 --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			ids, err := f.Devices(cmd.Context(), prefix, after, limit)
			if err != nil {
				return err
			}
			return printed(cmd, ids, func(out *cli.Output, ids []string) error {
				t := cli.NewTable("DEVICE")
				for _, id := range ids {
					t.Row(id)
				}
				if err := out.Table(t); err != nil || len(ids) < limit {
					return err
				}
				return out.Line("more may exist: --after %s", ids[len(ids)-1])
			})
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "", "how the IDs begin")
	cmd.Flags().StringVar(&after, "after", "", "only IDs after this one")
	cmd.Flags().IntVar(&limit, "limit", 50, "maximum number to list")
	return cmd
}
