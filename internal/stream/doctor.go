package stream

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// ServerStatus is Redis' own status, and what it holds besides our stream, for
// diagnosis.
type ServerStatus struct {
	Version          string
	Role             string // master or slave
	Eviction         string // maxmemory-policy
	AppendOnly       bool
	WriteError       string // the last background save or append-only write that failed, "" if none
	MemoryUsed       int64
	MemoryMax        int64         // 0 if unlimited
	Clock            time.Duration // how far the server's clock is ahead of ours, give or take Doubt
	ClockUncertainty time.Duration
	Scripts          error // why scripts cannot be run; nil when they can

	Info              Info
	Foreign           []protocol.Consumer
	OtherStreams      []OtherStreamStatus
	UnrecordedLosses  int64 // losses not yet in the ledger
	DispatcherPresent bool  // a member holds the dispatch lease
}

// OtherStreamStatus is another stream of the platform.
type OtherStreamStatus struct {
	Name   string
	Length int64
	Groups int
}

// Diagnose queries the status. What the server does not report stays empty.
func (g *Group) Diagnose(ctx context.Context, otherStreamPrefix string) (ServerStatus, error) {
	var e ServerStatus
	node, err := g.node(ctx)
	if err != nil {
		return e, failure("find the server that holds the stream", err)
	}
	before := time.Now()
	now, err := node.Time(ctx).Result()
	if err != nil {
		return e, failure("ask Redis for the time", err)
	}
	e.ClockUncertainty = time.Since(before)
	e.Clock = now.Sub(before.Add(e.ClockUncertainty / 2)).Round(time.Millisecond)

	text, err := node.Info(ctx, "everything").Result()
	if err != nil {
		return e, failure("ask Redis about itself", err)
	}
	e.read(text)
	if err := g.client.Eval(ctx, "return 1", []string{g.names.DispatchLease()}).Err(); err != nil {
		e.Scripts = failure("run a script", err)
	}
	if e.Info, err = g.Info(ctx); err != nil {
		return e, err
	}
	if e.Info.GroupExists {
		consumers, err := g.Consumers(ctx)
		if err != nil {
			return e, err
		}
		e.Foreign = slices.DeleteFunc(consumers, func(c protocol.Consumer) bool { return c.Shard >= 0 })
	}
	if e.UnrecordedLosses, err = g.client.LLen(ctx, g.names.Losses()).Result(); err != nil {
		return e, failure("count losses", err)
	}
	holder, err := g.client.Get(ctx, g.names.DispatchLease()).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return e, failure("read the dispatch lease", err)
	}
	e.DispatcherPresent = holder != ""
	otherStreams, err := g.OtherStreams(ctx, otherStreamPrefix)
	if err != nil {
		return e, err
	}
	for _, s := range otherStreams {
		groups, err := g.client.XInfoGroups(ctx, s.Name).Result()
		if err != nil && !isNoSuchKey(err) {
			return e, failure("inspect stream "+s.Name, err)
		}
		e.OtherStreams = append(e.OtherStreams, OtherStreamStatus{Name: s.Name, Length: s.Length, Groups: len(groups)})
	}
	return e, nil
}

// read extracts the relevant values from the reply to INFO.
func (e *ServerStatus) read(info string) {
	for line := range strings.Lines(info) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		switch name {
		case "redis_version":
			e.Version = value
		case "role":
			e.Role = value
		case "maxmemory_policy":
			e.Eviction = value
		case "aof_enabled":
			e.AppendOnly = value == "1"
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
	Dispatched bool   // the group's last-delivered ID is at or after it
	Pending    bool   // on a queue, not acknowledged
	On         string // the consumer it is pending for
	DLQEntry   string // ID of its dead letter, "" where it has none
}

// Trace finds the last entries of a device among the newest of the stream,
// newest first, at most limit. It has searched everything from the entry
// reached on; zero is the start of the stream.
func (g *Group) Trace(ctx context.Context, device string, limit int) (found []TracedEntry, reached telemetry.EntryID, err error) {
	var beginning telemetry.EntryID
	info, err := g.Info(ctx)
	if err != nil || !info.Exists {
		return nil, beginning, err
	}
	reached = info.Last.Next()
	to := "+"
	for range traceScan / tracePage {
		cmd := redis.NewRawCmd(ctx, "xrevrange", g.names.Stream, to, "-", "count", tracePage)
		if err := g.client.Process(ctx, cmd); err != nil {
			return found, reached, failure("read the stream", err)
		}
		b, err := parseRange(cmd.Val())
		if err != nil {
			return found, reached, failure("read the stream", g.redirected(ctx, err))
		}
		for _, e := range b.entries {
			reached = e.ID
			if e.DeviceID() == device {
				found = append(found, TracedEntry{ID: e.ID, Entry: e, Dispatched: info.GroupExists && !info.Delivered.Less(e.ID)})
			}
			if len(found) == limit {
				return found, reached, g.pendingOf(ctx, found)
			}
		}
		if len(b.entries) < tracePage {
			return found, beginning, g.pendingOf(ctx, found)
		}
		to = "(" + b.ids[len(b.ids)-1]
	}
	return found, reached, g.pendingOf(ctx, found)
}

// pendingOf marks the entries that are on a queue, and those that are dead
// letters.
func (g *Group) pendingOf(ctx context.Context, found []TracedEntry) error {
	if len(found) == 0 {
		return nil
	}
	ids, names := make([]string, len(found)), make([]string, len(found))
	for i := range found {
		ids[i] = found[i].ID.String()
		names[i] = deadLetterName(ids[i], found[i].Entry.Digest())
	}
	deadLettered, err := g.client.HMGet(ctx, g.names.DeadLettered(), names...).Result()
	if err != nil {
		return failure("look for dead letters", err)
	}
	for i, v := range deadLettered {
		if text, ok := v.(string); ok {
			found[i].DLQEntry = text
		}
	}
	for i := range found {
		s := &found[i]
		if !s.Dispatched {
			continue
		}
		id := ids[i]
		list, err := g.client.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: g.names.Stream, Group: g.names.Group, Start: id, End: id, Count: 1,
		}).Result()
		if err != nil {
			return failure("look for "+id+" on the queues", err)
		}
		if len(list) > 0 {
			s.Pending, s.On = true, list[0].Consumer
		}
	}
	return nil
}
