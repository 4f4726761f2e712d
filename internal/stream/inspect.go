package stream

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Count is a number that may be unknown.
type Count struct {
	N     int64
	Known bool
}

// Info is the state of the stream and of the group at one moment.
type Info struct {
	Exists      bool // the stream exists
	Length      int64
	Added       int64 // entries ever added
	First, Last telemetry.EntryID
	GroupExists bool
	Delivered   telemetry.EntryID // the group's last-delivered ID
	Pending     int64
	Lag         Count // entries that are on no queue yet

	newest telemetry.EntryID // zero in an empty stream
	ahead  readAhead
}

// Last returns the last entry ever added to the stream; zero if there is none.
func (g *Group) Last(ctx context.Context) (telemetry.EntryID, error) {
	info, err := g.Info(ctx)
	return info.Last, err
}

// Info reads the state of the stream and the group.
func (g *Group) Info(ctx context.Context) (Info, error) {
	s, row, err := g.inspect(ctx)
	if err != nil {
		if IsNoSuchKey(err) {
			return Info{}, nil
		}
		return Info{}, failure("inspect the stream", err)
	}
	info := Info{Exists: true, Length: s.Length, Added: s.EntriesAdded}
	info.Last, _ = telemetry.ParseEntryID(s.LastGeneratedID)
	info.First, _ = telemetry.ParseEntryID(s.FirstEntry.ID)
	info.newest, _ = telemetry.ParseEntryID(s.LastEntry.ID)
	if row.Name == "" {
		return info, nil
	}
	info.GroupExists, info.Pending = true, row.Pending
	if info.Delivered, err = telemetry.ParseEntryID(row.LastDeliveredID); err != nil {
		return Info{}, failure("inspect the stream", err)
	}
	if info.Delivered.Less(info.Last) {
		pipe := g.client.Pipeline()
		text, lease := pipe.HGet(ctx, g.names.Pending(), "ahead"), pipe.Get(ctx, g.names.DispatchLease())
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
			return Info{}, failure("inspect the group", err)
		}
		// Another dispatcher begins at the last-delivered ID.
		if token, _, _ := strings.Cut(text.Val(), " "); lease.Val() == "" || lease.Val() == token {
			info.ahead = parseReadAhead(text.Val())
		}
	}
	info.Lag = lag(info, row)
	return info, nil
}

// ReadUntil returns how far the dispatcher has read: the last-delivered ID, or beyond it in a backlog.
func (i *Info) ReadUntil() telemetry.EntryID {
	if i.Delivered.Less(i.ahead.last) {
		return i.ahead.last
	}
	return i.Delivered
}

// Accounted returns the last entry up to which all are finished unless they are pending. It is ReadUntil
// where nothing is unqueued: the last-delivered ID follows with the next dispatch only.
func (i *Info) Accounted() telemetry.EntryID {
	if i.ahead.unqueued == 0 {
		return i.ReadUntil()
	}
	return i.Delivered
}

// readAhead is how far the dispatcher has read beyond the last-delivered ID.
type readAhead struct {
	last     telemetry.EntryID // zero for nowhere
	read     int64             // entries read until there, -1 for unknown
	unqueued int64             // entries of these that were unqueued when it dispatched last
}

func parseReadAhead(text string) (a readAhead) {
	fields := strings.Split(text, " ")
	if len(fields) < 4 || fields[3] == "-" { // the next dispatcher begins at the last-delivered ID
		return readAhead{}
	}
	var err error
	if a.last, err = telemetry.ParseEntryID(fields[1]); err != nil {
		return readAhead{}
	}
	if a.read, err = strconv.ParseInt(fields[2], 10, 64); err != nil {
		a.read = -1
	}
	a.unqueued, _ = strconv.ParseInt(fields[3], 10, 64)
	return a
}

