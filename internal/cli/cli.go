// Package cli is how the programs speak to people: results as text or JSON,
// tables, colours, numbers, and lines that fit a terminal. A command line that
// cannot be understood is answered with what is wrong, what may have been meant
// and where to read on, and ends with code 3.
package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ExitUsage is the exit code of a command line that cannot be understood.
const ExitUsage = 3

// usageError is an error with ExitUsage.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }
func (e *usageError) ExitCode() int { return ExitUsage }

// Usage is what a command line that cannot be understood ends with: err, and
// where to read on. Its ExitCode is ExitUsage.
func Usage(cmd *cobra.Command, err error) error {
	var done *usageError
	if err == nil || errors.As(err, &done) {
		return err
	}
	return &usageError{fmt.Errorf("%w\nsee %s --help", err, cmd.CommandPath())}
}

// Strict has root and all commands below it end with Usage wherever cobra finds
// flags, arguments or commands wrong. It is called once all are added. A command
// that only holds others prints its help; one that does not say which arguments
// it takes takes none.
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
		// Cobra would ask again, and make an error of another kind of it.
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

// DidYouMean offers those of some names that are like the one typed, as the end
// of a sentence, empty where none is. Mark stands before each: "--" for flags.
func DidYouMean(typed, mark string, names []string) string {
	// Cobra knows what is alike, but of commands only.
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

// flagError is what is wrong with a flag, without the words of Go.
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

// wanted says which values a type of flag takes, "" where the flag says so itself.
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
