package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/protocol"
)

func newDLQDropCommand() *cobra.Command {
	var f filter
	var all bool
	var yes int
	cmd := &cobra.Command{
		Use:   "drop [ID...] --yes COUNT",
		Short: "Delete dead letters; a copy stays in processor.dead_letters",
		Example: `  processor dlq drop --fingerprint invalid/payload.latitude/range --yes 17
  processor dlq drop 1764000000000-0 --yes 1`,
		Args: cobra.ArbitraryArgs,
		RunE: withDLQ(func(cmd *cobra.Command, m *dlqClient, args []string) error {
			if err := f.set(cmd, args); err != nil {
				return err
			}
			list, err := m.chosen(cmd, &f, all)
			if err != nil {
				return err
			}
			out := outputOf(cmd)
			result := func(dropped int) error {
				return out.Result(map[string]int{"dropped": dropped}, func() error { return out.Line("dropped %d", dropped) })
			}
			if err := f.matched(cmd, len(list)); err != nil || len(list) == 0 && yes <= 0 {
				return errors.Join(result(0), err)
			}
			if yes != len(list) {
				return exit(exitFinding, fmt.Errorf("%d dead letters match; confirm with --yes %d", len(list), len(list)))
			}
			dropped := 0
			err = m.letters(cmd.Context(), list, func(some []protocol.DLQEntry, _ []ref) error {
				if err := m.archive.Export(cmd.Context(), some, operatorName()); err != nil {
					return err
				}
				if err := m.archive.Dropped(cmd.Context(), some); err != nil {
					return err
				}
				n, err := m.dead.Remove(cmd.Context(), idsOf(some))
				dropped += n
				return err
			})
			if auditErr := m.note(cmd, "dlq drop", &f, dropped); err == nil {
				err = auditErr
			}
			if err != nil {
				return err
			}
			return result(dropped)
		}),
	}
	f.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "select all dead letters")
	cmd.Flags().IntVar(&yes, "yes", -1, "number of dead letters to drop, as confirmation")
	return cmd
}
