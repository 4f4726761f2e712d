package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
)

// openFleet opens the fleet of the environment. Only the settings of the servers
// are checked.
func openFleet(cmd *cobra.Command) (*operator.Fleet, error) {
	cfg, err := config.LoadServers(os.Environ())
	if err != nil {
		return nil, err
	}
	return operator.Open(cmd.Context(), cfg, cmd.Name(), operator.Name())
}

// openWithSettings opens the fleet for a command that works with the settings of
// the service.
func openWithSettings(cmd *cobra.Command) (*operator.Fleet, error) {
	cfg, err := config.Load(os.Environ())
	if err != nil {
		return nil, err
	}
	return operator.Open(cmd.Context(), cfg, cmd.Name(), operator.Name())
}

// openRedis opens the fleet for a command that works without Postgres, too.
func openRedis(cmd *cobra.Command) (*operator.Fleet, error) {
	redis, err := config.LoadRedis(os.Environ())
	if err != nil {
		return nil, err
	}
	cfg, err := config.LoadServers(os.Environ())
	if err != nil {
		if os.Getenv("POSTGRES_URL") != "" {
			say(cmd.ErrOrStderr(), "processor: warning: %v", err)
		}
		cfg = config.Config{Redis: redis}
	}
	return operator.Open(cmd.Context(), cfg, cmd.Name(), operator.Name())
}

// printed prints the result of a command.
func printed[T any](cmd *cobra.Command, answer T, show func(out *cli.Output, answer T) error) error {
	out := outputOf(cmd)
	return out.Result(answer, func() error { return show(out, answer) })
}
