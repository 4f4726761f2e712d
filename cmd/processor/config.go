package main

import (
	"cmp"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
)

func newConfigCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "config",
		Short: "Show and check the settings",
		Example: `  processor config table
  processor config check`,
	}, newConfigTableCommand(), newConfigCheckCommand())
}

func newConfigTableCommand() *cobra.Command {
	var write string
	cmd := &cobra.Command{
		Use:   "table",
		Short: "Print every variable with default, bounds and meaning",
		Long: `Prints the table of all variables as Markdown, or as JSON. With --write it
regenerates the table in a file, between the markers <!-- config:begin --> and
<!-- config:end -->.`,
		Example: `  processor config table
  processor config table --json
  processor config table --write docs/reference/configuration.md`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if write != "" {
				return renewTable(write)
			}
			out := outputOf(cmd)
			return out.Result(config.Variables(), func() error {
				_, err := fmt.Fprint(out.W, config.Markdown())
				return err
			})
		},
	}
	cmd.Flags().StringVar(&write, "write", "", "file whose table is regenerated")
	return cmd
}

func renewTable(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read table: %w", err)
	}
	renewed, err := config.Renew(string(text))
	if err != nil {
		return fmt.Errorf("regenerate table in %s: %w", file, err)
	}
	if renewed == string(text) {
		return nil
	}
	if err := os.WriteFile(file, []byte(renewed), 0o644); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func newConfigCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the environment and print the settings in use",
		Long: `Reads the environment as the service does and prints every setting, without
secrets. Exits 3 and lists every problem if there is one. Warns of variables that
look like a misspelling.`,
		Example: `  processor config check
  env $(cat production.env) processor config check --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			warnings := config.LikelyTypos(os.Environ())
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "processor: warning:", w)
			}
			cfg, err := config.Load(os.Environ())
			if err != nil {
				return err
			}
			out := outputOf(cmd)
			return out.Result(settingsJSON{Settings: cfg.Settings(), Warnings: append([]string{}, warnings...)}, func() error {
				t := cli.NewTable("VARIABLE", "VALUE")
				for _, s := range cfg.Settings() {
					t.Row(s.Name, cmp.Or(s.Value, "(not set)"))
				}
				return out.Table(t)
			})
		},
	}
}

// settingsJSON is the output of config check.
type settingsJSON struct {
	Settings []config.Setting `json:"settings"`
	Warnings []string         `json:"warnings"`
}
