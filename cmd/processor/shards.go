package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
)

func newShardsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shards",
		Short: "List shards and their owners",
		Long: `Lists the shards with owner and epoch from Postgres, and the state of their queues
from Redis. The applied ID is a progress mark, written about once a second. While
Postgres is unavailable the owners are those that heartbeats name; exits 1.`,
		Example: `  processor shards
  processor shards --json
  processor shards resize 128`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			return ofEachStream(cmd, cfg, func(f *operator.Fleet) (*operator.Shards, error) {
				a, err := f.Shards(cmd.Context())
				if err != nil {
					return nil, err
				}
				return &a, a.Unanswered
			}, printShards)
		},
	}
	cmd.AddCommand(newResizeCommand())
	return cmd
}

func printShards(out *cli.Output, s *operator.Shards) error {
	t := cli.NewTable("SHARD", "OWNER", "EPOCH", "APPLIED", "PENDING", "OLDEST", "WAITS FOR")
	for _, x := range s.Shards {
		owner := cli.Colored("nobody", cli.Yellow)
		if s.Unanswered != nil {
			owner.Value = nil // no heartbeat names one
		}
		if x.Owner != nil {
			owner = cli.Cell{Value: *x.Owner}
		}
		applied, oldest := any("none"), ""
		if s.Unanswered != nil {
			applied = nil
		}
		if x.AppliedID != nil {
			applied = *x.AppliedID
		}
		if x.OldestAgeSeconds != nil {
			oldest = fmt.Sprintf("%.1f s", *x.OldestAgeSeconds)
		}
		t.Row(x.Shard, owner, cli.OrUnknown(x.Epoch), applied, cli.Number(x.Pending), oldest, cli.Colored(x.WaitingFor, cli.Yellow))
	}
	if err := out.Table(t); err != nil {
		return err
	}
	for _, x := range s.Shards {
		if x.Locked == nil {
			continue
		}
		query := "unknown"
		if len(x.Locked.By) > 0 {
			query = x.Locked.By[0].Query
		}
		if err := out.Line("shard %d waits for a lock since %s; its holder's query: %s\n  -> %s", x.Shard,
			x.Locked.Since.UTC().Format(time.RFC3339), cli.VisibleLine(query), x.Locked.Remedy); err != nil {
			return err
		}
	}
	return nil
}
