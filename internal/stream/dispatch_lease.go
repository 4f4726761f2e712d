package stream

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed dispatch_lease.lua
var dispatchLeaseSource string

var dispatchLeaseScript = withPrelude(dispatchLeaseSource)

// AcquireDispatchLease acquires the dispatch lease if it is free or held under
// the token before, and creates the group at 0 if it is missing. The token must
// be new for each acquisition and after each error. If the fleet counts another
// number of shards, the lease is refused, and free.
func (g *Group) AcquireDispatchLease(ctx context.Context, before, token string, ttl time.Duration) (protocol.DispatchLease, error) {
	n := g.names
	res, err := dispatchLeaseScript.Run(ctx, g.client,
		[]string{n.Stream, n.DispatchLease(), n.Dispatched(), n.Acked(), n.Recreations(), n.Database(), n.Pending(), n.Shards(), n.Paused(), n.Losses()},
		n.Group, before, token, ttl.Milliseconds(), g.shards, n.NotifyChannel(), g.belongs()).Slice()
	if err != nil {
		return protocol.DispatchLease{}, failure("acquire the dispatch lease", err)
	}
	switch res[0].(int64) {
	case 0:
		last, err := idOrZero(res[2].(string))
		if err != nil {
			return protocol.DispatchLease{}, failure("acquire the dispatch lease", err)
		}
		beyond, err := idOrZero(res[3].(string))
		return protocol.DispatchLease{Left: time.Duration(res[1].(int64)) * time.Millisecond, After: last, Beyond: beyond}, failure("acquire the dispatch lease", err)
	case 2:
		return protocol.DispatchLease{}, failure("acquire the dispatch lease", serverError(fmt.Sprintf("DATABASE the fleet works with another database: %v", res[1])))
	case 3:
		return protocol.DispatchLease{}, protocol.OtherShards(g.shards, fmt.Sprint(res[1]))
	}
	after, err := telemetry.ParseEntryID(res[1].(string))
	if err != nil {
		return protocol.DispatchLease{}, failure("acquire the dispatch lease", err)
	}
	beyond, err := idOrZero(res[5].(string))
	return protocol.DispatchLease{
		Acquired: true, Paused: res[4].(int64) == 1, After: after, Beyond: beyond, Pending: int(res[3].(int64)),
		GroupCreated: res[2].(int64) == 1, Moved: res[2].(int64) == 2,
	}, failure("acquire the dispatch lease", err)
}

// idOrZero parses an ID that may be missing.
func idOrZero(text string) (telemetry.EntryID, error) {
	if text == "" {
		return telemetry.EntryID{}, nil
	}
	return telemetry.ParseEntryID(text)
}

//go:embed release.lua
var releaseSource string

var releaseScript = redis.NewScript(releaseSource)

// ReleaseDispatchLease releases the dispatch lease if it is still held under
// the token, so that another member need not wait for it to expire.
func (g *Group) ReleaseDispatchLease(ctx context.Context, token string) error {
	return failure("release the dispatch lease", releaseScript.Run(ctx, g.client, []string{g.names.DispatchLease()}, token, g.names.NotifyChannel()).Err())
}
