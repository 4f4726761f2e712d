package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/modules"
)

func newMigrateCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "migrate",
		Short: "Create, check or print the database schema",
		Long: `Creates, checks or prints the schema in Postgres. Uses POSTGRES_MIGRATE_URL if it is
set, otherwise POSTGRES_URL. The service does the same at start, as MIGRATE says:
auto, verify or off.`,
		Example: `  processor migrate up
  processor migrate verify --json`,
	}, newMigrateUpCommand(), newMigrateStatusCommand(), newMigrateVerifyCommand(), newMigratePrintCommand())
}

func newMigrateUpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Apply pending migrations",
		Long: `Applies, in order, the migrations that the database does not have yet. Any number
of processes may run it at the same time: one applies, the others wait.`,
		Example: `  processor migrate up
  POSTGRES_MIGRATE_URL=postgres://owner@db/trm processor migrate up`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadPostgres(os.Environ())
			if err != nil {
				return err
			}
			log := modules.NewLogger(config.Log{Level: slog.LevelWarn, Format: "auto"}, "migrate", cmd.ErrOrStderr())
			applied, err := schema.Migrate(cmd.Context(), cfg.MigrateURL.Reveal(), log, schema.MigrationLockTimeout(cfg.MigrateLockTimeout))
			if err != nil {
				return schemaExit(cfg.MigrateVariable(), cfg.MigrateURL, err)
			}
			out := outputOf(cmd)
			return out.Result(map[string]any{"applied": append([]string{}, applied...)}, func() error {
				if len(applied) == 0 {
					return out.Line("nothing to apply")
				}
				for _, name := range applied {
					if err := out.Line("applied %s", name); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func newMigrateStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "List the migrations and when they were applied",
		Example: `  processor migrate status
  processor migrate status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadPostgres(os.Environ())
			if err != nil {
				return err
			}
			list, err := schema.Status(cmd.Context(), cfg.MigrateURL.Reveal())
			if err != nil {
				return schemaExit(cfg.MigrateVariable(), cfg.MigrateURL, err)
			}
			out := outputOf(cmd)
			return out.Result(list, func() error {
				t := cli.NewTable("VERSION", "NAME", "APPLIED")
				for _, m := range list {
					name, applied := any(m.Name), any(cli.Colored("not applied", cli.Yellow))
					if m.Name == "" {
						name = cli.Colored("not known to this version", cli.Yellow)
					}
					if m.AppliedAt != nil {
						applied = m.AppliedAt.UTC().Format(time.RFC3339)
					}
					t.Row(m.Version, name, applied)
				}
				return out.Table(t)
			})
		},
	}
}

func newMigrateVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Check that the database has everything this version needs",
		Long: `Compares tables, columns, indexes, functions and privileges with what this version
needs, and reports every difference. Changes nothing. Exits 5 if something is
missing; anything additional is harmless and only listed.`,
		Example: `  processor migrate verify
  processor migrate verify --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadPostgres(os.Environ())
			if err != nil {
				return err
			}
			// With the role of the service, which needs the privileges.
			report, err := schema.VerifyURL(cmd.Context(), cfg.URL.Reveal())
			if err != nil {
				return schemaExit("POSTGRES_URL", cfg.URL, err)
			}
			out := outputOf(cmd)
			err = out.Result(report, func() error {
				for _, f := range report.Problems {
					if err := out.Line("%s %s", out.Paint(cli.Red, "problem"), f); err != nil {
						return err
					}
				}
				for _, f := range report.Notes {
					if err := out.Line("note %s", f); err != nil {
						return err
					}
				}
				if report.OK() {
					return out.Line("%s: the schema is complete", out.Paint(cli.Green, "ok"))
				}
				return out.Line("run processor migrate up, or apply the output of processor migrate print")
			})
			if err == nil && !report.OK() {
				return fault.Exit(fault.Schema, nil)
			}
			return err
		},
	}
}

func newMigratePrintCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "print",
		Short: "Print all migrations as plain SQL",
		Long: `Prints the SQL of all migrations, for platforms where another service owns the
schema. It may be applied any number of times, also after processor migrate up.`,
		Example: `  processor migrate print > processor.sql
  processor migrate print | psql "$POSTGRES_URL"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := outputOf(cmd)
			if out.JSON {
				return fault.Exit(fault.Config, errors.New("migrate print has no JSON output; omit --json"))
			}
			return schema.PrintSQL(out.W)
		},
	}
}

// schemaExit gives an error of the migration runner its message and exit code. The
// variable is the one that the URL came from.
func schemaExit(variable string, url config.PostgresURL, err error) error {
	var said *fault.ServerError
	switch err = fault.PostgresError(variable, url, err); {
	case errors.As(err, &said):
		return err
	case errors.Is(err, schema.ErrSchema):
		return fault.Exit(fault.Schema, err)
	case errors.Is(err, schema.ErrPooler), errors.Is(err, schema.ErrOld):
		return fault.Exit(fault.Config, err)
	}
	return fmt.Errorf("migrate: %w", err)
}
