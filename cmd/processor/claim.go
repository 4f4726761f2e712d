package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
)

func newClaimCommand() *cobra.Command {
	var c operator.Claim
	var shard int
	cmd := &cobra.Command{
		Use:   "claim",
		Short: "Move the shards of a member, one shard, or a foreign consumer's entries",
		Long: `With --member or --shard: force-acquires shards from their owner immediately and
assigns them to other members. The owner can no longer commit for them. They stay
there for a minute, or until a member comes or goes; then shards are evened out, and
an owner that is alive gets its share back. The fleet does this automatically for
members that are gone or stuck, after its limits.

With --consumer: moves the pending entries of a foreign consumer to the queues of
their shards. The owners read them within QUEUE_RESCAN.

Every change is recorded in processor.audit.`,
		Example: `  processor claim --member pod-3 --dry-run
  processor claim --shard 17
  processor claim --consumer old-service --min-idle 5m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			named := 0
			for _, name := range []string{"member", "shard", "consumer"} {
				if cmd.Flags().Changed(name) {
					named++
				}
			}
			if named != 1 {
				return usageError(cmd, errors.New("specify one of --member, --shard and --consumer"))
			}
			if cmd.Flags().Changed("shard") {
				c.Shard = &shard
			}
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := f.Claim(cmd.Context(), c)
			if err != nil {
				return err
			}
			return printed(cmd, &r, printClaimed)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Member, "member", "", "instance or member whose shards are moved")
	f.IntVar(&shard, "shard", -1, "shard to move")
	f.StringVar(&c.Consumer, "consumer", "", "foreign consumer whose entries are moved")
	f.DurationVar(&c.MinIdle, "min-idle", time.Minute, "with --consumer: minimum pending time of an entry")
	f.BoolVar(&c.DryRun, "dry-run", false, "only report what would move")
	return cmd
}

func printClaimed(out *cli.Output, r *operator.Claimed) error {
	verb := "moved"
	if r.DryRun {
		verb = "would move"
	}
	if r.Consumer != "" {
		return out.Line("%s %s of %s to the queues of their shards; trimmed and lost: %s", verb, cli.Count(r.Entries, "entry"), r.Consumer, cli.Number(r.Lost))
	}
	if r.Note != "" {
		return out.Line("%s", r.Note)
	}
	t := cli.NewTable("SHARD", "FROM", "TO")
	for _, s := range r.Shards {
		from, to := s.From, s.To
		if from == "" {
			from = "nobody"
		}
		if to == "" {
			to = "its assigned member"
		}
		t.Row(s.Shard, from, to)
	}
	if err := out.Table(t); err != nil {
		return err
	}
	for _, left := range r.Left {
		if err := out.Line("not ended: %s", left); err != nil {
			return err
		}
	}
	return out.Line("%s %s, ended %s", verb, cli.Count(len(r.Shards), "shard"), cli.Count(r.Sessions, "database session"))
}
