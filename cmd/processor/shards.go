package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/protocol"
)

// shardJSON is one shard in the output of processor shards; null means unknown
// or none.
type shardJSON struct {
	Shard            int       `json:"shard"`
	Owner            *string   `json:"owner"`
	OwnerSince       time.Time `json:"owner_since"`
	AssignedTo       *string   `json:"assigned_to"`
	WaitingFor       string    `json:"waiting_for,omitempty"`
	Epoch            int64     `json:"epoch"`
	AppliedID        *string   `json:"applied_id"`
	Pending          int64     `json:"pending"`
	OldestEntry      *string   `json:"oldest_entry"`
	OldestAgeSeconds *float64  `json:"oldest_age_seconds"`
}

type shardsJSON struct {
	Stream  string      `json:"stream"`
	Group   string      `json:"group"`
	Number  int         `json:"number"`
	Waiting int         `json:"waiting"`
	Shards  []shardJSON `json:"shards"`
}

func newShardsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shards",
		Short: "List shards and their owners",
		Long: `Lists the shards with owner and epoch from Postgres, and the state of their queues
from Redis. The applied ID is a progress mark, written about once a second.`,
		Example: `  processor shards
  processor shards --json
  processor shards resize 128`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askFleet(cmd, func(ctx context.Context, v *fleetView) (shardsJSON, error) { return v.state(ctx) })
		},
	}
	cmd.AddCommand(newResizeCommand())
	return cmd
}

func (v *fleetView) state(ctx context.Context) (shardsJSON, error) {
	s := shardsJSON{Stream: v.scope.Stream, Group: v.scope.Group, Number: v.pins.Shards, Shards: []shardJSON{}}
	if v.pins.Shards == 0 {
		return s, errNeverStarted
	}
	list, err := v.list(ctx)
	if err != nil {
		return s, err
	}
	queues, err := v.queues(ctx)
	if err != nil {
		return s, err
	}
	for _, x := range list {
		q := queues[x.Shard]
		j := shardJSON{
			Shard: x.Shard, Owner: orNull(x.Owner), OwnerSince: x.Since, AssignedTo: orNull(x.Assigned),
			Epoch: x.Epoch, Pending: q.Pending, WaitingFor: waitingFor(x),
		}
		if !x.Applied.IsZero() {
			j.AppliedID = orNull(x.Applied.String())
		}
		if !q.Oldest.IsZero() {
			age := max(0, time.Since(q.Oldest.Time()).Seconds())
			j.OldestEntry, j.OldestAgeSeconds = orNull(q.Oldest.String()), &age
		}
		if j.WaitingFor != "" {
			s.Waiting++
		}
		s.Shards = append(s.Shards, j)
	}
	return s, nil
}

// queues returns the state of the queues; nothing if there is no group.
func (v *fleetView) queues(ctx context.Context) (map[int]protocol.QueueState, error) {
	info, err := v.group.Info(ctx)
	if err != nil || !info.GroupExists {
		return nil, err
	}
	return v.group.Queues(ctx)
}

// waitingFor returns why no member works on a shard, or "".
func waitingFor(s protocol.Shard) string {
	switch {
	case s.Assigned == "":
		return "a leader that assigns it"
	case s.Owner == "":
		return s.Assigned + " to acquire it"
	case s.Owner != s.Assigned:
		return s.Owner + " to release it"
	}
	return ""
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (s shardsJSON) print(out *cli.Output) error {
	t := cli.NewTable("SHARD", "OWNER", "EPOCH", "APPLIED", "PENDING", "OLDEST", "WAITS FOR")
	for _, x := range s.Shards {
		owner := cli.Cell{Value: "nobody", Color: cli.Yellow}
		if x.Owner != nil {
			owner = cli.Cell{Value: *x.Owner}
		}
		applied, oldest := "none", ""
		if x.AppliedID != nil {
			applied = *x.AppliedID
		}
		if x.OldestAgeSeconds != nil {
			oldest = fmt.Sprintf("%.1f s", *x.OldestAgeSeconds)
		}
		t.Row(x.Shard, owner, x.Epoch, applied, cli.Number(x.Pending), oldest, cli.Colored(x.WaitingFor, cli.Yellow))
	}
	return out.Table(t)
}
