package store_test

import (
	"cmp"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

func TestADatabaseHasManyStreamsAndEachOneGroup(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	establish := func(scope store.Scope) (bool, error) {
		return store.NewIdentity().Establish(t.Context(), b.pool, scope, "a.1", time.Minute)
	}
	for _, stream := range []string{"one", "two"} {
		created, err := establish(store.Scope{Stream: stream, Group: "g"})
		require.NoError(t, err)
		require.Equal(t, stream == "one", created, "a stream that is new may be in a database of another fleet")
		_, err = establish(store.Scope{Stream: stream, Group: "other"})
		require.ErrorContains(t, err, "stream "+stream+" is processed by group g, and this instance is of group other")
	}
	fresh, own := newBench(t), store.NewIdentity()
	for _, stream := range []string{"one", "two"} {
		created, err := own.Establish(t.Context(), fresh.pool, store.Scope{Stream: stream, Group: "g"}, "a.1", time.Minute)
		require.NoError(t, err)
		require.True(t, created, "the process that made the identity knows it for all of its streams")
	}
	// Rows from before the setting: the bench has shards of scope.
	_, err := establish(store.Scope{Stream: scope.Stream, Group: "other"})
	require.ErrorContains(t, err, "is processed by group "+scope.Group)
}

// A device that comes from another stream than before has moved; one that then comes
// from the first again comes from both.
func TestADeviceInTwoStreamsIsAnIncidentThatNamesBothAndOneThatMovesIsNot(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	second := store.Scope{Stream: "a-second-stream", Group: scope.Group}
	require.NoError(t, store.NewShards(b.pool, second, 10*time.Second).Ensure(t.Context(), shards))
	const device = "device-1"
	shard := telemetry.ShardOf(device, shards)
	held := b.take("a.1", shard)
	b.exec("update processor.shards set owner = 'a.1', epoch = $2 where stream = $1", second.Stream, held[0].Epoch)
	minute := 0
	comes := func(from store.Scope) {
		minute++
		batch := b.batch(held, []telemetry.Record{{DeviceID: device, TimeUS: dayOf(0).Add(time.Duration(minute) * time.Minute).UnixMicro(), StreamUS: dayOf(0).UnixMicro(), Satellites: 9, Codec: "8", Attributes: []byte("{}")}})
		batch.Devices = []string{device}
		_, err := store.NewWriter(b.pool, from, "a.1", 10*time.Second).Write(t.Context(), batch)
		require.NoError(t, err)
	}
	const incidents = "select count(*) from processor.incidents where kind = 'device_in_two_streams' and closed_at is null"
	comes(scope)
	comes(second)
	require.Equal(t, 1, b.count("select count(*) from processor.device_moves where device_id = $1 and moved_to = $2 and moved_from = $3", device, second.Stream, scope.Stream))
	require.Zero(t, b.count(incidents), "it has moved")

	// Those that it left forget it; those that it came to derive it again, a minute later.
	leader := func(of store.Scope) (*store.Leader, int64) {
		l := store.NewLeader(b.pool, of, "a.1", 10*time.Second)
		term, err := l.BeginTerm(t.Context())
		require.NoError(t, err)
		return l, term
	}
	left, leftTerm := leader(scope)
	came, cameTerm := leader(second)
	pass := func() {
		for range 2 { // the same moves are not told twice
			require.NoError(t, left.Moved(t.Context(), leftTerm, shards))
			require.NoError(t, came.Moved(t.Context(), cameTerm, shards))
		}
	}
	requests := func(of store.Scope, kind string) int {
		return b.count("select count(*) from processor.requests where stream = $1 and kind = $2 and shard = $3", of.Stream, kind, shard)
	}
	pass()
	require.Equal(t, 1, requests(scope, protocol.RequestRehydrate))
	require.Zero(t, requests(second, protocol.RequestRecompute), "the first stream may have records of it in flight")
	b.exec("update processor.device_moves set moved_at = moved_at - interval '2 minutes'")
	pass()
	require.Equal(t, 1, requests(second, protocol.RequestRecompute))
	require.Equal(t, 1, requests(scope, protocol.RequestRehydrate))

	require.Zero(t, b.count(incidents), "it has moved")

	comes(scope)
	pass()
	require.Equal(t, 1, b.count(incidents+" and subject = $1 and detail #>> '{devices,0}' = $2", "a-second-stream and "+scope.Stream, device))
	comes(second)
	pass()
	require.Equal(t, 2, b.count(incidents), "each of the two has it")
	b.exec("update processor.device_moves set moved_at = moved_at - interval '2 days'")
	b.exec("update processor.incidents set opened_at = opened_at - interval '2 days'")
	pass()
	require.Zero(t, b.count(incidents), "for a day they had nothing in common")
}

// movers are the leaders of several streams, whose devices move.
type movers struct {
	b       *bench
	leaders map[string]*store.Leader
	terms   map[string]int64
}

func newMovers(t *testing.T, streams ...string) *movers {
	t.Helper()
	m := &movers{b: newBench(t), leaders: map[string]*store.Leader{}, terms: map[string]int64{}}
	for _, stream := range streams {
		of := store.Scope{Stream: stream, Group: scope.Group}
		require.NoError(t, store.NewShards(m.b.pool, of, 10*time.Second).Ensure(t.Context(), shards))
		m.leaders[stream] = store.NewLeader(m.b.pool, of, "a.1", 10*time.Second)
		term, err := m.leaders[stream].BeginTerm(t.Context())
		require.NoError(t, err)
		m.terms[stream] = term
	}
	return m
}

// pass is one pass of each leader.
func (m *movers) pass() {
	for stream, l := range m.leaders {
		require.NoError(m.b.tb, l.Moved(m.b.tb.Context(), m.terms[stream], shards))
	}
}

// come stores a first record of a device, from a stream.
func (m *movers) come(device, stream string) {
	m.b.exec("insert into processor.devices as d (device_id, stream) values ($1, $2) on conflict (device_id) do update set stream = excluded.stream", device, stream)
}

// settle has the moves so far lie behind the time in which the stream left ends its work.
func (m *movers) settle() {
	m.b.exec("update processor.device_moves set moved_at = moved_at - interval '2 minutes'")
}

func (m *movers) forgets(stream, device string) int {
	return m.b.count("select count(*) from processor.requests where stream = $1 and kind = 'rehydrate' and shard = $2", stream, telemetry.ShardOf(device, shards))
}

func TestAMoveIsFollowedHoweverLateItIsCommitted(t *testing.T) {
	t.Parallel()
	m := newMovers(t, "one", "two")
	m.come("late", "one")
	m.come("early", "one")
	require.NotEqual(t, telemetry.ShardOf("late", shards), telemetry.ShardOf("early", shards))
	tx, err := m.b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "update processor.devices set stream = 'two' where device_id = 'late'")
	require.NoError(t, err)
	m.come("early", "two")
	m.pass()
	m.b.exec("update processor.device_moves set moved_at = moved_at - interval '2 hours'")
	m.pass()
	require.Equal(t, 1, m.forgets("one", "early"))
	require.NoError(t, tx.Commit(t.Context()))
	m.b.exec("update processor.device_moves set moved_at = moved_at - interval '2 hours'")
	m.pass()
	require.Equal(t, 1, m.forgets("one", "late"))
	for _, device := range []string{"early", "late"} {
		require.Equal(t, 1, m.b.count("select count(*) from processor.requests where stream = 'two' and kind = 'recompute' and device_id = $1", device), device)
	}
	m.pass()
	require.Equal(t, 4, m.b.count("select count(*) from processor.requests"), "what was followed is not followed again")
}

