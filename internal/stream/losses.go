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
// yet, oldest first, at most limit, and a receipt for Recorded. What is no loss is in
// foreign, each a receipt of its own. A loss of a cause that this version does not know is
// left in the list, for an instance of the newer one that wrote it.
func (g *Group) Losses(ctx context.Context, limit int) (losses []protocol.Loss, receipt, foreign []string, err error) {
	for from := int64(0); ; from += int64(limit) {
		texts, err := g.client.LRange(ctx, g.names.Losses(), from, from+int64(limit)-1).Result()
		if err != nil {
			return nil, nil, nil, failure("read losses", err)
		}
		for _, text := range texts {
			loss, known, ok := readLoss(text)
			switch {
			case !ok:
				foreign = append(foreign, text)
			case known:
				losses, receipt = append(losses, loss), append(receipt, text)
			}
		}
		if len(losses)+len(foreign) > 0 || len(texts) < limit {
			return losses, receipt, foreign, nil
		}
	}
}

// readLoss returns the loss that a text tells of. One whose cause is not known must have a
// first and a last entry to be one.
func readLoss(text string) (loss protocol.Loss, known, ok bool) {
	var n noted
	if json.Unmarshal([]byte(text), &n) != nil {
		return loss, false, false
	}
	loss = protocol.Loss{Cause: n.Cause, Entries: -1, Shard: -1}
	var first, last error
	loss.First, first = telemetry.ParseEntryID(n.First)
	loss.Last, last = telemetry.ParseEntryID(n.Last)
	if n.Entries != nil {
		loss.Entries = *n.Entries
	}
	if n.Shard != nil {
		loss.Shard = *n.Shard
	}
	known = slices.Contains(protocol.LossCauses(), n.Cause)
	return loss, known, known || n.Cause != "" && first == nil && last == nil
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
