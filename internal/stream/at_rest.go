package stream

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// largeEnds is the size of the first and the last entry, in bytes, from which they
// are not read again while the stream is at rest. XINFO STREAM cannot be had
// without them.
const largeEnds = 64 << 10

// fingerprint changes with every entry that is added, removed, dispatched or
// acknowledged. It costs no body.
type fingerprint struct {
	length int64
	group  redis.XInfoGroup
}

// added is the number of entries ever added, if the group's counters tell.
func (f fingerprint) added() (int64, bool) {
	return f.group.EntriesRead + f.group.Lag, f.group.Name != "" && f.group.EntriesRead >= 0 && f.group.Lag >= 0
}

// atRest is what was read last of a stream with large ends.
type atRest struct {
	mu       sync.Mutex
	large    bool
	ends     *redis.XInfoStream
	endsAt   fingerprint
	snapshot protocol.StreamSnapshot
	ids      []telemetry.EntryID
	shotAt   fingerprint
}

// note remembers the ends, if they are large and it is sure which fingerprint is theirs.
func (r *atRest) note(ends *redis.XInfoStream, f fingerprint) {
	size := 0
	for _, e := range []redis.XMessage{ends.FirstEntry, ends.LastEntry} {
		for _, v := range e.Values {
			text, _ := v.(string)
			size += len(text)
		}
	}
	ends.FirstEntry.Values, ends.LastEntry.Values = nil, nil // only their IDs are asked for
	r.mu.Lock()
	defer r.mu.Unlock()
	r.large, r.ends = size >= largeEnds, nil
	if added, known := f.added(); r.large && known && added == ends.EntriesAdded {
		r.ends, r.endsAt = ends, f
	}
}

func (r *atRest) isLarge() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.large
}

// fingerprint reads the stream's fingerprint, and the server's time.
func (g *Group) fingerprint(ctx context.Context) (f fingerprint, now time.Time, err error) {
	pipe := g.client.Pipeline()
	length, groups, at := pipe.XLen(ctx, g.names.Stream), pipe.XInfoGroups(ctx, g.names.Stream), pipe.Time(ctx)
	if _, err = pipe.Exec(ctx); err != nil {
		return f, now, err
	}
	return fingerprint{length.Val(), g.row(groups.Val())}, at.Val(), nil
}

// row returns the group's row, without a name where it is missing.
func (g *Group) row(rows []redis.XInfoGroup) redis.XInfoGroup {
	i := slices.IndexFunc(rows, func(row redis.XInfoGroup) bool { return row.Name == g.names.Group })
	if i < 0 {
		return redis.XInfoGroup{}
	}
	return rows[i]
}

// inspect reads the stream and its groups, in this order and in no transaction,
// which a full server rejects: entries added in between do not count as dispatched.
func (g *Group) inspect(ctx context.Context) (*redis.XInfoStream, redis.XInfoGroup, error) {
	if g.rest.isLarge() {
		f, _, err := g.fingerprint(ctx)
		if err == nil {
			g.rest.mu.Lock()
			ends := g.rest.ends
			same := ends != nil && g.rest.endsAt == f
			g.rest.mu.Unlock()
			if same {
				return ends, f.group, nil
			}
		}
	}
	pipe := g.client.Pipeline()
	ends, groups := pipe.XInfoStream(ctx, g.names.Stream), pipe.XInfoGroups(ctx, g.names.Stream)
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, redis.XInfoGroup{}, err
	}
	row := g.row(groups.Val())
	g.rest.note(ends.Val(), fingerprint{ends.Val().Length, row})
	return ends.Val(), row, nil
}

// resting returns the snapshot taken last, if nothing has changed since. Otherwise
// keep remembers the next one, which must be taken after this call.
func (g *Group) resting(ctx context.Context, ids []telemetry.EntryID) (s protocol.StreamSnapshot, same bool, keep func(protocol.StreamSnapshot)) {
	keep = func(protocol.StreamSnapshot) {}
	if !g.rest.isLarge() {
		return s, false, keep
	}
	f, now, err := g.fingerprint(ctx)
	if _, known := f.added(); err != nil || !known {
		return s, false, keep
	}
	g.rest.mu.Lock()
	defer g.rest.mu.Unlock()
	if g.rest.snapshot.Exists && g.rest.shotAt == f && slices.Equal(g.rest.ids, ids) {
		s = g.rest.snapshot
		s.Now, s.Missing = uint64(now.UnixMilli()), slices.Clone(s.Missing)
		return s, true, keep
	}
	return s, false, func(s protocol.StreamSnapshot) {
		g.rest.mu.Lock()
		defer g.rest.mu.Unlock()
		s.Missing = slices.Clone(s.Missing)
		g.rest.snapshot, g.rest.shotAt, g.rest.ids = s, f, slices.Clone(ids)
	}
}
