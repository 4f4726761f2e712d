package main

import (
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

func newReachedCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reached SCENARIO FOLDER",
		Short: "Say which rare branches a campaign has reached; exit 1 when one is missing",
		Long: `Reads what the runs of a scenario have counted in a folder, and compares it with the
rare branches that 20 runs of it reach. What no run reaches is not tested by any.`,
		Example: `  loadtest run chaos --seed 1 --processor bin/processor-mutant --rare rare
  loadtest run chaos --seed 2 --processor bin/processor-mutant --rare rare
  loadtest reached chaos rare`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := scenarios.ByName(args[0])
			if err != nil {
				return cli.Usage(cmd, err)
			}
			counts, err := rare.Read(args[1])
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, b := range slices.Sorted(maps.Keys(counts)) {
				_, _ = fmt.Fprintf(t, "%s\t%s\n", b, cli.Thousands(int64(counts[b])))
			}
			if err := t.Flush(); err != nil {
				return fmt.Errorf("print what was reached: %w", err)
			}
			if missing := counts.Missing(s.Reaches); len(missing) > 0 {
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "MISSED: not reached by any run: %s\n", rare.Join(missing))
				return errMissed
			}
			return nil
		},
	}
}
