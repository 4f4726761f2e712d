package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
)

// outputOf returns where cmd prints its result.
func outputOf(cmd *cobra.Command) *cli.Output {
	asJSON, err := cmd.Flags().GetBool("json")
	return cli.New(cmd.OutOrStdout(), err == nil && asJSON)
}

// say prints a message apart from the result.
func say(w io.Writer, format string, args ...any) {
	cli.Say(w, format, args...)
}
