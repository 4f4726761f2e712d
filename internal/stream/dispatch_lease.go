package stream

import (
	"context"
	_ "embed"
	"errors"
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
// be new for each acquisition and after each error. If another number of shards
// is pinned the lease is released: dispatching by the old number would break
// the order of devices.
func (g *Group) AcquireDispatchLease(ctx context.Context, before, token string, ttl time.Duration) (protocol.DispatchLease, error) {
	res, err := dispatchLeaseScript.Run(ctx, g.client, []string{g.names.Stream, g.names.DispatchLease(), g.names.Dispatched(), g.names.Acked(), g.names.Recreations(), g.names.Database(), g.names.Pending()},
		g.names.Group, before, token, ttl.Milliseconds(), g.shards, g.names.NotifyChannel(), g.belongs()).Slice()
	if err != nil {
		return protocol.DispatchLease{}, failure("acquire the dispatch lease", err)
	}
	if res[0].(int64) == 0 {
		return protocol.DispatchLease{Left: time.Duration(res[1].(int64)) * time.Millisecond}, nil
	}
	if res[0].(int64) == 2 {
		return protocol.DispatchLease{}, failure("acquire the dispatch lease", serverError(fmt.Sprintf("DATABASE the fleet works with another database: %v", res[1])))
	}
	after, err := telemetry.ParseEntryID(res[1].(string))
	if err != nil {
		return protocol.DispatchLease{}, failure("acquire the dispatch lease", err)
	}
	// Asked after the acquisition, so that a number pinned under an earlier
	// lease is seen.
	if err := g.checkShards(ctx); err != nil {
		return protocol.DispatchLease{}, errors.Join(err, g.ReleaseDispatchLease(ctx, token))
	}
	paused, err := g.Paused(ctx)
	if err != nil {
		return protocol.DispatchLease{}, errors.Join(err, g.ReleaseDispatchLease(ctx, token))
	}
	return protocol.DispatchLease{Acquired: true, Paused: paused, After: after, Pending: int(res[3].(int64)), GroupCreated: res[2].(int64) == 1, Moved: res[2].(int64) == 2}, nil
}

//go:embed release.lua
var releaseSource string

var releaseScript = redis.NewScript(releaseSource)

// ReleaseDispatchLease releases the dispatch lease if it is still held under
// the token, so that another member need not wait for it to expire.
func (g *Group) ReleaseDispatchLease(ctx context.Context, token string) error {
	return failure("release the dispatch lease", releaseScript.Run(ctx, g.client, []string{g.names.DispatchLease()}, token, g.names.NotifyChannel()).Err())
}
