package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
)

// maxShards is the maximum of SHARDS.
const maxShards = 4096

func newResizeCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "resize NUMBER",
		Short: "Change the number of shards of a fleet",
		Long: `Pauses dispatch, waits until the instances have drained the queues, reports when to
stop them, waits until the last one is gone, changes the number and resumes dispatch.
Then start the instances with the new SHARDS: those with another number are rejected.
Several streams of REDIS_TELEMETRY_STREAM are changed together; --stream, for one that
other instances serve than the rest, changes one alone.

Nothing is changed before all instances are stopped; an interruption until then
resumes dispatch within 15 s. After that, run it again to finish. Entries that
arrive during the resize wait in the stream.`,
		Example: `  processor shards resize 128
  processor shards resize 128 --timeout 1h --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := strconv.Atoi(args[0])
			if err != nil || to < 1 || to > maxShards {
				return usageError(cmd, fmt.Errorf("%q shards: want a whole number, 1 to %d", args[0], maxShards))
			}
			fleets, err := openFleets(cmd)
			if err != nil {
				return err
			}
			for _, f := range fleets {
				defer f.Close()
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			progress := func(waiting string) {
				say(cmd.ErrOrStderr(), "%s", strings.Join(cli.Wrap(waiting, cli.Columns-2), "\n  "))
			}
			out := outputOf(cmd)
			if len(fleets) > 1 {
				all, err := operator.ResizeAll(ctx, fleets, to, progress)
				if err != nil {
					return err
				}
				return out.Result(map[string]any{"streams": all}, func() error {
					for _, r := range all {
						if err := printResized(out, "stream "+r.Stream+": ", r); err != nil {
							return err
						}
					}
					return out.Line("start the instances with SHARDS=%d", to)
				})
			}
			r, err := fleets[0].Resize(ctx, to, progress)
			if err != nil {
				return err
			}
			return out.Result(r, func() error {
				if !r.Changed {
					return printResized(out, "the fleet has ", r)
				}
				return out.Line("%s instead of %s: start the instances with SHARDS=%d", cli.Count(to, "shard"), cli.Number(r.From), to)
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "maximum wait for the queues and the instances")
	return cmd
}

func printResized(out *cli.Output, before string, r operator.Resized) error {
	if !r.Changed {
		return out.Line("%s%s already", before, cli.Count(r.To, "shard"))
	}
	return out.Line("%s%s instead of %s", before, cli.Count(r.To, "shard"), cli.Number(r.From))
}
