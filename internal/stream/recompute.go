package stream

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Recomputes reads the stream of recompute requests in its own group, so that
// requests read but not recorded are read again by the next leader.
type Recomputes struct {
	client redis.UniversalClient
	stream string
	group  string
}

// recomputeReader is the group's only consumer, for every leader: its pending
// list is what is not recorded yet.
const recomputeReader = "leader"

// NewRecomputes returns the requests of a stream as read by one group.
func NewRecomputes(client redis.UniversalClient, stream, group string) *Recomputes {
	return &Recomputes{client: client, stream: stream, group: group}
}

// Stream returns the name of the stream.
func (r *Recomputes) Stream() string { return r.stream }

// Read returns entries that are not recorded yet, oldest first: those read
// before, otherwise new ones. An entry that is gone has no fields. It does not
// block.
func (r *Recomputes) Read(ctx context.Context, count int) ([]telemetry.Entry, error) {
	for _, from := range []string{"0", ">"} {
		entries, err := r.read(ctx, from, count)
		if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Kind == protocol.Lost {
			if begun, err := r.begin(ctx); err != nil || !begun {
				return nil, err
			}
			entries, err = r.read(ctx, from, count)
		}
		if err != nil || len(entries) > 0 {
			return entries, err
		}
	}
	return nil, nil
}

// begin creates the group at the start of the stream: a request recorded before
// is known by its ID. Without a stream there is nothing to read.
func (r *Recomputes) begin(ctx context.Context) (bool, error) {
	exists, err := r.client.Exists(ctx, r.stream).Result()
	if err != nil || exists == 0 {
		return false, failure("look for the stream of requests", err)
	}
	err = r.client.XGroupCreate(ctx, r.stream, r.group, "0").Err()
	if redis.HasErrorPrefix(err, "BUSYGROUP") {
		err = nil
	}
	return err == nil, failure("make the group of requests", err)
}

func (r *Recomputes) read(ctx context.Context, from string, count int) ([]telemetry.Entry, error) {
	streams, err := r.client.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: r.group, Consumer: recomputeReader, Streams: []string{r.stream, from}, Count: int64(count), Block: -1,
	}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, failure("read requests", err)
	}
	var entries []telemetry.Entry
	for _, s := range streams {
		for _, m := range s.Messages {
			id, err := telemetry.ParseEntryID(m.ID)
			if err != nil {
				return nil, failure("read requests", err)
			}
			e := telemetry.Entry{ID: id}
			for name, value := range m.Values {
				if text, ok := value.(string); ok {
					e.Fields = append(e.Fields, name, text)
				}
			}
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// Recorded acknowledges recorded entries.
func (r *Recomputes) Recorded(ctx context.Context, ids []telemetry.EntryID) error {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return failure("acknowledge requests", r.client.XAck(ctx, r.stream, r.group, texts...).Err())
}
