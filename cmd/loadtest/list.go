package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

func newListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Explain each scenario and its bounds",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := scenarios.All()
			if asJSON {
				return listJSON(cmd.OutOrStdout(), all)
			}
			var b strings.Builder
			for _, s := range all {
				b.WriteString(s.Name + "\n" + wrap(s.About, "  "))
				if s.Bounds != "" {
					b.WriteString(wrap("Bounds: "+s.Bounds+".", "  "))
				}
				b.WriteString(wrap("Plan: "+planText(s.Plan)+".", "  "))
				if s.Breaks {
					b.WriteString(wrap("On servers of your own with --allow-faults only.", "  "))
				}
				b.WriteString("\n")
			}
			b.WriteString("Bounds of all\n" + wrap(scenarios.EveryBound+".", "  "))
			if _, err := fmt.Fprint(cmd.OutOrStdout(), b.String()); err != nil {
				return fmt.Errorf("print the list: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// scenarioJSON is a scenario as programs read it.
type scenarioJSON struct {
	Name   string   `json:"name"`
	About  string   `json:"about"`
	Bounds string   `json:"bounds"` // beside those of every scenario
	Breaks bool     `json:"breaks"` // needs --allow-faults on servers of one's own
	Plan   planJSON `json:"plan"`   // what the flags change; 0 means that it has no use for it
}

type planJSON struct {
	Instances int     `json:"instances"`
	Devices   int     `json:"devices"`
	Rate      float64 `json:"entries_per_second"`
	Seconds   float64 `json:"duration_seconds"`
	Entries   int     `json:"entries"`
	Rounds    int     `json:"rounds"`
	Fleet     string  `json:"fleet"`
}

func listJSON(out io.Writer, all []scenarios.Scenario) error {
	list := make([]scenarioJSON, len(all))
	for i, s := range all {
		p := s.Plan
		list[i] = scenarioJSON{
			Name: s.Name, About: s.About, Bounds: s.Bounds, Breaks: s.Breaks,
			Plan: planJSON{
				Instances: p.Instances, Devices: p.Devices, Rate: p.Rate, Seconds: p.Duration.Seconds(),
				Entries: p.Entries, Rounds: p.Rounds, Fleet: p.Profile,
			},
		}
	}
	return printJSON(out, list)
}

func planText(p scenarios.Plan) string {
	text := fmt.Sprintf("%d instances, %d devices", p.Instances, p.Devices)
	if p.Instances == 1 {
		text = fmt.Sprintf("1 instance, %d devices", p.Devices)
	}
	if p.Entries > 0 {
		return text + fmt.Sprintf(", %s entries", cli.Thousands(int64(p.Entries)))
	}
	return text + fmt.Sprintf(", %s entries/s for %s, fleet %s", cli.Thousands(int64(p.Rate)), p.Duration, p.Profile)
}

// wrap breaks a text into lines that fit a terminal, each behind the indent.
func wrap(text, indent string) string {
	const width = 80
	return indent + strings.Join(cli.Wrap(text, width-len(indent)), "\n"+indent) + "\n"
}
