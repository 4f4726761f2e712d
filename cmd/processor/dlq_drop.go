package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
)

func newDLQDropCommand() *cobra.Command {
	var by filter
	var all bool
	var confirm int
	cmd := &cobra.Command{
		Use:   "drop [ID...] --confirm COUNT",
		Short: "Delete dead letters; a copy stays in processor.dead_letters",
		Example: `  processor dlq drop --fingerprint invalid/payload.latitude/range --confirm 17
  processor dlq drop 1764000000000-0 --confirm 1`,
		Args: cobra.ArbitraryArgs,
		RunE: withDLQ(func(cmd *cobra.Command, f *operator.Fleet, args []string) error {
			if err := by.set(cmd, args); err != nil {
				return err
			}
			if by.Empty() && !all {
				return usageError(cmd, operator.ErrChooseAll)
			}
			d, err := f.DropDeadLetters(cmd.Context(), by.Filter, confirm)
			if err != nil && d.Dropped == 0 && !errors.Is(err, operator.ErrNoMatch) {
				return err
			}
			by.note(cmd, d.Dropped, d.Missing)
			return errors.Join(printed(cmd, &d, func(out *cli.Output, d *operator.Dropped) error {
				return out.Line("dropped %d", d.Dropped)
			}), err)
		}),
	}
	by.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "select all dead letters")
	cmd.Flags().IntVar(&confirm, "confirm", -1, "number of dead letters to drop")
	return cmd
}
