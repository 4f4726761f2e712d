package stream

import (
	"context"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// DLQEntry is a dead letter as stored in the stream.
type DLQEntry = protocol.DLQEntry

// List returns at most count dead letters after an ID, oldest first; fewer if they
// are large, none only at the end.
func (d *DeadLetters) List(ctx context.Context, after telemetry.EntryID, count int) ([]DLQEntry, error) {
	return d.read(ctx, after.Next().String(), "+", d.pace.count(count))
}

// Get returns the dead letters with these IDs, in their order. Missing ones are
// omitted.
func (d *DeadLetters) Get(ctx context.Context, ids []telemetry.EntryID) ([]DLQEntry, error) {
	var found []DLQEntry
	for _, id := range ids {
		some, err := d.read(ctx, id.String(), id.String(), 1)
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return found, nil
}

func (d *DeadLetters) read(ctx context.Context, from, to string, count int) ([]DLQEntry, error) {
	cmd := redis.NewRawCmd(ctx, "xrange", d.stream, from, to, "count", count)
	op, began := "read dead letters from "+d.stream, time.Now()
	if err := d.client.Process(ctx, cmd); err != nil {
		return nil, d.pace.readFailure(ctx, d.client, op, count, began, err)
	}
	b, err := parseRange(cmd.Val())
	if err != nil {
		return nil, d.failure(op, err)
	}
	d.pace.passed(len(b.entries), len(cmd.Val()), len(b.entries) >= count, time.Since(began))
	letters := make([]DLQEntry, len(b.entries))
	for i := range b.entries {
		l := &letters[i]
		l.ID = b.entries[i].ID
		if l.DeadLetter, l.Err = decodeDeadLetter(b.entries[i].Fields); l.Err != nil {
			l.DeadLetter = telemetry.DeadLetter{Entry: telemetry.Entry{Fields: b.entries[i].Fields}}
		}
	}
	return letters, nil
}

// allPage is the maximum number of dead letters that All reads per call.
const allPage = 500

// All yields every dead letter, oldest first. Entries that are not ours are
// skipped.
func (d *DeadLetters) All(ctx context.Context) iter.Seq2[telemetry.DeadLetter, error] {
	return func(yield func(telemetry.DeadLetter, error) bool) {
		var after telemetry.EntryID
		for {
			page, err := d.List(ctx, after, allPage)
			if err != nil {
				yield(telemetry.DeadLetter{}, err)
				return
			}
			for _, l := range page {
				after = l.ID
				if l.Err == nil && !yield(l.DeadLetter, nil) {
					return
				}
			}
			if len(page) == 0 {
				return
			}
		}
	}
}

// Length returns the number of dead letters.
func (d *DeadLetters) Length(ctx context.Context) (int64, error) {
	n, err := d.client.XLen(ctx, d.stream).Result()
	return n, d.failure("count the dead letters in "+d.stream, err)
}

// Now returns the server's time, from whose clock dead letters get their IDs.
func (d *DeadLetters) Now(ctx context.Context) (time.Time, error) {
	node, err := d.Node(ctx)
	if err != nil {
		return time.Time{}, failure("ask Redis for its time", err)
	}
	now, err := node.Time(ctx).Result()
	return now, failure("ask Redis for its time", err)
}

// Node returns the server that holds the dead letters.
func (d *DeadLetters) Node(ctx context.Context) (redis.Cmdable, error) {
	if c, ok := d.client.(*redis.ClusterClient); ok {
		return c.MasterForKey(ctx, d.stream)
	}
	return d.client, nil
}

// Remove removes exactly these dead letters from the stream and returns how
// many existed.
func (d *DeadLetters) Remove(ctx context.Context, ids []telemetry.EntryID) (int, error) {
	if len(ids) == 0 {
		return 0, nil
	}
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = id.String()
	}
	n, err := d.client.XDel(ctx, d.stream, text...).Result()
	return int(n), d.failure("remove dead letters from "+d.stream, err)
}

// Room returns how many dead letters there are, and how full their server is.
func (d *DeadLetters) Room(ctx context.Context) (protocol.DLQRoom, error) {
	const op = "ask Redis how full it is"
	node, err := d.Node(ctx)
	if err != nil {
		return protocol.DLQRoom{}, failure(op, err)
	}
	pipe := node.Pipeline()
	length, memory := pipe.XLen(ctx, d.stream), pipe.Info(ctx, "memory")
	if _, err := pipe.Exec(ctx); err != nil {
		return protocol.DLQRoom{}, failure(op, err)
	}
	r := protocol.DLQRoom{Letters: length.Val()}
	for line := range strings.Lines(memory.Val()) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name {
		case "used_memory":
			r.MemoryUsed, _ = strconv.ParseInt(value, 10, 64) // the server writes a number
		case "maxmemory":
			r.MemoryMax, _ = strconv.ParseInt(value, 10, 64) // see above
		}
	}
	return r, nil
}
