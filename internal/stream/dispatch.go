package stream

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed dispatch.lua
var dispatchSource string

var dispatchScript = withPrelude(dispatchSource)

// dispatchChunk bounds the arguments of one XCLAIM: Lua's stack holds about
// 8,000, and an error there would leave a dispatch half done.
const dispatchChunk = 4096

// ReadNew reads at most count entries added after an ID, or as many as their size
// permits, waiting up to block. It does not affect the group.
func (g *Group) ReadNew(ctx context.Context, after telemetry.EntryID, count int, block time.Duration) (protocol.NewEntries, error) {
	count = g.newPace.count(count)
	began := time.Now()
	raw := g.newPace.buffer(1)
	cmd := redis.NewRawWriteToCmd(ctx, raw, "xread", "count", count, "block", max(1, block.Milliseconds()),
		"streams", g.names.Stream, after.String())
	cmd.SetFirstKeyPos(6)
	if err := g.client.Process(ctx, cmd); err != nil {
		return protocol.NewEntries{}, g.newPace.readFailure(ctx, g.client, "read new entries", count, began, err)
	}
	b, err := parseRead(raw.bytes())
	if err != nil {
		return protocol.NewEntries{}, failure("read new entries", g.redirected(ctx, err))
	}
	g.newPace.passed(len(b.entries), len(raw.b), len(b.entries) >= count, time.Since(began))
	if len(b.entries) == 0 {
		return protocol.NewEntries{}, nil
	}
	a := byShard(b, g.shards)
	a.Last = b.entries[len(b.entries)-1].ID
	a.Full = len(b.entries) >= count
	g.observed(a.Last)
	a.Bytes = len(raw.b)
	return a, nil
}

// byShard sorts a batch by shard, in stream order within each, by counting.
func byShard(b batch, shards int) protocol.NewEntries {
	of := make([]uint16, len(b.entries))
	starts := make([]int, shards+1)
	for i := range b.entries {
		s := telemetry.ShardOf(b.entries[i].DeviceID(), shards)
		of[i] = uint16(s)
		starts[s+1]++
	}
	var a protocol.NewEntries
	for s := range shards {
		if starts[s+1] > 0 {
			a.Shards = append(a.Shards, s)
			a.Starts = append(a.Starts, starts[s])
		}
		starts[s+1] += starts[s]
	}
	a.Starts = append(a.Starts, len(b.entries))
	a.Entries = make([]telemetry.Entry, len(b.entries))
	a.IDs = make([]string, len(b.entries))
	for i := range b.entries {
		at := starts[of[i]]
		starts[of[i]]++
		a.Entries[at], a.IDs[at] = b.entries[i], b.ids[i]
	}
	return a
}

// Dispatch puts new entries on their shards' queues in one step. It fails with
// a Failure of kind Lost, without effect, when the dispatch lease, the group or
// the last-delivered ID is not what the read was based on. Nothing may have been read
// if the request says where the read would have ended.
func (g *Group) Dispatch(ctx context.Context, d protocol.DispatchRequest, a *protocol.NewEntries) (protocol.DispatchResult, error) {
	ahead := d.Ahead
	if ahead == nil {
		ahead = &protocol.Ahead{From: d.After, Settled: protocol.Position{ID: a.Last, Read: -1}}
	}
	last := a.Last
	if len(a.Entries) == 0 {
		last = ahead.From
	}
	args := make([]any, 0, 14+len(a.Entries)+8*len(a.Shards))
	short, read := "1", ""
	if a.Full {
		short = "0"
	}
	if ahead.Settled.Read >= 0 {
		read = strconv.FormatInt(ahead.Settled.Read, 10)
	}
	args = append(args, g.names.Group, d.Token, d.TTL.Milliseconds(), d.After.String(), ahead.Settled.ID.String(), read,
		ahead.From.String(), last.String(), len(a.Entries), short, "", "", ahead.UnqueuedCount, ahead.Number)
	claim := func(kind string, shard int, ids []string) {
		for ids := range slices.Chunk(ids, dispatchChunk) {
			args = append(args, kind, len(ids)+6, g.consumers[shard], "0")
			for j := range ids {
				args = append(args, &ids[j]) // a pointer saves the copy that boxing a string makes
			}
			args = append(args, "RETRYCOUNT", "0", "FORCE", "JUSTID")
		}
	}
	var again, fresh []int
	for _, list := range []struct {
		kind   string
		queues map[int][]telemetry.EntryID
	}{{"again", ahead.Again}, {"unqueued", ahead.Enqueue}} {
		for shard, ids := range list.queues {
			texts := make([]string, len(ids))
			for i, id := range ids {
				texts[i] = id.String()
			}
			claim(list.kind, shard, texts)
			again = append(again, shard)
		}
	}
	for i, shard := range a.Shards {
		if ahead.Unqueued == nil || !ahead.Unqueued(shard) {
			claim("new", shard, a.IDs[a.Starts[i]:a.Starts[i+1]])
			fresh = append(fresh, shard)
		}
	}
	if ahead.Rewind {
		args[10], args[11] = g.names.NotifyChannel(), groupPayload
	} else if d.Notify && len(again)+len(fresh) > 0 {
		args[10], args[11] = g.names.NotifyChannel(), notifyPayload(again, fresh)
	}
	res, err := dispatchScript.Run(ctx, g.client, []string{g.names.Stream, g.names.DispatchLease(), g.names.Losses(), g.names.Dispatched(), g.names.Pending()}, args...).Slice()
	if err != nil {
		return protocol.DispatchResult{}, failure("dispatch", err)
	}
	switch res[0] {
	case "dispatched":
	case "moved":
		return protocol.DispatchResult{}, &protocol.Failure{
			Kind: protocol.Lost, Code: "moved",
			Err: fmt.Errorf("dispatch after %s: the group's last-delivered ID is %v", d.After, res[1]),
		}
	default:
		return protocol.DispatchResult{}, &protocol.Failure{
			Kind: protocol.Lost, Code: fmt.Sprint(res[0]),
			Err: fmt.Errorf("dispatch: the %v is lost", res[0]),
		}
	}
	out := protocol.DispatchResult{Pending: int(res[1].(int64)), Read: res[2].(int64)}
	for _, gone := range res[3:] {
		id, err := telemetry.ParseEntryID(fmt.Sprint(gone))
		if err != nil {
			return protocol.DispatchResult{}, failure("dispatch", err)
		}
		if out.Gone == nil {
			out.Gone = make(map[telemetry.EntryID]struct{})
		}
		out.Gone[id] = struct{}{}
	}
	return out, nil
}

// notifyPayload names shards in the form that Notifications parses: those whose queues are to be
// read from the start, since entries may precede the cursor, and those with new entries.
func notifyPayload(again, fresh []int) string {
	b := make([]byte, 0, 4*(len(again)+len(fresh)+4))
	if len(again) > 0 {
		b = appendShards(append(b, againPayload...), again)
		if len(fresh) > 0 {
			b = append(b, " "+newPayload...)
		}
	}
	return string(bytes.TrimLeft(appendShards(b, fresh), " "))
}

func appendShards(b []byte, shards []int) []byte {
	for _, s := range shards {
		b = strconv.AppendInt(append(b, ' '), int64(s), 10)
	}
	return b
}
