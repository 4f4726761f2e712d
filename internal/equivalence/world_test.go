package equivalence_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/pipeline"
)

// world is one stream with everything that was ever sent to it, and the
// instances at work on it.
type world struct {
	*bench
	opts    []option
	rules   telemetry.Eligibility
	gap     time.Duration
	log     bytes.Buffer
	sent    *fleet.LogWriter
	editor  *store.FenceEditor
	group   *stream.Group
	faulty  map[faultyRow]bool
	members []*member
	owner   [shards]*member
	started int
	feed    *observer.Feed // of crossings, read all along
	left    [shards][]byte // what was left of each shard last
	spoil   spoil          // of what is left, while shards are moved

	lastID    telemetry.EntryID // published
	droppedUS int64             // of positions; 0 for none
	droppedAt telemetry.EntryID // the first entry after that
}

type faultyRow struct {
	device string
	us     int64
}

// member is an instance that can be made to crash.
type member struct {
	*instance
	fuse *fuse
	dead bool
}

// fuse ends an instance at one of its commits: nothing that follows is
// committed or acknowledged, as if it had been killed there. Only the server
// knows whether that commit was made.
type fuse struct {
	pipeline.Sink
	left   atomic.Int64 // commits until it burns; negative is never
	before bool         // of that commit, it dies before it was sent
	burnt  atomic.Bool
}

var errKilled = &protocol.Failure{Kind: protocol.Misconfigured, Err: errors.New("killed by the test")}

func (f *fuse) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	if f.burnt.Load() {
		return protocol.CommitResult{}, errKilled
	}
	if f.left.Load() < 0 || f.left.Add(-1) > 0 {
		return f.Sink.Write(ctx, b)
	}
	f.burnt.Store(true)
	if !f.before {
		_, _ = f.Sink.Write(ctx, b)
	}
	return protocol.CommitResult{}, errKilled
}

// newWorld makes a world on the servers of b, with a stream of its own. What an
// earlier one left in the database is removed.
func newWorld(tb testing.TB, b *bench, stream0 string, opts ...option) *world {
	tb.Helper()
	w := &world{
		opts: opts, rules: telemetry.Eligibility{MaxFutureSkew: 5 * time.Minute, MinSatellites: 1}, gap: 10 * time.Minute, faulty: make(map[faultyRow]bool),
	}
	copied := *b
	w.bench = &copied
	w.TB, w.Stream = tb, stream0
	w.editor = store.NewFenceEditor(b.Pool, w.Scope(), shards, "test")
	for _, sql := range []string{
		"truncate public.positions", "truncate processor.timing_records, processor.timing_changes", "delete from processor.requests",
		"delete from processor.geofences", "truncate processor.devices, processor.device_scans",
	} {
		_, err := b.Pool.Exec(context.Background(), sql)
		require.NoError(tb, err)
	}
	w.feed = observer.NewFeed(b.Pool)
	require.NoError(tb, w.feed.Read(context.Background()))
	var err error
	w.sent, err = fleet.NewLogWriter(&w.log)
	require.NoError(tb, err)
	w.group, err = stream.NewGroup(b.Client, stream.Config{Stream: w.Stream, Group: w.bench.Group, Shards: shards})
	require.NoError(tb, err)
	return w
}

// join starts an instance. It crashes at the given commit; 0 means never.
func (w *world) join(crashAt int64, before bool) *member {
	w.started++
	m := &member{fuse: &fuse{before: before}}
	m.fuse.left.Store(-1)
	if crashAt > 0 {
		m.fuse.left.Store(crashAt)
	}
	opts := append([]option{func(c *pipeline.Config, d *pipeline.Deps) {
		c.Eligibility, c.MaxCrossingGap = w.rules, w.gap
		c.DispatchBlock = 20 * time.Millisecond
		m.fuse.Sink = d.Sink
		d.Sink = m.fuse
	}}, w.opts...)
	m.instance = w.Start(fmt.Sprintf("m%d", w.started), opts...)
	w.members = append(w.members, m)
	return m
}

// begin imports fences and has one instance own all shards. It returns once what the import has
// recomputed is done, which would correct what is wrong.
func (w *world) begin(fences ...geofence.Fence) *member {
	_, err := w.editor.Import(w.TB.Context(), fences, "import", true)
	require.NoError(w.TB, err)
	m := w.join(0, false)
	w.keepOwned()
	require.NoError(w.TB, w.quiet(20*time.Second))
	return m
}

// sendPages publishes messages so many at once, 0 for all, and judges after each page; with
// restart an instance that knows nothing goes on with the next.
func (w *world) sendPages(messages []fleet.Message, page int, restart bool) {
	if page == 0 {
		page = len(messages)
	}
	for some := range slices.Chunk(messages, page) {
		w.publish(some)
		require.NoError(w.TB, w.quiet(20*time.Second))
		require.NoError(w.TB, w.judge())
		if restart {
			w.restart()
		}
	}
}

// take moves a shard to an instance from its current owner, if any.
func (w *world) take(shard int, m *member) {
	ctx := context.Background()
	_, err := w.Pool.Exec(ctx, "update processor.assignments set member = $1 where stream = $2 and shard = $3", m.instance.Member, w.Stream, shard)
	require.NoError(w.TB, err)
	taken, err := m.Shards.Acquire(ctx, shard, m.instance.Member, "")
	require.NoError(w.TB, err)
	require.NoError(w.TB, m.Grant(protocol.ShardLease{Shard: shard, Epoch: taken.Epoch, Left: w.inherited(taken)}))
	w.owner[shard] = m
}

