package tasks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

const fenceShards = 16

// platform is a database with a platform's own table of fences, zones, and the
// leader's task that reads it.
type platform struct {
	t     *testing.T
	url   string
	scope store.Scope
	sql   func(sql string, args ...any)
	count func(sql string) int
}

// openPool connects as a member does.
func openPool(t *testing.T, url, member string) *pgxpool.Pool {
	t.Helper()
	pool, err := store.Open(t.Context(), store.Config{
		URL: url, Member: member, MaxConns: 4, ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func newPlatform(t *testing.T) *platform {
	t.Helper()
	url := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	p := &platform{t: t, url: url, scope: store.Scope{Stream: "s", Group: "g"}}
	pool := openPool(t, url, "platform")
	p.sql = func(sql string, args ...any) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	p.count = func(sql string) (n int) {
		t.Helper()
		require.NoError(t, pool.QueryRow(t.Context(), sql).Scan(&n))
		return n
	}
	p.sql("create table public.zones (id text, title text, shape text)")
	p.zone("depot", 11)
	p.zone("yard", 21)
	return p
}

// zone makes a square in the platform's table, from a longitude to one degree
// to the east of it.
func (p *platform) zone(id string, x int) {
	p.t.Helper()
	p.sql("delete from public.zones where id = $1", id)
	p.sql("insert into public.zones values ($1, $1, $2)", id,
		fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%d,48],[%d,48],[%d,49],[%d,49],[%d,48]]]}`, x, x+1, x+1, x, x))
}

const (
	zonesQuery = "select id, title as name, shape as geometry from public.zones order by id"

	holding   = "select count(*) from processor.geofences where replaced_at is null"
	ever      = "select count(*) from processor.geofences"
	waiting   = "select count(*) from processor.requests where kind = 'recompute' and state = 'waiting'"
	incidents = "select count(*) from processor.incidents where kind = 'geofence_query' and closed_at is null"
)

// leads returns the task of a leading member.
type leads struct {
	*FenceSync
	t     *testing.T
	term  int64
	raise func() int64
	reg   *prometheus.Registry
}

func (p *platform) leads(member, query string, timeout time.Duration) *leads {
	p.t.Helper()
	pool := openPool(p.t, p.url, member)
	leader := store.NewLeader(pool, p.scope, member, time.Minute)
	l := &leads{t: p.t, reg: prometheus.NewRegistry(), raise: func() int64 {
		term, err := leader.BeginTerm(p.t.Context())
		require.NoError(p.t, err)
		return term
	}}
	l.term = l.raise()
	reconciler := store.NewFenceQuery(pool, store.NewFenceEditor(pool, p.scope, fenceShards, member), query, timeout)
	l.FenceSync = NewFenceSync(reconciler, store.NewLedger(pool, p.scope, member, time.Minute), 0, discard(), l.reg)
	return l
}

func (l *leads) do() error { return l.Do(l.t.Context(), l.term) }

// badRows returns the exported number of invalid rows.
func (l *leads) badRows() int {
	return int(l.metric("processor_coordination_fence_query_invalid_rows"))
}

func (l *leads) metric(name string) float64 {
	l.t.Helper()
	families, err := l.reg.Gather()
	require.NoError(l.t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	l.t.Fatalf("no metric %s", name)
	return 0
}

func TestTheLeaderBringsThePlatformsFencesIntoOurs(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	l := p.leads("one", zonesQuery, time.Minute)
	require.NoError(t, l.do())
	require.Equal(t, 2, p.count(holding))
	require.Equal(t, fenceShards, p.count(waiting), "what was derived without them is derived again, in every shard")
	require.Zero(t, p.count(incidents))

	// Unchanged rows change nothing.
	require.NoError(t, l.do())
	require.Equal(t, 2, p.count(ever))
	require.Equal(t, fenceShards, p.count(waiting))

	// A changed row is a new version, whose recompute joins the requests that wait.
	p.zone("yard", 22)
	require.NoError(t, l.do())
	require.Equal(t, 2, p.count(holding))
	require.Equal(t, 3, p.count(ever))
	require.Equal(t, fenceShards, p.count(waiting))
	require.Equal(t, 2, p.count("select version from processor.geofences where id = 'yard' and replaced_at is null and source = 'query'"))

	// A deleted row closes its fence.
	p.sql("delete from public.zones where id = 'depot'")
	require.NoError(t, l.do())
	require.Equal(t, 1, p.count(holding))
}

func TestAnInvalidRowIsReportedCountedAndSkipped(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	l := p.leads("one", zonesQuery, time.Minute)
	p.sql(`insert into public.zones values ('bow tie', '', '{"type":"Polygon","coordinates":[[[11,48],[12,49],[12,48],[11,49],[11,48]]]}')`)
	require.NoError(t, l.do())
	require.Equal(t, 2, p.count(holding), "the valid rows apply")
	require.Equal(t, 1, l.badRows())
	require.Equal(t, 1, p.count(incidents))
	require.Equal(t, 1, p.count(`select count(*) from processor.incidents where (detail->>'count')::int = 1 and detail->'rows'->>0 like 'row 1, fence bow tie: %'`))

	// An existing fence becomes invalid: it keeps its last version until fixed.
	p.sql("update public.zones set shape = 'POLYGON((0 0,1 1))' where id = 'yard'")
	p.sql("update public.zones set shape = null where id = 'bow tie'")
	p.zone("depot", 12)
	require.NoError(t, l.do())
	require.Equal(t, 2, p.count(holding))
	require.Equal(t, 1, p.count("select version from processor.geofences where id = 'yard' and replaced_at is null"))
	require.Equal(t, 2, p.count("select version from processor.geofences where id = 'depot' and replaced_at is null"))
	require.Equal(t, 2, l.badRows())
	require.Equal(t, 1, p.count(`select count(*) from processor.incidents where (detail->>'count')::int = 2 and closed_at is null`))

	// While an invalid row cannot be attributed to a fence, no fence is closed.
	p.sql("update public.zones set id = null where id = 'yard'")
	require.NoError(t, l.do())
	require.Equal(t, 1, p.count("select version from processor.geofences where id = 'yard' and replaced_at is null"))

	p.sql("delete from public.zones where id is null or id = 'bow tie'")
	require.NoError(t, l.do())
	require.Equal(t, 1, p.count(holding), "fixed: a fence that is gone there is gone here")
	require.Zero(t, p.count(incidents))
	require.Equal(t, 0, l.badRows())
}

func TestAQueryThatFailsOrTakesTooLongKeepsTheSet(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	require.NoError(t, p.leads("one", zonesQuery, time.Minute).do())
	for name, query := range map[string]string{
		"fails":          "select nonsense",
		"takes too long": "select id, shape as geometry, pg_sleep(60) from public.zones",
		"writes":         "delete from public.zones returning id, shape as geometry",
	} {
		l := p.leads("two", query, 300*time.Millisecond)
		require.ErrorContains(t, l.do(), "GEOFENCE_QUERY", name)
		require.InDelta(t, 1, l.metric("processor_coordination_fence_query_errors_total"), 0, name)
		require.Equal(t, 1, p.count(incidents), name)
		require.Equal(t, 2, p.count(holding), name)
		require.Equal(t, 2, p.count("select count(*) from public.zones"), name)
	}
	require.Equal(t, fenceShards, p.count(waiting))
	// The next leader, whose query succeeds, closes the incident.
	require.NoError(t, p.leads("three", zonesQuery, time.Minute).do())
	require.Zero(t, p.count(incidents))
	require.Equal(t, 2, p.count(ever))
}

func TestTwoLeadersOfThePlatformsFencesAreHarmless(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	one, two := p.leads("one", zonesQuery, time.Minute), p.leads("two", zonesQuery, time.Minute)
	err := one.do()
	failed, ok := errors.AsType[*protocol.Failure](err)
	require.True(t, ok, "an earlier term is refused, have %v", err)
	require.Equal(t, protocol.Fenced, failed.Kind)
	require.Zero(t, p.count(incidents))
	require.Zero(t, p.count(ever))

	// Both run concurrently and keep taking the term from each other.
	var both sync.WaitGroup
	for _, l := range []*leads{one, two} {
		both.Go(func() {
			for range 10 {
				l.term = l.raise()
				_ = l.do() // rejected or not
			}
		})
	}
	both.Wait()
	two.term = two.raise()
	require.NoError(t, two.do())
	require.Equal(t, 2, p.count(holding))
	require.Equal(t, 2, p.count(ever), "each version once")
	require.Equal(t, fenceShards, p.count(waiting), "and its recompute once")
}

// A fence that changes at every reading, faster than the owners derive anew: one
// request a shard waits for all changes, and once it stops nothing is left to do.
func TestAFenceThatChangesAllTheTimeConverges(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	l := p.leads("one", zonesQuery, time.Minute)
	const (
		rounds = 20
		open   = "select count(*) from processor.requests where state in ('waiting', 'running')"
		first  = " where id = (select min(id) from processor.requests where state = "
	)
	require.NoError(t, l.do())
	for i := range rounds {
		p.zone("yard", 22+i%5)
		require.NoError(t, l.do())
		require.Equal(t, fenceShards, p.count(waiting), "round %d", i)
		p.sql("update processor.requests set state = 'done', finished_at = now()" + first + "'running')")
		p.sql("update processor.requests set state = 'running'" + first + "'waiting')")
	}
	require.Equal(t, rounds+1, p.count("select count(*) from processor.geofences where id = 'yard'"))
	require.Equal(t, fenceShards+rounds-1, p.count("select count(*) from processor.requests"), "one for each that had begun")
	for range 2 {
		require.NoError(t, l.do())
		p.sql("update processor.requests set state = 'done', finished_at = now() where state in ('waiting', 'running')")
	}
	require.Zero(t, p.count(open))
	require.Equal(t, fenceShards+rounds-1, p.count("select count(*) from processor.requests"))
}
