package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/trmtracking/processor/internal/cli"
)

// commands lists every command; each family has a file of its own.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newRunCommand(),
		newMigrateCommand(),
		newLagCommand(),
		newMembersCommand(),
		newShardsCommand(),
		newStreamsCommand(),
		newClaimCommand(),
		newDeviceCommand(),
		newRequestsCommand(),
		newGeofenceCommand(),
		newHealthCommand(),
		newDLQCommand(),
		newPauseCommand(),
		newResumeCommand(),
		newDrainCommand(),
		newUndrainCommand(),
		newFleetCommand(),
		newReplayCommand(),
		newIncidentsCommand(),
		newAuditCommand(),
		newTopCommand(),
		newDoctorCommand(),
		newTraceCommand(),
		newConfigCommand(),
		newVersionCommand(),
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "processor",
		Short: "Process a Redis Stream of vehicle positions into Postgres",
		Long: `The Processor reads positions from a Redis Stream, keeps each vehicle's order,
and writes positions and geofence crossings to Postgres. Any number of
instances share the work.

Settings come from the environment: see processor config table.`,
		Example: `  processor config check
  processor health --json`,
	}
	root.PersistentFlags().Bool("json", false, "print JSON with stable field names")
	root.PersistentFlags().String("stream", "", "one stream of several in REDIS_TELEMETRY_STREAM")
	root.AddCommand(commands()...)
	eachCommand(root, func(cmd *cobra.Command) {
		check := cmd.Args
		if check == nil {
			return
		}
		_, names, _ := strings.Cut(cmd.Use, " ")
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err != nil && names != "" {
				// Cobra counts arguments and does not name them.
				err = fmt.Errorf("want %s, have %s", names, cli.Count(len(args), "argument"))
			}
			return cmp.Or(notEmpty(cmd, args), err)
		}
	})
	cli.Strict(root)
	return root
}

// mayBeEmpty marks a flag of which "" is a value like any other.
const mayBeEmpty = "may-be-empty"

// notEmpty refuses what is given as "", as by a shell whose variable is not set: it would mean
// the same as what is not given, and select all.
func notEmpty(cmd *cobra.Command, args []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		_, mayBe := f.Annotations[mayBeEmpty]
		list, isList := f.Value.(pflag.SliceValue)
		if !mayBe && (f.Value.String() == "" || isList && slices.Contains(list.GetSlice(), "")) {
			err = fmt.Errorf("--%s is empty; give it a value or leave it out", f.Name)
		}
	})
	if err == nil && slices.Contains(args, "") {
		err = errors.New("an argument is empty; give it a value or leave it out")
	}
	return err
}

// unknownTopic returns an error for help about an unknown command; cobra prints
// the help of its parent and exits 0.
func unknownTopic(root *cobra.Command, args []string) error {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	if len(args) > 0 && args[0] == "help" {
		args = args[1:]
	} else if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		return nil // shell completion
	}
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() {
		return nil //nolint:nilerr // reported when it is executed
	}
	i := slices.IndexFunc(rest, func(arg string) bool { return !strings.HasPrefix(arg, "-") })
	if i < 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	return usageError(cmd, fmt.Errorf("unknown command %q%s", rest[i], cli.DidYouMean(rest[i], "", names)))
}

// group returns a command with subcommands.
func group(cmd *cobra.Command, members ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(members...)
	return cmd
}

// usageError is an invalid command line.
func usageError(cmd *cobra.Command, err error) error { return cli.Usage(cmd, err) }

func eachCommand(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		eachCommand(c, visit)
	}
}
