package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
)

func newStreamsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "streams",
		Short: "List streams, their members and what they have to do",
		Long: `Lists the streams of REDIS_TELEMETRY_STREAM, and those that the database knows
besides: since they were taken off the list, or are in that of other instances.

  served      a member has it in its list
  not_served  none has, and there may be entries that are not done
  drained     none has, and everything is done
  removed     it was removed, and lost entries before

Devices are those that came from it last. Exits 1 if something could not be asked.`,
		Example: `  processor streams
  processor streams add '{telemetry:{0..7}}'
  processor streams drain telemetry:teltonika`,
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
	}, newStreamsAddCommand(), newStreamsDrainCommand(), newStreamsRemoveCommand())
}

// addedStreams is the JSON of streams add.
type addedStreams struct {
	Streams []operator.AddedStream `json:"streams"`
	List    string                 `json:"list"` // for REDIS_TELEMETRY_STREAM
}

func newStreamsAddCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "add STREAM...",
		Short: "Prepare streams for a running fleet",
		Long: `Checks the names beside all others, makes the rows of the streams in Postgres with
the settings of the fleet, and their groups in Redis, at the start of each stream: what
is trimmed from now on before it is read is accounted for. It prints the list for
REDIS_TELEMETRY_STREAM; instances serve the streams once they are restarted with it, one
after the other. Publishers may switch before that: entries wait in the stream.

Nothing is changed unless all of them can be processed. What was added before is left as
it is. Recorded in processor.audit.`,
		Example: `  processor streams add telemetry:queclink
  processor streams add '{telemetry:{0..7}}' --json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := config.NamesOf(args)
			if err != nil {
				return err
			}
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			var a addedStreams
			if a.Streams, a.List, err = operator.AddStreams(cmd.Context(), cfg, names, cmd.Name(), operator.Name()); err != nil {
				return err
			}
			return printed(cmd, a, printAdded)
		},
	}
}

func printAdded(out *cli.Output, a addedStreams) error {
	for _, s := range a.Streams {
		what := "added, with " + cli.Count(s.Shards, "shard")
		if !s.Changed {
			what = "was there before"
		}
		if s.Length > 0 {
			what += ", " + cli.Count(s.Length, "entry") + " in it"
		}
		if err := out.Line("%s: %s", s.Stream, what); err != nil {
			return err
		}
	}
	return out.Line("restart the instances, one after the other, with\nREDIS_TELEMETRY_STREAM='%s'", a.List)
}

func newStreamsDrainCommand() *cobra.Command {
	var timeout, quiet time.Duration
	cmd := &cobra.Command{
		Use:   "drain STREAM",
		Short: "Wait until a stream is read to its end and empty",
		Long: `Says what is left of a stream and waits until nothing is, and until nothing has been
added to it for --quiet. It changes nothing: instances go on reading the stream, so that
nothing is held up while publishers move away from it, one after the other.

Dead letters, devices and the instances that have the stream in their list do not count;
the answer names them, since processor streams remove wants them gone. Exits 1 if that
is not so within --timeout.`,
		Example: `  processor streams drain telemetry:teltonika
  processor streams drain telemetry:teltonika --timeout 1h --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			r, err := operator.DrainStream(ctx, cfg, args[0], quiet, cmd.Name(), operator.Name(), func(waiting string) {
				say(cmd.ErrOrStderr(), "%s", strings.Join(cli.Wrap(waiting, cli.Columns-2), "\n  "))
			})
			if err != nil && r.Stream == "" {
				return err
			}
			return errors.Join(printed(cmd, r, printRest), err)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "maximum wait")
	cmd.Flags().DurationVar(&quiet, "quiet", 10*time.Second, "how long nothing may have been added")
	return cmd
}

func printRest(out *cli.Output, r operator.StreamRest) error {
	verdict := "drained"
	if left := r.Left(); len(left) > 0 {
		verdict = "left: " + strings.Join(left, ", ")
	}
	t := cli.NewTable("WHAT", "VALUE")
	t.Row("stream", r.Stream)
	t.Row("group", r.Group)
	t.Row("state", verdict)
	t.Row("came meanwhile", cli.Number(r.AddedMeantime))
	t.Row("dead letters", cli.Number(r.DeadLetters))
	t.Row("devices", cli.Number(r.Devices))
	t.Row("served by", strings.Join(r.Members, ", "))
	return out.Table(t)
}

func newStreamsRemoveCommand() *cobra.Command {
	var devicesTo string
	cmd := &cobra.Command{
		Use:   "remove STREAM",
		Short: "Take a drained stream away that no instance serves",
		Long: `Removes what the fleet keeps for a stream: its group and keys in Redis, shards,
assignments, leader and pinned settings in Postgres. The stream itself stays, and so do
positions, crossings, the ledger of losses, which processor streams sums up, incidents
and the audit.

Refused, with all that is left named, while anything is not dispatched, pending,
deferred or a dead letter, while a request is open, and while an instance has the stream
in its list. Devices that came from it last get the stream of --devices-to, so that
changes of fences reach them; the next record of a device decides again. A stream that
was added and never served may be removed with what is in it. Recorded in processor.audit.`,
		Example: `  processor streams remove telemetry:queclink
  processor streams remove telemetry:teltonika --devices-to telemetry:0 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			r, err := operator.RemoveStream(cmd.Context(), cfg, args[0], devicesTo, cmd.Name(), operator.Name())
			if err != nil {
				return err
			}
			return printed(cmd, r, printRemoved)
		},
	}
	cmd.Flags().StringVar(&devicesTo, "devices-to", "", "stream that its devices belong to from now on")
	return cmd
}

func printRemoved(out *cli.Output, r operator.RemovedStream) error {
	if err := out.Line("%s: removed, with %s", r.Stream, cli.Count(r.Shards, "shard")); err != nil || r.GivenTo == "" {
		return err
	}
	return out.Line("%s: belong to %s now", cli.Count(r.Given, "device"), r.GivenTo)
}

func printStreams(out *cli.Output, s *operator.Streams) error {
	t := cli.NewTable("STREAM", "GROUP", "LISTED", "STATE", "MEMBERS", "SHARDS", "BACKLOG", "DEVICES", "LOST")
	for _, x := range s.Streams {
		listed := "no"
		if x.Listed {
			listed = "yes"
		}
		state := cli.Colored(x.State, cli.Green)
		if x.State == operator.StreamNotServed {
			state.Color = cli.Red
		}
		t.Row(x.Stream, x.Group, listed, state, cli.OrUnknown(x.Members), cli.OrUnknown(x.Shards), cli.OrUnknown(x.Backlog), cli.OrUnknown(x.Devices), cli.OrUnknown(x.Lost))
	}
	return out.Table(t)
}
