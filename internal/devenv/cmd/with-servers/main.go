// Command with-servers runs a command beside private Redis and Postgres
// servers and hands it their addresses in TEST_REDIS_URL and TEST_POSTGRES_URL.
// So all packages of one `go test ./...` share a pair of servers.
//
//	with-servers go test ./...
//
// A server that the environment names already is left to its owner. It ends
// with the command's exit code; the servers go with it, however it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/trmtracking/processor/internal/devenv"
)

// killAfter is how long an interrupted command may take to end by itself.
const killAfter = 20 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "with-servers:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, argv []string) (code int, err error) {
	const usage, notStarted = 2, 1
	if len(argv) == 0 {
		return usage, errors.New("name a command to run")
	}
	const redis, postgres = "TEST_REDIS_URL", "TEST_POSTGRES_URL"
	opts := devenv.Options{InMemory: true, Redis: os.Getenv(redis) == "", Postgres: os.Getenv(postgres) == ""}
	env, err := devenv.Start(ctx, opts)
	if err != nil {
		return notStarted, err
	}
	defer func() {
		if closed := env.Close(); closed != nil {
			code, err = max(code, 1), errors.Join(err, closed)
		}
	}()

	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = os.Environ()
	if opts.Redis {
		cmd.Env = append(cmd.Env, redis+"="+env.Redis.URL())
	}
	if opts.Postgres {
		cmd.Env = append(cmd.Env, postgres+"="+env.Postgres.URL())
	}
	// On Ctrl-C the terminal tells the command too; a second word does no harm.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = killAfter
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil // its own words are on the terminal
	}
	if err != nil {
		return notStarted, fmt.Errorf("run %s: %w", argv[0], err)
	}
	return 0, nil
}
