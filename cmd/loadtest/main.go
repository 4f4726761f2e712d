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
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
)

// The exit codes.
const (
	exitClean   = 0
	exitFinding = 1 // a bound was missed, or there is no verdict
	// cli.ExitUsage: the command line cannot be understood
)

// errMissed ends a command whose verdict has been printed already. Joined with other errors it
// leaves them to be printed.
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
	if err == nil {
		return exitClean
	}
	return exitCode(err, stderr)
}

// exitCode says what ended a command, but for what has been printed, and returns its exit code.
func exitCode(err error, stderr io.Writer) int {
	if text := strings.Trim(err.Error(), "\n"); text != "" { // errMissed is a blank line among others
		_, _ = fmt.Fprintln(stderr, "loadtest:", text)
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return exitFinding
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "loadtest",
		Short: "Run the service with a simulated fleet and faults, and verify the result",
		Long: `Starts instances of the processor, drives a simulated fleet, breaks things, and
compares every row and every entry with what was sent.

Exits 0 when all is well, 1 when a bound was missed or there is no verdict, 3 when
the command line is wrong.`,
		Example: `  loadtest demo
  loadtest list
  loadtest run split --json
  loadtest run chaos --seed 7 --report chaos.html`,
	}
	root.AddCommand(newDemoCommand(), newListCommand(), newRunCommand(), newReachedCommand(), newVerifyCommand(), newSendCommand(), newBenchCommand())
	cli.Strict(root)
	return root
}
