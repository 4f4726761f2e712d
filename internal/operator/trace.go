package operator

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/store"
	streamadmin "github.com/trmtracking/processor/internal/stream/admin"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Trace is where the last entries of a device are.
type Trace struct {
	Device     string        `json:"device"`
	Shard      int           `json:"shard"`
	Shards     int           `json:"shards"`
	Owner      *string       `json:"owner"` // null while the shard has no owner
	Epoch      int64         `json:"epoch"`
	Assigned   *string       `json:"assigned"`
	Stream     string        `json:"stream"`
	Exists     bool          `json:"stream_exists"`
	Applied    *string       `json:"applied"`     // progress mark of the shard, a hint
	LastStored *time.Time    `json:"last_stored"` // newest device time in positions
	Entries    []TracedEntry `json:"entries"`     // newest first
	Complete   bool          `json:"complete"`    // the search reached the stream's beginning
	Losses     []Loss        `json:"losses"`      // of its shard, and those of unknown shard
}

// TracedEntry is one entry of the stream.
type TracedEntry struct {
	ID     string     `json:"id"`
	Added  time.Time  `json:"added"`
	Time   *time.Time `json:"time"` // device time; null if it does not decode
	State  string     `json:"state"`
	Detail string     `json:"detail"`
}

// Trace finds the last entries of a device among the newest of the stream. It
// needs both servers.
func (f *Fleet) Trace(ctx context.Context, device string, last int) (tr Trace, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*askTimeout)
	defer cancel()
	if f, err = f.home(ctx, device); err != nil {
		return tr, err
	}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return tr, err
	}
	shards := cmp.Or(pinned.Shards, f.cfg.Coordination.Shards)
	group, err := f.redis(ctx, shards)
	if err != nil {
		return tr, err
	}
	info, err := group.Info(ctx)
	if err != nil {
		return tr, err
	}
	// The stream first: entries that are committed after that are found in the tables.
	found, reached, err := streamadmin.New(f.client, group).Trace(ctx, device, last)
	if err != nil {
		return tr, err
	}
	sought, problems := make([]store.TraceQuery, len(found)), make([]error, len(found))
	for i, s := range found {
		var r telemetry.Record
		problems[i] = f.decoder.Decode(&s.Entry, &r)
		sought[i] = store.TraceQuery{ID: s.ID, TimeUS: r.TimeUS, Known: problems[i] == nil}
	}
	tr = Trace{
		Device: device, Shard: telemetry.ShardOf(device, shards), Shards: shards, Stream: f.scope.Stream, Exists: info.Exists,
		Entries: []TracedEntry{}, Complete: reached.IsZero(),
	}
	rows, err := store.TraceDevice(ctx, f.pool, f.scope, device, tr.Shard, sought)
	if err != nil {
		return tr, err
	}
	losses, _, err := f.ledger().Recent(ctx, recentTime, recentRows)
	if err != nil {
		return tr, err
	}
	for _, l := range losses {
		if l.Shard == nil || *l.Shard == tr.Shard {
			tr.Losses = append(tr.Losses, Loss(l))
		}
	}
	tr.Owner, tr.Assigned, tr.Applied = orNull(rows.Owner), orNull(rows.Assigned), orNull(rows.Applied)
	tr.Epoch, tr.LastStored = rows.Epoch, rows.Last
	for i, s := range found {
		e := TracedEntry{ID: s.ID.String(), Added: s.ID.Time()}
		if sought[i].Known {
			t := time.UnixMicro(sought[i].TimeUS).UTC()
			e.Time = &t
		}
		e.State, e.Detail = whereIs(&found[i], problems[i], &rows)
		tr.Entries = append(tr.Entries, e)
	}
	return tr, nil
}

// whereIs returns the state of an entry. Certain states are tested first.
func whereIs(s *streamadmin.TracedEntry, problem error, rows *store.Trace) (state, detail string) {
	later, deferred := rows.Deferred[s.ID]
	archived, deadLetter := rows.Letters[s.ID]
	cause, lost := rows.Lost[s.ID]
	differs, conflict := rows.Conflict[s.ID]
	switch {
	case !s.Dispatched:
		return "in the stream", "not dispatched yet"
	case conflict:
		return "conflict", "another record has its device and time; it differs in " + strings.Join(differs, ", ")
	case s.Pending && rows.Stored[s.ID]:
		return "stored", "not acknowledged yet, or redelivered to the queue of " + s.On
	case s.Pending:
		return "pending", "on the queue of " + s.On
	case s.DLQEntry != "":
		return "dead letter", s.DLQEntry
	case deferred:
		return "deferred", fmt.Sprintf("%s, attempt %d, retry at %s: %s", later.Class, later.Attempts, later.Next.UTC().Format(time.RFC3339), later.Error)
	case rows.Stored[s.ID]:
		return "stored", ""
	case deadLetter:
		return "dead letter", "archived, " + archived
	case lost:
		return "lost", cause
	case s.Unqueued:
		return "pending", "in flight in the instance that dispatches, or done there a moment ago"
	case problem != nil:
		return "done, no row", problem.Error()
	}
	return "done, no row", ""
}
