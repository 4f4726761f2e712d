// Command processor is the service and its operator commands.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // for TZ, where the machine has no zones

	_ "golang.org/x/crypto/x509roots/fallback" // for TLS, where the machine has no certificates

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/modules"
)

func main() {
	modules.QuietDrivers()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code. The first SIGTERM
// or SIGINT ends the command's context; the second ends the process immediately.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()

	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := unknownTopic(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err != nil && err.Error() != "" {
		say(stderr, "processor: %v", err)
	}
	return fault.ExitCode(err)
}