// Devices move both ways, and both leaders follow them at the same time: each marks the
// moves away first, which are those that the other marks next.
func TestLeadersOfTwoStreamsFollowMovesBothWaysTogether(t *testing.T) {
	t.Parallel()
	m := newMovers(t, "one", "two")
	m.come("a", "one")
	m.come("b", "two")
	m.come("a", "two")
	m.come("b", "one")
	m.settle()
	m.b.exec(`
create function linger() returns trigger language plpgsql as 'begin perform pg_sleep(1); return null; end';
create trigger linger after update of forgotten on processor.device_moves for each statement execute function linger()`)
	var both errgroup.Group
	for stream, l := range m.leaders {
		both.Go(func() error { return l.Moved(t.Context(), m.terms[stream], shards) })
	}
	require.NoError(t, both.Wait())
	require.Equal(t, 2, m.b.count("select count(*) from processor.device_moves where forgotten and recomputed"))
}

// A device whose move to a stream was not followed before that was removed is derived again where it is given to.
func TestAMoveToAStreamThatIsRemovedIsFollowedWhereItsDevicesAreGiven(t *testing.T) {
	t.Parallel()
	m := newMovers(t, "one", "two", "three")
	m.come("a", "one")
	m.come("a", "two")
	given, err := store.NewStreams(m.b.pool, 10*time.Second).Give(t.Context(), store.Scope{Stream: "two", Group: scope.Group}, store.Scope{Stream: "three", Group: scope.Group})
	require.NoError(t, err)
	require.EqualValues(t, 1, given)
	m.b.exec("update processor.device_moves set moved_at = now() - case moved_to when 'two' then interval '2 hours' else interval '2 minutes' end")
	m.pass()
	require.Zero(t, m.forgets("two", "a"), "no owner of it has any state")
	require.Equal(t, 1, m.b.count("select count(*) from processor.requests where stream = 'three' and kind = 'recompute' and device_id = 'a' and from_ts < now() - interval '3 hours'+ interval '1 minute'"))
	require.Zero(t, m.b.count("select count(*) from processor.device_moves where not recomputed"))
}

