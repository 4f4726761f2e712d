package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// commands lists every command; each has a file of its own.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newRunCommand(),
		newDemoCommand(),
		newMigrateCommand(),
		newLagCommand(),
		newMembersCommand(),
		newShardsCommand(),
		newClaimCommand(),
		newDeviceCommand(),
		newGeofenceCommand(),
		newHealthCommand(),
		newDLQCommand(),
		newDoctorCommand(),
		newTraceCommand(),
		newConfigCommand(),
		newVersionCommand(),
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "processor",
		Short: "Turn a Redis Stream of vehicle positions into durable facts in Postgres",
		Long: `The Processor reads positions from a Redis Stream, keeps each vehicle's order,
and writes positions and geofence crossings to Postgres. Any number of
instances share the work.

Settings come from the environment: see processor config table.`,
		Example: `  processor config check
  processor health --json`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	root.PersistentFlags().Bool("json", false, "print JSON with stable field names")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, err) })
	root.AddCommand(commands()...)
	eachCommand(root, func(cmd *cobra.Command) {
		if check := cmd.Args; check != nil {
			cmd.Args = func(cmd *cobra.Command, args []string) error {
				if err := check(cmd, args); err != nil {
					return usageError(cmd, err)
				}
				return nil
			}
		}
	})
	return root
}

// group is a command that only holds others.
func group(cmd *cobra.Command, members ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	cmd.AddCommand(members...)
	return cmd
}

func unknownCommand(parent *cobra.Command, name string) error {
	text := fmt.Sprintf("unknown command %q", name)
	if parent.SuggestionsMinimumDistance <= 0 {
		parent.SuggestionsMinimumDistance = 2
	}
	if similar := parent.SuggestionsFor(name); len(similar) > 0 {
		text += "; did you mean " + strings.Join(similar, " or ") + "?"
	}
	return usageError(parent, errors.New(text))
}

// usageError is a command line that cannot be understood.
func usageError(cmd *cobra.Command, err error) error {
	return exit(exitConfig, fmt.Errorf("%w\nsee %s --help", err, cmd.CommandPath()))
}

func eachCommand(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		eachCommand(c, visit)
	}
}
