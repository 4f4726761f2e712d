package stream

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strconv"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed ack.lua
var ackSource string

var ackScript = withPrelude(ackSource)

// ackChunk bounds the arguments of one script call: Lua's stack holds about
// 8,000, and a long script would block the server.
const ackChunk = 4096

// Ack acknowledges finished entries and moves their shards' acked marks, in as
// many script calls as their number needs. After an error part of it may have
// happened; repeating the call is harmless. Shards that were acquired under
// another token since are rejected with a Failure of kind Lost that names them;
// the other shards are acknowledged.
func (g *Group) Ack(ctx context.Context, acks []protocol.Ack) error {
	args := []any{g.names.Group}
	n := 0
	var stale []int
	flush := func() error {
		if n == 0 {
			return nil
		}
		refused, err := ackScript.Run(ctx, g.client,
			[]string{g.names.Stream, g.names.Acked(), g.names.Losses(), g.names.OwnerTokens(), g.names.Pending(), g.names.Applied()}, args...).Int64Slice()
		args, n = args[:1], 0
		for _, shard := range refused {
			stale = append(stale, int(shard))
		}
		return failure("ack", err)
	}
	add := func(shard int, token, cause, applied string, unqueued, ids []telemetry.EntryID) error {
		for first := true; len(ids) > 0 || first && (applied != "" || len(unqueued) > 0); first = false {
			chunk, top := ids[:min(len(ids), ackChunk-n)], ""
			ids = ids[len(chunk):]
			highest := telemetry.EntryID{}
			for _, list := range [][]telemetry.EntryID{chunk, unqueued} {
				for _, id := range list {
					if highest.Less(id) {
						highest = id
					}
				}
			}
			if !highest.IsZero() {
				top = highest.String()
			}
			args = append(args, strconv.Itoa(shard), g.consumers[shard], token, cause, applied, top, len(chunk))
			args = appendIDs(args, chunk)
			if n += max(1, len(chunk)); n >= ackChunk {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, a := range acks {
		applied := ""
		if !a.Applied.IsZero() {
			applied = a.Applied.String()
		}
		if err := add(a.Shard, a.Token, "", applied, a.Unqueued, a.IDs); err != nil {
			return err
		}
		if err := add(a.Shard, a.Token, protocol.LossTrimmedPending, "", nil, a.Gone); err != nil {
			return err
		}
	}
	if err := flush(); err != nil || len(stale) == 0 {
		return err
	}
	slices.Sort(stale)
	return &protocol.Failure{
		Kind: protocol.Lost, Code: "token", Shards: slices.Compact(stale),
		Err: fmt.Errorf("ack: shards %v were reacquired, or their tokens are lost", slices.Compact(stale)),
	}
}

// appendIDs appends IDs as arguments whose text shares one allocation.
func appendIDs(args []any, ids []telemetry.EntryID) []any {
	ends := make([]int, len(ids))
	buf := make([]byte, 0, 18*len(ids))
	for i, id := range ids {
		buf = id.AppendTo(buf)
		ends[i] = len(buf)
	}
	all, text := string(buf), make([]string, len(ids))
	start := 0
	for i, end := range ends {
		text[i] = all[start:end]
		args = append(args, &text[i]) // a pointer saves the copy that boxing a string makes
		start = end
	}
	return args
}