// When a stream is given away with all of its devices, whole shards are derived again from the
// earliest window of any of them, instead of thousands of devices each by a request of its own.
func TestManyDevicesThatAreGivenAreDerivedAgainByTheShard(t *testing.T) {
	t.Parallel()
	m := newMovers(t, "one", "two")
	const crowded = 3
	m.come("alone", "one")
	require.NotEqual(t, crowded, telemetry.ShardOf("alone", shards))
	moved := 0
	for n := 0; moved < 80; n++ {
		if device := fmt.Sprintf("device-%d", n); telemetry.ShardOf(device, shards) == crowded {
			m.come(device, "one")
			moved++
		}
	}
	given, err := store.NewStreams(m.b.pool, 10*time.Second).Give(t.Context(), store.Scope{Stream: "one", Group: scope.Group}, store.Scope{Stream: "two", Group: scope.Group})
	require.NoError(t, err)
	require.EqualValues(t, moved+1, given)
	m.settle()
	m.b.exec("update processor.device_moves set moved_at = moved_at - interval '5 hours' where id = (select max(id) from processor.device_moves where device_id <> 'alone')")
	m.pass()
	const asked = "select count(*) from processor.requests where stream = 'two' and kind = 'recompute'"
	require.Equal(t, 2, m.b.count(asked))
	require.Equal(t, 1, m.b.count(asked+" and device_id = 'alone'"))
	require.Equal(t, 1, m.b.count(asked+" and device_id is null and shard = $1 and from_ts < now() - interval '6 hours'", crowded))
	require.Zero(t, m.b.count("select count(*) from processor.device_moves where not recomputed"))
	m.pass()
	require.Equal(t, 2, m.b.count(asked), "what was followed is not followed again")
}

