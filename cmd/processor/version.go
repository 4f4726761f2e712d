package main

import (
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
)

func newVersionCommand() *cobra.Command {
	var sbom bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print version and commit of this binary",
		Example: `  processor version
  processor version --json
  processor version --sbom     # the modules it was built from, as CycloneDX`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, b := outputOf(cmd), cli.ReadBuild()
			if sbom {
				out.JSON = true
				return out.Result(cli.ReadBOM(), nil)
			}
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
	cmd.Flags().BoolVar(&sbom, "sbom", false, "print the bill of materials (CycloneDX, JSON)")
	return cmd
}
