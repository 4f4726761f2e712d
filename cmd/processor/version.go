package main

import (
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version and commit of this binary",
		Example: `  processor version
  processor version --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, b := outputOf(cmd), cli.ReadBuild()
			return out.Result(b, func() error {
				s := "processor " + b.Version
				if b.Revision != "" {
					s += " commit " + b.Revision
				}
				if b.Modified {
					s += " (modified)"
				}
				return out.Line("%s %s", s, b.Go)
			})
		},
	}
}