// The leader of one stream removes no move that the other has yet to follow, until it is
// unlikely that it ever does; the audit keeps which.
func TestAMoveIsKeptUntilAStoppedStreamFollowsIt(t *testing.T) {
	t.Parallel()
	m := newMovers(t, "one", "two")
	const moves = "select count(*) from processor.device_moves"
	aged := func(days int) {
		m.b.exec("update processor.device_moves set moved_at = now() - $1 * interval '1 day'", days)
	}
	one := func() { require.NoError(t, m.leaders["one"].Moved(t.Context(), m.terms["one"], shards)) }
	m.come("a", "one")
	m.come("a", "two")
	aged(8)
	one()
	require.Equal(t, 1, m.b.count(moves+" where forgotten and not recomputed"), "the leader of two is stopped")
	m.pass()
	require.Equal(t, 1, m.b.count("select count(*) from processor.requests where stream = 'two' and kind = 'recompute' and device_id = 'a'"))
	m.pass()
	require.Zero(t, m.b.count(moves))
	const audit = "select count(*) from processor.audit where target = 'processor.device_moves'"
	require.Zero(t, m.b.count(audit))

	m.come("a", "one")
	m.come("a", "two")
	aged(91)
	one()
	require.Zero(t, m.b.count(moves))
	require.Equal(t, 1, m.b.count(audit+" and action = 'retention' and count = 2 and detail ->> 'not_followed_by' = 'two' and detail #>> '{devices,0}' = 'a'"))
}

// rowsOf is how many rows of a table a statement reads, as its plan counts them when run.
func (b *bench) rowsOf(table, sql string, args ...any) (rows int) {
	type node struct {
		Relation string  `json:"Relation Name"`
		Rows     float64 `json:"Actual Rows"`
		Filtered float64 `json:"Rows Removed by Filter"`
		Loops    float64 `json:"Actual Loops"`
		Plans    []node
	}
	var plans []struct{ Plan node }
	require.NoError(b.tb, b.pool.QueryRow(b.tb.Context(), "explain (analyze, format json) "+sql, args...).Scan(&plans))
	var add func(node)
	add = func(n node) {
		if n.Relation == table {
			rows += int((n.Rows + n.Filtered) * n.Loops)
		}
		for _, p := range n.Plans {
			add(p)
		}
	}
	add(plans[0].Plan)
	return rows
}

// A stream that is stopped follows no moves, and the leader of another does not read them
// with each pass for the 90 days that they are kept.
func TestALeaderReadsNoMovesThatAStoppedStreamHasYetToFollow(t *testing.T) {
	t.Parallel()
	m := newMovers(t, "one", "stopped")
	m.b.exec("insert into processor.devices (device_id, stream) select 'gone-' || n, 'stopped' from generate_series(1, 5000) as n")
	m.b.exec("insert into processor.devices (device_id, stream) select 'here-' || n, 'one' from generate_series(1, 20000) as n")
	m.b.exec(`
insert into processor.device_moves (device_id, moved_from, moved_to, moved_at, forgotten)
select 'gone-' || n, 'one', 'stopped', now() - interval '30 days', true
from generate_series(1, 5000) as n`)
	m.come("back", "stopped")
	m.come("back", "one")
	m.settle()
	m.b.exec("analyze processor.device_moves, processor.devices")
	rows := m.b.rowsOf("device_moves", store.ArrivedSQL, "one", 20_000, time.Minute, time.Hour, protocol.RequestRecompute)
	t.Logf("%d rows to find those that arrived", rows)
	require.Less(t, rows, 20)
	rows = m.b.rowsOf("device_moves", store.ExpireMovesSQL, 20_000, 7*24*time.Hour, 90*24*time.Hour, "test")
	t.Logf("%d rows to find those that are old", rows)
	require.Less(t, rows, 20)
	require.NoError(t, m.leaders["one"].Moved(t.Context(), m.terms["one"], shards))
	require.Equal(t, 1, m.b.count("select count(*) from processor.requests where kind = 'recompute'"))
	require.Equal(t, 5000, m.b.count("select count(*) from processor.device_moves where not recomputed"))
}

