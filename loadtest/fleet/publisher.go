package fleet

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// RedisPublisher appends entries to a stream of Redis as tcp-ingestion does.
type RedisPublisher struct {
	client redis.UniversalClient
	stream string
	maxLen int64
}

// NewPublisher returns a publisher that trims the stream to about maxLen
// entries with each append, or never when maxLen is 0.
func NewPublisher(client redis.UniversalClient, stream string, maxLen int64) *RedisPublisher {
	return &RedisPublisher{client: client, stream: stream, maxLen: maxLen}
}

// Publish appends one entry for each list of names and values, in one round
// trip, and returns their IDs. After an error any part may have been added; IDs
// are zero where the outcome is unknown.
func (p *RedisPublisher) Publish(ctx context.Context, entries [][]string) ([]telemetry.EntryID, error) {
	pipe := p.client.Pipeline()
	cmds := make([]*redis.Cmd, len(entries))
	for i, fields := range entries {
		args := make([]any, 0, 6+len(fields))
		args = append(args, "xadd", p.stream)
		if p.maxLen > 0 {
			args = append(args, "maxlen", "~", p.maxLen)
		}
		args = append(args, "*")
		for j := range fields {
			args = append(args, &fields[j])
		}
		cmds[i] = pipe.Do(ctx, args...)
	}
	_, err := pipe.Exec(ctx)
	ids := make([]telemetry.EntryID, len(entries))
	for i, cmd := range cmds {
		text, cmdErr := cmd.Text()
		if cmdErr != nil {
			continue
		}
		if ids[i], cmdErr = telemetry.ParseEntryID(text); cmdErr != nil && err == nil {
			err = cmdErr
		}
	}
	if err != nil {
		return ids, appendFailure(len(entries), err)
	}
	return ids, nil
}

// appendFailure marks as Misconfigured what no other attempt would mend.
func appendFailure(entries int, err error) error {
	err = fmt.Errorf("append %d entries: %w", entries, err)
	for _, code := range []string{"WRONGTYPE", "NOPERM", "NOAUTH", "WRONGPASS"} {
		if redis.HasErrorPrefix(err, code) {
			return &protocol.Failure{Kind: protocol.Misconfigured, Code: code, Err: err}
		}
	}
	return err
}
