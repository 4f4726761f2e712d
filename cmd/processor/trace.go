package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/stream"
)

func newTraceCommand() *cobra.Command {
	var last int
	cmd := &cobra.Command{
		Use:   "trace IMEI",
		Short: "Trace the last entries of a device",
		Long: `Finds the last entries of a device among the newest 200,000 of the stream and shows
the state of each: in the stream and not dispatched, pending on the queue of its
shard, deferred, stored, dead letter, lost; and the shard and owner of the device.
"done, no row" is an entry that was acknowledged without a row of its own: its rows
were erased, or it was acknowledged by hand. Trimmed entries are not in the stream:
losses of the last 24 hours that may concern the device are listed below.`,
		Example: `  processor trace 352093081452251
  processor trace 352093081452251 --last 50 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if last < 1 || last > 1000 {
				return fault.Exitf(fault.Config, "--last is %d, want 1 to 1000", last)
			}
			f, err := openWithSettings(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			tr, err := f.Trace(cmd.Context(), args[0], last)
			if err != nil {
				return err
			}
			return printed(cmd, &tr, printTrace)
		},
	}
	cmd.Flags().IntVar(&last, "last", 10, "number of entries to search for")
	return cmd
}

func printTrace(out *cli.Output, tr *operator.Trace) error {
	owner := any(nil)
	if tr.Owner != nil {
		owner = *tr.Owner
	}
	head := cli.NewTable("WHAT", "VALUE")
	head.Row("device", tr.Device)
	head.Row("shard", fmt.Sprintf("%d of %d, %s", tr.Shard, tr.Shards, stream.Consumer(tr.Shard)))
	if owner == nil {
		head.Row("owner", cli.Colored("none", cli.Yellow))
	} else {
		head.Row("owner", owner)
	}
	if tr.Assigned != nil && (tr.Owner == nil || *tr.Assigned != *tr.Owner) {
		head.Row("assigned", cli.Colored(*tr.Assigned, cli.Yellow))
	}
	if tr.LastStored == nil {
		head.Row("last row", "none")
	} else {
		head.Row("last row", tr.LastStored.UTC().Format(time.RFC3339))
	}
	if err := out.Table(head); err != nil {
		return err
	}
	if err := out.Line(""); err != nil {
		return err
	}
	if !tr.Exists {
		text := fmt.Sprintf("stream %s does not exist: set REDIS_TELEMETRY_STREAM to the one that tcp-ingestion writes", tr.Stream)
		return errors.Join(out.Line("%s", text), printLosses(out, tr.Losses))
	}
	if len(tr.Entries) == 0 {
		where := "of the whole stream"
		if !tr.Complete {
			where = "among the newest of the stream"
		}
		return errors.Join(out.Line("no entries %s", where), printLosses(out, tr.Losses))
	}
	colors := map[string]cli.Color{"stored": cli.Green, "dead letter": cli.Red, "lost": cli.Red, "done, no row": cli.Red}
	t := cli.NewTable("ENTRY", "DEVICE TIME", "STATE", "DETAIL")
	for _, e := range tr.Entries {
		at := any("unreadable")
		if e.Time != nil {
			at = e.Time.Format("2006-01-02 15:04:05")
		}
		t.Row(e.ID, at, cli.Colored(e.State, colors[e.State]), e.Detail)
	}
	return errors.Join(out.Table(t), printLosses(out, tr.Losses))
}
