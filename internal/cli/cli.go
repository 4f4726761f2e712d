// Package cli is how the programs present themselves: results as text or JSON,
// tables, colours, numbers, and lines that fit a terminal. An invalid command
// line gets a message with the problem, likely alternatives and the help command,
// and exit code 3.
package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ExitUsage is the exit code of an invalid command line.
const ExitUsage = 3

// usageError is an error with ExitUsage.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }
func (e *usageError) ExitCode() int { return ExitUsage }

// Usage returns err with the help command of cmd appended; its ExitCode is
// ExitUsage.
func Usage(cmd *cobra.Command, err error) error {
	var done *usageError
	if err == nil || errors.As(err, &done) {
		return err
	}
	return &usageError{fmt.Errorf("%w\nsee %s --help", err, cmd.CommandPath())}
}

// Strict makes root and all commands below it return Usage wherever cobra finds
// invalid flags, arguments or commands. Call it after all are added. A command
// that only has subcommands prints its help; one that declares no arguments
// accepts none.
func Strict(root *cobra.Command) {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return Usage(cmd, flagError(cmd, err)) })
	strict(root)
}

func strict(cmd *cobra.Command) {
	if cmd.RunE == nil && cmd.HasSubCommands() {
		cmd.Args = unknownCommand
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return Usage(cmd, err)
		}
		// Cobra would check again, and return an error of another kind.
		return Usage(cmd, errors.Join(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()))
	}
	for _, c := range cmd.Commands() {
		strict(c)
	}
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return fmt.Errorf("unknown command %q%s", args[0], DidYouMean(args[0], "", names))
}

// DidYouMean returns the names similar to the one typed, as the end of a
// sentence, or "". mark precedes each: "--" for flags.
func DidYouMean(typed, mark string, names []string) string {
	// Cobra finds similar names, but of commands only.
	parent := &cobra.Command{SuggestionsMinimumDistance: 2}
	for _, name := range names {
		parent.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	similar := parent.SuggestionsFor(typed)
	if len(similar) == 0 {
		return ""
	}
	return "; did you mean " + mark + strings.Join(similar, " or "+mark) + "?"
}

// flagError describes an invalid flag in the terms of the command line.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		return fmt.Errorf("%w%s", err, DidYouMean(unknown.GetSpecifiedName(), "--", names))
	case errors.As(err, &invalid):
		if want := wanted(invalid.GetFlag().Value.Type()); want != "" {
			return fmt.Errorf("--%s %q: want %s", invalid.GetFlag().Name, invalid.GetValue(), want)
		}
	}
	return err
}

// wanted returns the values that a type of flag accepts, "" if the flag's own error names them.
func wanted(kind string) string {
	switch kind {
	case "int", "int32", "int64":
		return "a whole number"
	case "uint", "uint32", "uint64":
		return "a whole number, 0 or more"
	case "float32", "float64":
		return "a number"
	case "intSlice":
		return "whole numbers such as 1,10,100"
	case "duration":
		return "a duration such as 90s or 10m"
	case "bool":
		return "true or false"
	}
	return ""
}
