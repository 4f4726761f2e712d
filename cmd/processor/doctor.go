package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/modules"
)

// otherStreamPrefix is the prefix of the platform's telemetry streams.
const otherStreamPrefix = "telemetry:"

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
			cfg, err := config.Load(os.Environ())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*askTimeout)
			defer cancel()
			d := &diagnosis{}
			for _, w := range config.LikelyTypos(os.Environ()) {
				d.add(levelWarning, "settings", w, "rename the variable")
			}
			d.examine(ctx, cfg)
			out := outputOf(cmd)
			if err := out.Result(d, func() error { return d.print(out) }); err != nil {
				return err
			}
			if d.Trouble {
				return exit(exitFinding, nil)
			}
			return nil
		},
	}
}

// The levels of findings, least severe first.
const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelError   = "trouble"
)

// finding is the result of one check.
type finding struct {
	Level  string `json:"level"`
	About  string `json:"about"`
	What   string `json:"what"`
	Remedy string `json:"remedy"` // "" for ok
}

// diagnosis is the output of processor doctor.
type diagnosis struct {
	Trouble  bool      `json:"trouble"`
	Findings []finding `json:"findings"`
}

func (d *diagnosis) add(level, about, what, remedy string) {
	d.Findings = append(d.Findings, finding{Level: level, About: about, What: what, Remedy: remedy})
	d.Trouble = d.Trouble || level == levelError
}

func (d *diagnosis) ok(about, format string, args ...any) {
	d.add(levelOK, about, fmt.Sprintf(format, args...), "")
}

// unreachable adds that a server is unreachable, or that it returns an error. One
// that rejects the login is running; only its URL is wrong.
func (d *diagnosis) unreachable(about string, err error, silent, answered string) {
	var said *modules.ServerError
	switch {
	case !errors.As(err, &said):
		d.add(levelError, about, err.Error(), answered)
	case exitCode(err) == exitConfig:
		d.add(levelError, about, strings.TrimPrefix(said.What, about+" "), said.Remedy)
	default:
		d.add(levelError, about, strings.TrimPrefix(said.What, about+" "), silent)
	}
}

// check adds a finding that is ok unless bad.
func (d *diagnosis) check(bad bool, level, about, good, what, remedy string) {
	if bad {
		d.add(level, about, what, remedy)
		return
	}
	if good != "" {
		d.ok(about, "%s", good)
	}
}

// print prints the findings that need action last, next to the prompt.
func (d *diagnosis) print(out *cli.Output) error {
	order := []string{levelOK, levelWarning, levelError}
	colors := map[string]cli.Color{levelOK: cli.Green, levelWarning: cli.Yellow, levelError: cli.Red}
	list := slices.Clone(d.Findings)
	slices.SortStableFunc(list, func(a, b finding) int {
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
