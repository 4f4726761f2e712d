package main

import (
	"fmt"
	"os"
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
the settings of the service, changes nothing, and prints a verdict in one line and
each finding with its remedy and its page of the runbook. The number of shards is
the fleet's; SHARDS is compared with it where it is set. Exits 1 if a finding is an
error, 3 if a setting is invalid; warnings alone exit 0.`,
		Example: `  processor doctor
  processor doctor --json
  env $(cat production.env) processor doctor`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(os.Environ())
			if err != nil {
				return err
			}
			if os.Getenv("SHARDS") == "" {
				cfg.Coordination.Shards = 0
			}
			return ofEachStream(cmd, cfg, func(f *operator.Fleet) (*operator.Diagnosis, error) {
				d := f.Diagnose(cmd.Context())
				for _, w := range config.LikelyTypos(os.Environ()) {
					d.Warn("settings", w, "rename the variable")
				}
				if d.Trouble {
					return d, fault.Exit(fault.Finding, nil)
				}
				return d, nil
			}, printDiagnosis)
		},
	}
}

// printDiagnosis prints the verdict, then the findings: those that need action last,
// next to the prompt, and those with the same remedy together.
func printDiagnosis(out *cli.Output, d *operator.Diagnosis) error {
	order := []string{operator.LevelOK, operator.LevelWarning, operator.LevelError}
	colors := map[string]cli.Color{operator.LevelOK: cli.Green, operator.LevelWarning: cli.Yellow, operator.LevelError: cli.Red}
	verdict := colors[operator.LevelOK]
	if d.Trouble {
		verdict = colors[operator.LevelError]
	}
	if err := out.Line("%s", out.Paint(verdict, d.Verdict)); err != nil {
		return err
	}
	var groups [][]operator.Finding
	for _, level := range order {
		at := make(map[string]int) // group by remedy
		for _, f := range d.Findings {
			if f.Level != level {
				continue
			}
			i, known := at[f.Remedy]
			if !known || f.Remedy == "" {
				i = len(groups)
				at[f.Remedy], groups = i, append(groups, nil)
			}
			groups[i] = append(groups[i], f)
		}
	}
	wrapped := func(first, rest, text string) error {
		for i, line := range cli.Wrap(text, out.Columns()-12) {
			if i > 0 {
				first = rest
			}
			if err := out.Line("%s %s", first, line); err != nil {
				return err
			}
		}
		return nil
	}
	for _, group := range groups {
		for _, f := range group {
			what := f.About + ": " + f.What
			if f.Count > 1 {
				what = fmt.Sprintf("%s: %d x %s", f.About, f.Count, f.What)
			}
			if err := wrapped(out.Paint(colors[f.Level], fmt.Sprintf("%-8s", f.Level)), strings.Repeat(" ", 8), what); err != nil {
				return err
			}
		}
		if group[0].Remedy == "" {
			continue
		}
		if err := wrapped("         ->", "           ", group[0].Remedy); err != nil {
			return err
		}
	}
	return nil
}