// The transaction of a move may have begun before that of the move before it, for whose
// end it waited.
func TestMovesOfADeviceAreFollowedInTheirOrder(t *testing.T) {
	t.Parallel()
	m := newMovers(t, "one", "two", "three")
	for _, stream := range []string{"one", "two", "three"} {
		m.come("a", stream)
	}
	m.b.exec("update processor.device_moves set moved_at = moved_at - interval '2 minutes' where moved_to = 'three'")
	m.pass()
	require.Zero(t, m.b.count("select count(*) from processor.requests where kind = 'recompute'"), "the first has not settled")
	m.settle()
	m.pass()
	require.Equal(t, 1, m.b.count("select count(*) from processor.requests where kind = 'recompute' and stream = 'three'"))
	require.Zero(t, m.b.count("select count(*) from processor.device_moves where not recomputed"))
}

func TestEveryStreamThatADevicePassedThroughForgetsIt(t *testing.T) {
	t.Parallel()
	m := newMovers(t, "one", "two", "three")
	const device = "device-1"
	for _, stream := range []string{"one", "two", "three"} {
		m.come(device, stream)
	}
	m.settle()
	m.pass()
	require.Equal(t, 1, m.forgets("one", device))
	require.Equal(t, 1, m.forgets("two", device))
	require.Zero(t, m.forgets("three", device))
	require.Equal(t, 1, m.b.count("select count(*) from processor.requests where kind = 'recompute'"), "it is derived once")
	require.Equal(t, 1, m.b.count("select count(*) from processor.requests where kind = 'recompute' and stream = 'three' and device_id = $1", device))

	// A record of the first one, which it left two moves ago.
	held := m.b.take("a.1", telemetry.ShardOf(device, shards))
	m.b.exec("update processor.shards set owner = 'a.1', epoch = $1 where stream = 'one'", held[0].Epoch)
	batch := m.b.batch(held, nil)
	batch.Devices = []string{device}
	_, err := store.NewWriter(m.b.pool, store.Scope{Stream: "one", Group: scope.Group}, "a.1", 10*time.Second).Write(t.Context(), batch)
	require.NoError(t, err)
	m.pass()
	require.Equal(t, 1, m.b.count("select count(*) from processor.incidents where kind = 'device_in_two_streams' and subject = 'one and three'"))
}

// A change of fences over all history may miss a device that moves in both streams.
func TestADeviceThatMovedDuringARecomputeIsDerivedAgainInItsWindow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		request string // finished, window
		whole   bool
		begins  string // where it is not whole
	}{
		"of all history, under way":                {request: "null, null, 'running'", whole: true},
		"of all history, ended behind the move":    {request: "now(), null, 'done'", whole: true},
		"of all history, ended before the move":    {request: "now() - interval '1 hour', null, 'done'", begins: "moved_at - interval '1 hour'"},
		"of a week":                                {request: "null, now() - interval '7 days', 'waiting'", begins: "now() - interval '7 days'"},
		"of all history, withdrawn by an operator": {request: "now(), null, 'cancelled'", begins: "moved_at - interval '1 hour'"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMovers(t, "one", "two")
			const device = "device-1"
			m.come(device, "one")
			m.come(device, "two")
			m.settle()
			m.b.exec(`insert into processor.requests (stream, group_name, kind, shard, requested_by, finished_at, from_ts, state)
values ('one', 'g', 'recompute', 0, 'test', ` + c.request + `)`)
			m.pass()
			require.Equal(t, 1, m.b.count(`
select count(*)
from processor.requests r
join processor.device_moves m using (device_id)
where r.stream = 'two'
  and r.kind = 'recompute'
  and case when $1 then from_ts is null else abs(extract(epoch from from_ts - (`+cmp.Or(c.begins, "now()")+`))) < 60 end`, c.whole))
		})
	}
}

