package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/store"
)

// errNeverStarted reports that there is no fleet yet.
var errNeverStarted = errors.New("no instance has ever started with this stream and group: nothing is pinned yet")

// maxShards is the maximum of SHARDS.
const maxShards = 4096

type resizeJSON struct {
	From    int     `json:"from"`
	To      int     `json:"to"`
	Changed bool    `json:"changed"`
	Seconds float64 `json:"seconds"`
}

func newResizeCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "resize NUMBER",
		Short: "Change the number of shards of a fleet",
		Long: `Pauses dispatch, waits until the instances have drained the queues, reports when to
stop them, waits until the last one is gone, changes the number and resumes dispatch.
Then start the instances with the new SHARDS: those with another number are rejected.

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
			v, err := openFleetView(cmd.Context())
			if err != nil {
				return err
			}
			defer v.close()
			if v.pins.Shards == 0 {
				return errNeverStarted
			}
			if err := v.checkDatabase(cmd.Context()); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			began := time.Now()
			resize := coordination.Resize{
				Store: v.shards, Stream: v.group, Members: v.ring,
				End: store.NewSessions(v.pool, askTimeout).End, Operator: v.by,
				OnProgress: func(waiting string) {
					say(cmd.ErrOrStderr(), "%s", strings.Join(cli.Wrap(waiting, cli.Columns-2), "\n  "))
				},
			}
			changed, err := resize.Run(ctx, to)
			if err != nil {
				return err
			}
			r := resizeJSON{From: v.pins.Shards, To: to, Changed: changed, Seconds: time.Since(began).Seconds()}
			out := outputOf(cmd)
			return out.Result(r, func() error {
				if !changed {
					return out.Line("the fleet has %s already", cli.Count(to, "shard"))
				}
				return out.Line("%s instead of %s: start the instances with SHARDS=%d", cli.Count(to, "shard"), cli.Number(r.From), to)
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "maximum wait for the queues and the instances")
	return cmd
}
