package stream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed remove_group.lua
var removeGroupSource string

var removeGroupScript = withPrelude(removeGroupSource)

// Unrecorded returns how many losses of the group, itself included, are not in the ledger yet.
func (g *Group) Unrecorded(ctx context.Context) (int64, error) {
	n, err := g.client.LLen(ctx, g.names.Losses()).Result()
	if err != nil {
		return 0, failure("count what is not in the ledger yet", err)
	}
	recreations, foreign, err := g.GroupRecreations(ctx)
	n += int64(len(foreign))
	for _, m := range recreations {
		if !m.Dispatched.IsZero() { // otherwise it was the first group
			n++
		}
	}
	return n, err
}

// Removed returns the last ID of the stream when the group was removed from it; zero if that
// was never or long ago.
func (g *Group) Removed(ctx context.Context) (telemetry.EntryID, error) {
	text, err := g.client.Get(ctx, g.names.Removed()).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return telemetry.EntryID{}, failure("ask whether the group was removed", err)
	}
	return idOrZero(text)
}

// RemoveGroup takes the group and the keys kept for it away from a stream that no member
// serves. It fails, and changes nothing, if anything of the stream is left to do. It may be
// repeated. Entries of a stream that was never served are left as they are.
func (g *Group) RemoveGroup(ctx context.Context, served bool) error {
	const op = "remove the group"
	keys := []string{g.names.Stream, g.names.Removed(), g.names.Losses(), g.names.Pending(), g.names.Applied()}
	for _, key := range g.names.All() {
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	members, err := g.client.SMembers(ctx, g.names.Members()).Result()
	if err != nil {
		return failure(op, err)
	}
	for _, identity := range members { // the last heartbeat of one that has just left
		keys = append(keys, g.names.Heartbeat(identity))
	}
	never := "1"
	if served {
		never = ""
	}
	res, err := removeGroupScript.Run(ctx, g.client, keys, g.names.Group, never).Slice()
	if err != nil {
		return failure(op, err)
	}
	switch res[0].(int64) {
	case 2:
		return fmt.Errorf("%s: losses are not in the ledger yet: start an instance that serves the stream, which records them, and run it again", op)
	case 0:
		return fmt.Errorf("%s: entries came meanwhile: %v are pending, dispatched up to %v of %v", op, res[1], res[2], res[3])
	}
	return nil
}