// lag is known only if the server's counters agree with what can be seen: its
// value stays wrong after a trim, and is null after a deletion. What is unqueued counts.
func lag(info Info, row redis.XInfoGroup) Count {
	ahead := info.ahead
	switch {
	case info.Delivered.Compare(info.Last) >= 0:
		return Count{N: 0, Known: true}
	case info.Delivered.Less(ahead.last) && ahead.last.Less(info.First):
		return Count{N: info.Length + ahead.unqueued, Known: true}
	case info.Delivered.Less(ahead.last):
		if ahead.read < 0 || ahead.read > info.Added || info.Added-ahead.read > info.Length {
			return Count{}
		}
		return Count{N: info.Added - ahead.read + ahead.unqueued, Known: true}
	case !info.Delivered.Less(info.newest):
		return Count{N: 0, Known: true} // what followed was deleted
	case info.Delivered.Less(info.First):
		// Nothing that remains was dispatched: all of it is lag.
		return Count{N: info.Length, Known: true}
	case row.Lag < 0 || row.EntriesRead < 0 || row.EntriesRead > info.Added || row.Lag > info.Length:
		return Count{}
	default:
		return Count{N: row.Lag, Known: true}
	}
}

// IsNoSuchKey reports whether Redis says that there is no such stream.
func IsNoSuchKey(err error) bool {
	return strings.Contains(err.Error(), "no such key")
}

// Ping checks whether the server answers.
func (g *Group) Ping(ctx context.Context) error {
	return failure("ping Redis", g.client.Ping(ctx).Err())
}

// Writable checks whether the server answers and accepts writes. One that is full
// accepts those that take no memory, and what is there is processed.
func (g *Group) Writable(ctx context.Context) error {
	return failure("ask whether Redis accepts writes", writableScript.Run(ctx, g.client, []string{g.names.Stream}).Err())
}

// Refuses returns the code with which the server refuses new entries: OOM where it
// is full, READONLY, NOREPLICAS or MISCONF; "" if it accepts them. It changes nothing.
func (g *Group) Refuses(ctx context.Context) (code string, err error) {
	err = acceptsScript.Run(ctx, g.client, []string{g.names.Stream}).Err()
	if err == nil {
		return "", nil
	}
	if code, _, _ = strings.Cut(err.Error(), " "); slices.Contains(refusals, code) {
		return code, nil
	}
	return "", failure("ask whether Redis accepts writes", err)
}

var refusals = []string{"OOM", "READONLY", "NOREPLICAS", "MISCONF"}

// A server that refuses writes runs no script that may write, even if it does nothing.
var (
	acceptsScript  = redis.NewScript("#!lua\nreturn 1")
	writableScript = redis.NewScript("#!lua flags=allow-oom\nreturn 1")
)

// Backlog returns the state of the whole group, for gauges and operators.
func (g *Group) Backlog(ctx context.Context) (protocol.Backlog, error) {
	info, err := g.Info(ctx)
	if err != nil {
		return protocol.Backlog{}, err
	}
	return g.BacklogOf(ctx, info)
}

// BacklogOf is Backlog for those who have asked for Info already.
func (g *Group) BacklogOf(ctx context.Context, info Info) (protocol.Backlog, error) {
	b := protocol.Backlog{Pending: info.Pending, Lag: info.Lag.N, LagKnown: info.Lag.Known}
	if !info.GroupExists {
		// Everything will be dispatched once there is a group.
		b.Lag, b.LagKnown, b.Oldest, b.OldestKnown = info.Length, true, info.First, true
		return b, nil
	}
	if info.Pending > 0 {
		sum, err := g.client.XPending(ctx, g.names.Stream, g.names.Group).Result()
		if err != nil {
			return b, failure("inspect the group", err)
		}
		if sum.Count > 0 {
			lowest, err := telemetry.ParseEntryID(sum.Lower)
			b.Oldest, b.OldestKnown = lowest, err == nil
			if !b.OldestKnown || lowest.Compare(info.Delivered) <= 0 {
				return b, nil
			}
		}
	}
	if !info.Delivered.Less(info.Last) {
		b.OldestKnown = true
		return b, nil
	}
	// What is pending lies beyond unqueued entries, if there are any.
	next, err := g.client.XRangeN(ctx, g.names.Stream, info.Delivered.Next().String(), "+", 1).Result()
	if err != nil {
		return b, failure("inspect the stream", err)
	}
	b.OldestKnown = true
	if len(next) > 0 {
		id, err := telemetry.ParseEntryID(next[0].ID)
		if b.OldestKnown = err == nil; b.Oldest.IsZero() || id.Less(b.Oldest) {
			b.Oldest = id
		}
	}
	return b, nil
}