// inherited is what the new owner of a shard is told that its last one left.
func (w *world) inherited(taken protocol.Shard) []byte {
	left := slices.Clone(taken.Left)
	switch w.spoil {
	case stale:
		left = w.left[taken.Shard]
	case foreign:
		left = w.left[(taken.Shard+1)%shards]
	case cut:
		left = left[:len(left)/2]
	case corrupted:
		if len(left) > 0 {
			left[len(left)*2/3] ^= 4
		}
	default:
	}
	if taken.Left != nil {
		w.left[taken.Shard] = taken.Left
	}
	return left
}

// release has the owner of a shard finish and give it up.
func (w *world) release(shard int) {
	m := w.owner[shard]
	if m == nil || m.gone() {
		return
	}
	epoch, applied, held := m.Owned(shard)
	if !held {
		return
	}
	select {
	case <-m.Stop(shard):
	case <-time.After(5 * time.Second):
	}
	left := m.Leave(shard)
	m.Drop(shard)
	_ = m.Shards.Release(context.Background(), protocol.ShardLease{Shard: shard, Epoch: epoch, Left: left}, m.instance.Member, applied)
}

// gone reports whether an instance has crashed or was stopped, and settles it.
func (m *member) gone() bool {
	if !m.dead && m.fuse.burnt.Load() {
		m.end()
	}
	return m.dead
}

func (m *member) end() {
	m.End()
	m.dead = true
}

// kill ends an instance without a release; what it has in flight is given up.
func (m *member) kill() {
	m.fuse.burnt.Store(true)
	m.end()
}

// publish appends messages and notes them in the send log.
func (w *world) publish(messages []fleet.Message) {
	entries := make([][]string, len(messages))
	for i := range messages {
		entries[i] = fleet.EntryFields(&messages[i])
	}
	for i, id := range w.bench.Publish(entries...) {
		w.lastID = id
		require.NoError(w.TB, w.sent.Append(&fleet.Sent{ID: id, Message: messages[i], Class: fleet.ClassOf(&messages[i])}))
	}
}

// keepOwned makes up for what the owner's side of coordination does: shards
// whose owner has crashed or gave them up are taken by a living one.
func (w *world) keepOwned() {
	var alive []*member
	for _, m := range w.members {
		if !m.gone() {
			alive = append(alive, m)
		}
	}
	if len(alive) == 0 {
		alive = append(alive, w.join(0, false))
	}
	for s := range shards {
		m := w.owner[s]
		if m != nil && !m.dead {
			if _, _, held := m.Owned(s); held {
				continue
			}
		}
		if m == nil || m.dead {
			m = alive[s%len(alive)]
		}
		w.take(s, m)
	}
}

// quiet waits until nothing is left to do, as long as some of it is done
// within the given time: how fast the machine is says nothing.
func (w *world) quiet(within time.Duration) error {
	ctx := context.Background()
	deadline := time.Now().Add(within)
	var last string
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		w.keepOwned()
		if n%8 == 0 { // some transactions are under way
			if err := w.feed.Read(ctx); err != nil {
				return err
			}
		}
		for _, m := range w.members {
			if !m.dead {
				if n%8 == 0 { // each is a query
					m.RequestsChanged()
				}
				m.NotifyDispatchLease()
				m.Notify(nil)
			}
		}
		info, err := w.group.Info(ctx)
		require.NoError(w.TB, err)
		done := info.GroupExists && info.Lag.Known && info.Lag.N == 0 && info.Pending == 0 || w.sent.Len() == 0
		open := -1
		if done {
			open = w.Count("select count(*) from processor.requests where state in ('waiting', 'running')")
			if open == 0 {
				return nil
			}
		}
		var steps int
		if done { // requests are what is left
			steps = w.Count("select coalesce(sum((progress->>'fixes')::bigint), 0) from processor.requests where state = 'running'")
		}
		if now := fmt.Sprintf("%+v, %d requests open, %d positions of them done", info, open, steps); now != last {
			deadline, last = time.Now().Add(within), now
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("nothing done for %s: %s", within, last)
		}
		<-tick.C
	}
}

// verdict compares the tables with what the oracle says must be there.
func (w *world) verdict() (*oracle.Report, error) {
	ctx := context.Background()
	if err := w.sent.Flush(); err != nil {
		return nil, err
	}
	o, err := oracle.New(fleet.NewLog(bytes.NewReader(w.log.Bytes()), int64(w.log.Len())))
	if err != nil {
		return nil, err
	}
	fences, err := observer.Fences(ctx, w.Pool)
	if err != nil {
		return nil, err
	}
	report, err := o.Judge(oracle.Observed{
		Positions: observer.Positions(ctx, w.Pool),
		Crossings: observer.Timings(ctx, w.Pool),
		DroppedUS: w.droppedUS, DroppedAt: oracle.ID(w.droppedAt),
		Rules: oracle.Rules{
			Fences: fences,
			Limits: oracle.Limits{MaxFutureSkew: w.rules.MaxFutureSkew, MaxPast: w.rules.MaxPast, MinSatellites: w.rules.MinSatellites, MaxSpeed: w.rules.MaxSpeed, MaxCrossingGap: w.gap},
			Faulty: func(device string, us int64) bool { return w.faulty[faultyRow{device, us}] },
		},
	})
	if err != nil {
		return nil, err
	}
	if n := w.Count("select count(*) from processor.requests where state <> 'done'"); n > 0 {
		return report, fmt.Errorf("%d requests did not succeed", n)
	}
	return report, w.feed.Finish(ctx)
}

// judge is nil when the tables are as they must be.
func (w *world) judge() error {
	report, err := w.verdict()
	if err != nil {
		return err
	}
	if !report.Good() {
		return fmt.Errorf("tables differ from what was sent: %+v %v", report.Account, report.Examples)
	}
	return nil
}

func (w *world) end() {
	for _, m := range w.members {
		if !m.dead {
			m.end()
		}
	}
}
