package main

import (
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
)

func newFleetCommand() *cobra.Command {
	return group(&cobra.Command{
		Use: "fleet", Short: "Say with which database the fleet works",
		Example: "  processor fleet adopt --help",
	}, newAdoptCommand())
}

func newAdoptCommand() *cobra.Command {
	var reason string
	var confirm bool
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Have the fleet work with the database of POSTGRES_URL",
		Long: `For a database that was restored, moved or replaced on purpose: Redis keeps the identity
of the fleet's database, and instances with another one refuse to start. Stop every
instance first. Without --confirm it only tells what it would do. What was acknowledged
and is missing in the new database is read again from the stream as far as it goes back.
Recorded in processor.audit of the new database.`,
		Example: `  processor fleet adopt
  processor fleet adopt --confirm --reason 'moved to db-2'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			a, err := f.Adopt(cmd.Context(), reason, confirm)
			if err != nil {
				return err
			}
			return printed(cmd, a, printAdopted)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit; needed with --confirm")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "do it")
	return cmd
}

func printAdopted(out *cli.Output, a operator.Adopted) error {
	before, after := "now", "would be"
	switch {
	case a.From != nil && *a.From == a.To:
		return out.Line("the fleet works with %s already", a.To)
	case a.Changed:
		before, after = "before", "now"
	}
	from := any("none")
	if a.From != nil {
		from = a.From.String()
	}
	t := cli.NewTable("", "DATABASE OF THE FLEET")
	t.Row(before, from)
	t.Row(after, a.To.String())
	if err := out.Table(t); err != nil || a.Changed {
		return err
	}
	return out.Line("nothing was changed; add --confirm and --reason")
}
