package main

import (
	"errors"
	"fmt"
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
	return open(cmd, cfg)
}

// openWithSettings opens the fleet for a command that works with the settings of
// the service.
func openWithSettings(cmd *cobra.Command) (*operator.Fleet, error) {
	cfg, err := config.Load(os.Environ())
	if err != nil {
		return nil, err
	}
	return open(cmd, cfg)
}

func redisOf(cmd *cobra.Command) (config.Config, error) {
	redis, err := config.LoadRedis(os.Environ())
	if err != nil {
		return config.Config{}, err
	}
	cfg, err := config.LoadServers(os.Environ())
	if err != nil {
		if os.Getenv("POSTGRES_URL") != "" {
			say(cmd.ErrOrStderr(), "processor: warning: %v", err)
		}
		cfg = config.Config{Redis: redis}
	}
	return cfg, nil
}

// ofDatabase reports whether a command is about what all streams of the database have in
// common, so that the fleet of any stream will do: fences, the audit, and devices, whose
// stream it finds.
func ofDatabase(cmd *cobra.Command) bool {
	parent := cmd.Parent().Name()
	return cmd.Name() == "trace" || cmd.Name() == "audit" || parent == "device" || parent == "geofence"
}

// open opens the fleet of the stream that --stream names.
func open(cmd *cobra.Command, cfg config.Config) (*operator.Fleet, error) {
	name, err := cmd.Flags().GetString("stream")
	if err != nil {
		return nil, err
	}
	if names := cfg.Redis.Streams(); name == "" && ofDatabase(cmd) {
		name = names[0]
	}
	one, err := cfg.ForStream(name)
	if err != nil {
		return nil, err
	}
	return operator.Open(cmd.Context(), one, cmd.Name(), operator.Name())
}

// openFleets opens the fleet of each stream, or of the one that --stream names.
func openFleets(cmd *cobra.Command) (fleets []*operator.Fleet, err error) {
	cfg, err := config.LoadServers(os.Environ())
	if err != nil {
		return nil, err
	}
	name, err := cmd.Flags().GetString("stream")
	if err != nil {
		return nil, err
	}
	return openEach(cmd, cfg, name)
}

func openEach(cmd *cobra.Command, cfg config.Config, name string) (fleets []*operator.Fleet, err error) {
	list := cfg.PerStream()
	if name != "" || len(list) == 1 {
		f, err := open(cmd, cfg)
		if err != nil {
			return nil, err
		}
		return []*operator.Fleet{f}, nil
	}
	for _, one := range list {
		f, err := operator.Open(cmd.Context(), one, cmd.Name(), operator.Name())
		if err != nil {
			for _, f := range fleets {
				f.Close()
			}
			return nil, err
		}
		fleets = append(fleets, f)
	}
	return fleets, nil
}

// perStream is the JSON of several streams.
type perStream[T any] struct {
	Streams []*T `json:"streams"`
}

// ofEachStream asks about each stream, or the one that --stream names, and prints the
// answers. Of one it prints the answer alone. What could not be asked is an error beside
// the other answers.
func ofEachStream[T any](cmd *cobra.Command, cfg config.Config, ask func(f *operator.Fleet) (*T, error), show func(out *cli.Output, answer *T) error) error {
	name, err := cmd.Flags().GetString("stream")
	if err != nil {
		return err
	}
	list := cfg.PerStream()
	if name != "" || len(list) == 1 {
		f, err := open(cmd, cfg)
		if err != nil {
			return err
		}
		defer f.Close()
		answer, err := ask(f)
		if answer == nil {
			return err
		}
		return errors.Join(printed(cmd, answer, show), err)
	}
	var all perStream[T]
	var names []string
	var errs []error
	for _, one := range list {
		f, err := operator.Open(cmd.Context(), one, cmd.Name(), operator.Name())
		if err != nil {
			return err
		}
		answer, err := ask(f)
		f.Close()
		switch {
		case err != nil && err.Error() == "": // the answer says it
			errs = append(errs, err)
		case err != nil:
			errs = append(errs, fmt.Errorf("stream %s: %w", one.Redis.Stream, err))
		}
		if answer != nil {
			all.Streams, names = append(all.Streams, answer), append(names, one.Redis.Stream)
		}
	}
	out := outputOf(cmd)
	return errors.Join(append([]error{out.Result(all, func() error {
		for i, answer := range all.Streams {
			if i > 0 {
				if err := out.Line(""); err != nil {
					return err
				}
			}
			if err := errors.Join(out.Line("stream %s", names[i]), show(out, answer)); err != nil {
				return err
			}
		}
		return nil
	})}, errs...)...)
}

// resultOf is the JSON of one of several streams, where the answer does not name it.
type resultOf[T any] struct {
	Stream string `json:"stream"`
	Result T      `json:"result"`
}

// listOfEach is ofEachStream for answers that do not name their stream.
func listOfEach[T any](cmd *cobra.Command, cfg config.Config, ask func(f *operator.Fleet) (T, error), show func(out *cli.Output, answer T) error) error {
	name, err := cmd.Flags().GetString("stream")
	if err != nil {
		return err
	}
	if name != "" || len(cfg.PerStream()) == 1 || ofDatabase(cmd) {
		f, err := open(cmd, cfg)
		if err != nil {
			return err
		}
		defer f.Close()
		answer, err := ask(f)
		if err != nil {
			return err
		}
		return printed(cmd, answer, show)
	}
	return ofEachStream(cmd, cfg, func(f *operator.Fleet) (*resultOf[T], error) {
		answer, err := ask(f)
		if err != nil {
			return nil, err
		}
		return &resultOf[T]{Stream: f.Stream(), Result: answer}, nil
	}, func(out *cli.Output, r *resultOf[T]) error { return show(out, r.Result) })
}

// printed prints the result of a command.
func printed[T any](cmd *cobra.Command, answer T, show func(out *cli.Output, answer T) error) error {
	out := outputOf(cmd)
	return out.Result(answer, func() error { return show(out, answer) })
}
