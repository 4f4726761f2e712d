package stream

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Add adds a dead letter that was archived to the dead-letter stream again, and
// returns its new ID. Nothing is acknowledged: its entry was decided long ago.
func (d *DeadLetters) Add(ctx context.Context, l *telemetry.DeadLetter) (telemetry.EntryID, error) {
	text, err := d.client.XAdd(ctx, &redis.XAddArgs{Stream: d.stream, Values: EncodeDeadLetter(l)}).Result()
	if err != nil {
		return telemetry.EntryID{}, d.failure("add a dead letter again", err)
	}
	id, err := telemetry.ParseEntryID(text)
	return id, d.failure("add a dead letter again", err)
}
