package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
)

func newDLQRetryCommand() *cobra.Command {
	var by filter
	var all bool
	var o operator.RetryOptions
	cmd := &cobra.Command{
		Use:   "retry [ID...]",
		Short: "Replay dead letters, as edited, in the order of their entries",
		Long: `Adds dead letters to the source stream again, in the order of their entries, and
removes them. They are processed like late records and keep the stream time of the
original entries. Pauses while the service has too large a backlog. After an
interruption, the same command continues where it ended. What cannot be decoded
would come back: it stays where it is and is named; --unchecked sends it, too, for
instances of a newer version.

With --dry-run nothing is sent: each is decoded, and the write is run in a
transaction that is rolled back. Exits 1 if one would fail, or if none matches.`,
		Example: `  processor dlq retry --fingerprint decode/payload/truncated --dry-run
  processor dlq retry --class sink --rate 500`,
		Args: cobra.ArbitraryArgs,
		RunE: withDLQ(func(cmd *cobra.Command, f *operator.Fleet, args []string) error {
			if err := by.set(cmd, args); err != nil {
				return err
			}
			if o.PerSecond <= 0 || o.PauseAt < 1 {
				return usageError(cmd, errors.New("--rate and --pause-at must be more than 0"))
			}
			if by.Empty() && !all {
				return usageError(cmd, operator.ErrChooseAll)
			}
			o.Waiting = func(backlog string) {
				say(cmd.ErrOrStderr(), "waiting: %s in the backlog", backlog)
			}
			r, err := f.RetryDeadLetters(cmd.Context(), by.Filter, o)
			by.note(cmd, len(r.Letters), r.Missing)
			return errors.Join(printRetried(outputOf(cmd), &r, o.DryRun), err)
		}),
	}
	by.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "select all dead letters")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only report what would happen")
	cmd.Flags().BoolVar(&o.Unchecked, "unchecked", false, "send what this version cannot decode, too")
	cmd.Flags().Float64Var(&o.PerSecond, "rate", 200, "maximum dead letters per second")
	cmd.Flags().Int64Var(&o.PauseAt, "pause-at", 5000, "pause while the backlog exceeds this")
	return cmd
}

func printRetried(out *cli.Output, r *operator.Retried, dry bool) error {
	return out.Result(r.Letters, func() error {
		if len(r.Letters) == 0 {
			return nil
		}
		t := cli.NewTable("ID", "ENTRY", "OUTCOME", "DETAIL")
		for _, l := range r.Letters {
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
			return out.Line("%d would fail; nothing was changed", r.Failed)
		}
		if r.Failed > 0 {
			return out.Line("replayed %d; %d would come back and stay", r.Done, r.Failed)
		}
		return out.Line("replayed %d", r.Done)
	})
}
