package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

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
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, s := range scenarios {
				_, _ = fmt.Fprintf(w, "%s\t%s\n", s.Name, s.About)
				if s.Bounds != "" {
					_, _ = fmt.Fprintf(w, "\tbound: %s\n", s.Bounds)
				}
				_, _ = fmt.Fprintf(w, "\tplan: %s\n", planText(s.Plan))
			}
			_, _ = fmt.Fprintf(w, "all\tbound: %s\n", loadtest.EveryBound)
			if err := w.Flush(); err != nil {
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
	if p.Entries > 0 {
		return text + fmt.Sprintf(", %d entries", p.Entries)
	}
	return text + fmt.Sprintf(", %.0f entries/s for %s, fleet %s", p.Rate, p.Duration, p.Profile)
}
