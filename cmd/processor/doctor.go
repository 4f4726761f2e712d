package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
)

func newDoctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check for common problems",
		Long: `Examines Redis, Postgres, the stream, the group, the schema and this machine with
the settings of the service, changes nothing, and prints each finding with its
remedy and its page of the runbook. Exits 1 if a finding is an error, 3 if a
setting is invalid; warnings alone exit 0.`,
		Example: `  processor doctor
  processor doctor --json
  env $(cat production.env) processor doctor`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := openWithSettings(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			d := f.Diagnose(cmd.Context())
			for _, w := range config.LikelyTypos(os.Environ()) {
				d.Warn("settings", w, "rename the variable")
			}
			if err := printed(cmd, d, printDiagnosis); err != nil {
				return err
			}
			if d.Trouble {
				return fault.Exit(fault.Finding, nil)
			}
			return nil
		},
	}
}

// printDiagnosis prints the findings that need action last, next to the prompt.
func printDiagnosis(out *cli.Output, d *operator.Diagnosis) error {
	order := []string{operator.LevelOK, operator.LevelWarning, operator.LevelError}
	colors := map[string]cli.Color{operator.LevelOK: cli.Green, operator.LevelWarning: cli.Yellow, operator.LevelError: cli.Red}
	list := slices.Clone(d.Findings)
	slices.SortStableFunc(list, func(a, b operator.Finding) int {
		return slices.Index(order, a.Level) - slices.Index(order, b.Level)
	})
	for _, f := range list {
		label := out.Paint(colors[f.Level], fmt.Sprintf("%-8s", f.Level))
		for i, line := range cli.Wrap(f.About+": "+f.What, cli.Columns-9) {
			if i > 0 {
				label = strings.Repeat(" ", 8)
			}
			if err := out.Line("%s %s", label, line); err != nil {
				return err
			}
		}
		if f.Remedy == "" {
			continue
		}
		for i, line := range cli.Wrap(f.Remedy, cli.Columns-12) {
			arrow := "->"
			if i > 0 {
				arrow = "  "
			}
			if err := out.Line("         %s %s", arrow, line); err != nil {
				return err
			}
		}
	}
	return nil
}
