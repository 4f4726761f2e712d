package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
)

func newStreamsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "streams",
		Short: "List streams, their members and what they have to do",
		Long: `Lists the streams of REDIS_TELEMETRY_STREAM, and those that the database knows
besides: since they were taken off the list, or are in that of other instances.

  served      a member has it in its list
  not_served  none has, and there may be entries that are not done
  drained     none has, and everything is done

Devices are those that came from it last. Exits 1 if something could not be asked.`,
		Example: `  processor streams
  processor streams --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			s, err := operator.ListStreams(cmd.Context(), cfg, cmd.Name(), operator.Name())
			if err != nil {
				return err
			}
			return errors.Join(printed(cmd, &s, printStreams), s.Unanswered)
		},
	}
}

func printStreams(out *cli.Output, s *operator.Streams) error {
	t := cli.NewTable("STREAM", "GROUP", "LISTED", "STATE", "MEMBERS", "SHARDS", "BACKLOG", "DEVICES")
	for _, x := range s.Streams {
		listed := "no"
		if x.Listed {
			listed = "yes"
		}
		state := cli.Colored(x.State, cli.Green)
		if x.State == operator.StreamNotServed {
			state.Color = cli.Red
		}
		t.Row(x.Stream, x.Group, listed, state, cli.OrUnknown(x.Members), cli.OrUnknown(x.Shards), cli.OrUnknown(x.Backlog), cli.OrUnknown(x.Devices))
	}
	return out.Table(t)
}
