// Package admin reads from Redis what only operators ask: how the server is, and
// where the last entries of a device are. Nothing here is on the path of a record.
package admin

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Reader reads one stream and its group.
type Reader struct {
	client redis.UniversalClient
	group  *stream.Group
}

// New returns a reader of what group, on the same client, works with.
func New(client redis.UniversalClient, group *stream.Group) *Reader { return &Reader{client, group} }

// ServerStatus is Redis' own status, and what it holds besides our stream, for
// diagnosis.
type ServerStatus struct {
	stream.Server
	Role             string // master or slave
	WriteError       string // the last background save or append-only write that failed, "" if none
	MemoryUsed       int64
	MemoryMax        int64         // 0 if unlimited
	Clock            time.Duration // how far the server's clock is ahead of ours, give or take Doubt
	ClockUncertainty time.Duration
	Scripts          error  // why scripts cannot be run; nil when they can
	Refuses          string // the code with which it refuses new entries, "" if it accepts them

	Info              stream.Info
	Foreign           []protocol.Consumer
	Former            []protocol.Consumer // queues of shards that the fleet no longer has
	OtherStreams      []otherStreamStatus
	UnrecordedLosses  int64 // losses not yet in the ledger
	DispatcherPresent bool  // a member holds the dispatch lease
}

// otherStreamStatus is another stream of the platform.
type otherStreamStatus struct {
	Name   string
	Length int64
	Groups int
}

// Diagnose queries the status. What the server does not report stays empty.
func (r *Reader) Diagnose(ctx context.Context, otherStreamPrefix string) (ServerStatus, error) {
	var e ServerStatus
	node, err := r.group.Node(ctx)
	if err != nil {
		return e, stream.Failure("find the server that holds the stream", err)
	}
	before := time.Now()
	now, err := node.Time(ctx).Result()
	if err != nil {
		return e, stream.Failure("ask Redis for the time", err)
	}
	e.ClockUncertainty = time.Since(before)
	e.Clock = now.Sub(before.Add(e.ClockUncertainty / 2)).Round(time.Millisecond)

	text, err := node.Info(ctx, "everything").Result()
	if err != nil {
		return e, stream.Failure("ask Redis about itself", err)
	}
	e.Server = stream.ReadServer(text)
	e.read(text)
	if err := r.client.Eval(ctx, "return 1", []string{r.group.Names().DispatchLease()}).Err(); err != nil {
		e.Scripts = stream.Failure("run a script", err)
	}
	if e.Refuses, err = r.group.Refuses(ctx); err != nil && e.Scripts == nil {
		return e, err
	}
	if e.Info, err = r.group.Info(ctx); err != nil {
		return e, err
	}
	if e.Info.GroupExists {
		consumers, err := r.group.Consumers(ctx)
		if err != nil {
			return e, err
		}
		for _, c := range consumers {
			if _, ours := stream.ShardOfConsumer(c.Name, stream.MaxShards); ours && c.Shard < 0 {
				e.Former = append(e.Former, c)
			} else if c.Shard < 0 {
				e.Foreign = append(e.Foreign, c)
			}
		}
	}
	if e.UnrecordedLosses, err = r.client.LLen(ctx, r.group.Names().Losses()).Result(); err != nil {
		return e, stream.Failure("count losses", err)
	}
	holder, err := r.client.Get(ctx, r.group.Names().DispatchLease()).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return e, stream.Failure("read the dispatch lease", err)
	}
	e.DispatcherPresent = holder != ""
	otherStreams, err := r.group.OtherStreams(ctx, otherStreamPrefix)
	if err != nil {
		return e, err
	}
	for _, s := range otherStreams {
		groups, err := r.client.XInfoGroups(ctx, s.Name).Result()
		if err != nil && !stream.IsNoSuchKey(err) {
			return e, stream.Failure("inspect stream "+s.Name, err)
		}
		e.OtherStreams = append(e.OtherStreams, otherStreamStatus{Name: s.Name, Length: s.Length, Groups: len(groups)})
	}
	return e, nil
}

// read extracts what is relevant here alone from the reply to INFO.
func (e *ServerStatus) read(info string) {
	for line := range strings.Lines(info) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		switch name {
		case "role":
			e.Role = value
		case "rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status":
			if value != "ok" {
				e.WriteError = name
			}
		case "used_memory":
			e.MemoryUsed, _ = strconv.ParseInt(value, 10, 64) // the server writes a number
		case "maxmemory":
			e.MemoryMax, _ = strconv.ParseInt(value, 10, 64) // see above
		}
	}
}

// traceScan bounds how much of the stream one trace searches, newest first.
const (
	traceScan = 200_000
	tracePage = 2000
)

// TracedEntry is an entry of a device with its state in stream and group.
type TracedEntry struct {
	ID         telemetry.EntryID
	Entry      telemetry.Entry
	Dispatched bool   // the dispatcher has read it
	Unqueued   bool   // it has, and the entry is on no queue and perhaps not finished
	Pending    bool   // on a queue, not acknowledged
	On         string // the consumer it is pending for
	DLQEntry   string // ID of its dead letter, "" where it has none
}

// Trace finds the last entries of a device among the newest of the stream,
// newest first, at most limit. It has searched everything from the entry
// reached on; zero is the start of the stream.
func (r *Reader) Trace(ctx context.Context, device string, limit int) (found []TracedEntry, reached telemetry.EntryID, err error) {
	var beginning telemetry.EntryID
	info, err := r.group.Info(ctx)
	if err != nil || !info.Exists {
		return nil, beginning, err
	}
	reached = info.Last.Next()
	before := reached
	for range traceScan / tracePage {
		entries, err := r.group.ReadBack(ctx, before, tracePage)
		if err != nil {
			return found, reached, err
		}
		for _, e := range entries {
			reached = e.ID
			if e.DeviceID() == device {
				found = append(found, TracedEntry{ID: e.ID, Entry: e, Dispatched: info.GroupExists && !info.ReadUntil().Less(e.ID), Unqueued: info.Delivered.Less(e.ID)})
			}
			if len(found) == limit {
				return found, reached, r.pendingOf(ctx, found)
			}
		}
		if len(entries) < tracePage {
			return found, beginning, r.pendingOf(ctx, found)
		}
		before = reached
	}
	return found, reached, r.pendingOf(ctx, found)
}

// pendingOf marks the entries that are on a queue, and those that are dead
// letters.
func (r *Reader) pendingOf(ctx context.Context, found []TracedEntry) error {
	if len(found) == 0 {
		return nil
	}
	ids, names := make([]string, len(found)), make([]string, len(found))
	for i := range found {
		ids[i] = found[i].ID.String()
		names[i] = stream.DeadLetterName(ids[i], found[i].Entry.Digest())
	}
	deadLettered, err := r.client.HMGet(ctx, r.group.Names().DeadLettered(), names...).Result()
	if err != nil {
		return stream.Failure("look for dead letters", err)
	}
	for i, v := range deadLettered {
		if text, ok := v.(string); ok {
			found[i].DLQEntry = text
		}
	}
	for i := range found {
		s := &found[i]
		if !s.Dispatched {
			s.Unqueued = false
			continue
		}
		id := ids[i]
		list, err := r.client.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: r.group.Names().Stream, Group: r.group.Names().Group, Start: id, End: id, Count: 1,
		}).Result()
		if err != nil {
			return stream.Failure("look for "+id+" on the queues", err)
		}
		if len(list) > 0 {
			s.Pending, s.On, s.Unqueued = true, list[0].Consumer, false
		}
	}
	return nil
}
