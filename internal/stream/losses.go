package stream

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// noted is a loss as the scripts write it.
type noted struct {
	Cause   string `json:"cause"`
	First   string `json:"first"`
	Last    string `json:"last"`
	Entries *int64 `json:"entries"`
	Shard   *int   `json:"shard"`
}

// Losses returns the losses that the scripts detected and that are not recorded
// yet, oldest first, at most limit, and a receipt for Recorded. What no script of this
// version wrote is in foreign, each a receipt of its own.
func (g *Group) Losses(ctx context.Context, limit int) (losses []protocol.Loss, receipt, foreign []string, err error) {
	texts, err := g.client.LRange(ctx, g.names.Losses(), 0, int64(limit)-1).Result()
	if err != nil {
		return nil, nil, nil, failure("read losses", err)
	}
	for _, text := range texts {
		var n noted
		if err := json.Unmarshal([]byte(text), &n); err != nil || !slices.Contains(protocol.LossCauses(), n.Cause) {
			foreign = append(foreign, text)
			continue
		}
		loss := protocol.Loss{Cause: n.Cause, Entries: -1, Shard: -1}
		loss.First, _ = telemetry.ParseEntryID(n.First)
		loss.Last, _ = telemetry.ParseEntryID(n.Last)
		if n.Entries != nil {
			loss.Entries = *n.Entries
		}
		if n.Shard != nil {
			loss.Shard = *n.Shard
		}
		losses, receipt = append(losses, loss), append(receipt, text)
	}
	return losses, receipt, foreign, nil
}

// Recorded removes losses that are in the ledger from the list: exactly those
// of the receipt, so that two leaders at the same time remove no others.
func (g *Group) Recorded(ctx context.Context, receipt []string) error {
	if len(receipt) == 0 {
		return nil
	}
	pipe := g.client.Pipeline()
	for _, text := range receipt {
		pipe.LRem(ctx, g.names.Losses(), 1, text)
	}
	_, err := pipe.Exec(ctx)
	return failure("remove recorded losses", err)
}