// A request about a device ends with the owner that its stream has now, and one of a
// whole shard leaves out what has moved while it was under way.
func TestARequestFollowsItsDeviceToAnotherStream(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	second := store.Scope{Stream: "a-second-stream", Group: scope.Group}
	require.NoError(t, store.NewShards(b.pool, second, 10*time.Second).Ensure(t.Context(), 2*shards))
	const device = "device-1"
	held := b.take("a.1", telemetry.ShardOf(device, shards))
	b.fences = protocolFences(t)
	b.exec("insert into processor.devices (device_id, stream) values ($1, $2)", device, second.Stream)
	for _, kind := range []string{protocol.RequestRecompute, protocol.RequestErase} {
		b.exec("insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by) values ($1, $2, $3, $4, $5, 'test')",
			scope.Stream, scope.Group, kind, held[0].Shard, device)
		requests := store.NewRequests(store.NewWriter(b.pool, scope, "a.1", 10*time.Second))
		list, err := requests.Waiting(t.Context(), []int{held[0].Shard})
		require.NoError(t, err)
		require.Len(t, list, 1)
		_, done, err := requests.Step(t.Context(), protocol.RequestStep{Request: list[0], Lease: held[0], Shards: shards, Rules: b.batch(nil, nil).Rules})
		require.NoError(t, err)
		require.True(t, done, "there is nothing left to do for this owner")
		require.Equal(t, 1, b.count("select count(*) from processor.requests where stream = $1 and shard = $2 and kind = $3 and state = 'waiting'",
			second.Stream, telemetry.ShardOf(device, 2*shards), kind))
	}
	require.Equal(t, 1, b.count("select count(*) from processor.devices where device_id = $1", device), "nothing was erased by another's owner")
}

// Each stream's leader reads all requests of other services, one earlier than another, and
// one of a stream that is not served none.
func TestP5ARequestOfAnotherServiceIsRecordedByTheFirstLeaderThatReadsIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	second := store.Scope{Stream: "a-second-stream", Group: "another-group"}
	require.NoError(t, store.NewShards(b.pool, second, 10*time.Second).Ensure(t.Context(), 2*shards))
	const device = "device-1"
	list := []protocol.Window{{DeviceID: device, Shard: 1, Source: "s|1"}, {DeviceID: "unknown", Shard: 2, Source: "s|2"}}
	read := func(scope store.Scope, shards int) {
		leader := store.NewLeader(b.pool, scope, "a.1", 10*time.Second)
		term, err := leader.BeginTerm(t.Context())
		require.NoError(t, err)
		require.NoError(t, leader.Recompute(t.Context(), term, shards, list))
	}
	b.exec("insert into processor.devices (device_id, stream) values ($1, $2)", device, scope.Stream)
	read(second, 2*shards)
	var at store.Scope
	var shard int
	require.NoError(t, b.pool.QueryRow(t.Context(), "select stream, group_name, shard from processor.requests where device_id = $1", device).
		Scan(&at.Stream, &at.Group, &shard))
	require.Equal(t, scope, at, "it waits for nothing of the stream that read it")
	require.Equal(t, telemetry.ShardOf(device, shards), shard)
	b.exec("update processor.devices set stream = $2 where device_id = $1", device, second.Stream)
	read(scope, shards)
	const ofDevice = "select count(*) from processor.requests where device_id = $1 and kind = 'recompute'"
	require.Equal(t, 1, b.count(ofDevice, device), "the owner of its shard passes it on")
	read(second, 2*shards) // again, as where it was not acknowledged
	require.Equal(t, 1, b.count(ofDevice, device))
	require.Equal(t, 1, b.count(ofDevice, "unknown"))
	require.Equal(t, 2, b.count("select count(*) from processor.audit where who = 'recompute:requests'"))
	b.exec("update processor.requests set source_key = $1 || '|' || $2 || '|' || source_key", scope.Stream, scope.Group)
	read(second, 2*shards)
	require.Equal(t, 1, b.count(ofDevice, device), "an earlier version recorded it")
}
