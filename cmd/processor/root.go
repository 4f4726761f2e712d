package main

import (
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
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
	}
	root.PersistentFlags().Bool("json", false, "print JSON with stable field names")
	root.AddCommand(commands()...)
	cli.Strict(root)
	return root
}

// group is a command that only holds others.
func group(cmd *cobra.Command, members ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(members...)
	return cmd
}

// usageError is a command line that cannot be understood.
func usageError(cmd *cobra.Command, err error) error { return cli.Usage(cmd, err) }

func eachCommand(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		eachCommand(c, visit)
	}
}
