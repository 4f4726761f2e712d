// Command loadtest runs the service with a fleet and faults on demand and judges
// what is left behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit codes.
const (
	exitClean   = 0
	exitFinding = 1 // a bound was missed, or there is no verdict
	exitConfig  = 3 // bad command line
)

// errMissed ends a command whose verdict has been printed already.
var errMissed = errors.New("")

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code. The first SIGTERM or
// SIGINT ends the command's context; the second ends the process at once.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()

	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return exitClean
	case errors.As(err, &usage):
		_, _ = fmt.Fprintln(stderr, "loadtest:", err)
		return exitConfig
	case !errors.Is(err, errMissed):
		_, _ = fmt.Fprintln(stderr, "loadtest:", err)
	}
	return exitFinding
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "loadtest",
		Short: "Run the service with a fleet and faults on demand, and judge what is left behind",
		Long: `Starts instances of the processor, drives a simulated fleet, breaks things, and
compares every row and every entry with what was sent.`,
		Example: `  loadtest list
  loadtest run split --json
  loadtest run chaos --seed 7 --report chaos.html`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(newListCommand(), newRunCommand(), newVerifyCommand(), newSendCommand(), newBenchCommand(), newCurvesCommand())
	return root
}
