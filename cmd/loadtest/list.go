package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/loadtest"
)

func newListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Explain each scenario and its bounds",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			scenarios := loadtest.Scenarios()
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(scenarios)
			}
			var b strings.Builder
			for _, s := range scenarios {
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
			b.WriteString("Bounds of all\n" + wrap(loadtest.EveryBound+".", "  "))
			if _, err := fmt.Fprint(cmd.OutOrStdout(), b.String()); err != nil {
				return fmt.Errorf("print the list: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func planText(p loadtest.Plan) string {
	text := fmt.Sprintf("%d instances, %d devices", p.Instances, p.Devices)
	if p.Instances == 1 {
		text = fmt.Sprintf("1 instance, %d devices", p.Devices)
	}
	if p.Entries > 0 {
		return text + fmt.Sprintf(", %d entries", p.Entries)
	}
	return text + fmt.Sprintf(", %.0f entries/s for %s, fleet %s", p.Rate, p.Duration, p.Profile)
}

// wrap breaks a text into lines that fit a terminal, each behind the indent.
func wrap(text, indent string) string {
	const width = 80
	var b strings.Builder
	line := indent
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width && line != indent {
			b.WriteString(line + "\n")
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
	return b.String()
}
