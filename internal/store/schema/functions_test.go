package schema_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store/schema"
)

const insertShards = `
insert into processor.shards (stream, group_name, shard, owner, epoch)
select 's', 'g', n, 'm-1', 7
from generate_series(0, 63) n`

func code(t *testing.T, err error) (string, string) {
	t.Helper()
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg, "%v", err)
	return pg.Code, pg.Detail
}

func TestFenceRejectsShardsThatAreNotOwnedAndNamesThem(t *testing.T) {
	url := emptyDatabase(t)
	migrate(t, url)
	conn := connect(t, url)
	execute(t, conn, insertShards)
	execute(t, conn, `update processor.shards set owner = 'm-2', epoch = 8 where shard = 5`)
	execute(t, conn, `update processor.shards set owner = null where shard = 6`)

	const fence = `select processor.fence($1, $2, $3, $4, $5)`
	tests := []struct {
		name       string
		stream     string
		shards     []int32
		epochs     []int64
		owner      any
		wantDetail string // empty: passes
	}{
		{name: "held", stream: "s", shards: []int32{63, 0, 31}, epochs: []int64{7, 7, 7}, owner: "m-1"},
		{name: "nothing to check", stream: "s", shards: []int32{}, epochs: []int64{}, owner: "m-1"},
		{
			name: "another owner", stream: "s", shards: []int32{4, 5}, epochs: []int64{7, 7}, owner: "m-1",
			wantDetail: "shard 5: epoch 7 was expected, it is 8, owner m-2",
		},
		{
			name: "older epoch of the same owner", stream: "s", shards: []int32{5}, epochs: []int64{7}, owner: "m-2",
			wantDetail: "shard 5: epoch 7 was expected, it is 8, owner m-2",
		},
		{
			name: "released", stream: "s", shards: []int32{6}, epochs: []int64{7}, owner: "m-1",
			wantDetail: "shard 6: epoch 7 was expected, it is 7, owner none",
		},
		{
			name: "nobody holds nothing", stream: "s", shards: []int32{6}, epochs: []int64{7}, owner: nil,
			wantDetail: "shard 6: epoch 7 was expected, it is 7, owner none",
		},
		{
			name: "no such row", stream: "s", shards: []int32{0, 64}, epochs: []int64{7, 7}, owner: "m-1",
			wantDetail: "shard 64: epoch 7 was expected, it is missing, owner none",
		},
		{
			name: "another stream", stream: "other", shards: []int32{0}, epochs: []int64{7}, owner: "m-1",
			wantDetail: "shard 0: epoch 7 was expected, it is missing, owner none",
		},
		{
			name: "fewer epochs than shards", stream: "s", shards: []int32{0, 1}, epochs: []int64{7}, owner: "m-1",
			wantDetail: "shard 1: epoch unknown was expected, it is 7, owner m-1",
		},
		{
			name: "several at once, in shard order", stream: "s", shards: []int32{6, 5}, epochs: []int64{7, 7}, owner: "m-1",
			wantDetail: "shard 5: epoch 7 was expected, it is 8, owner m-2; shard 6: epoch 7 was expected, it is 7, owner none",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := conn.Exec(t.Context(), fence, tt.stream, "g", tt.shards, tt.epochs, tt.owner)
			if tt.wantDetail == "" {
				require.NoError(t, err)
				return
			}
			got, detail := code(t, err)
			require.Equal(t, "PF001", got)
			require.Equal(t, tt.wantDetail, detail)
		})
	}
	_, err := conn.Exec(t.Context(), fence, "s", "g", nil, nil, "m-1")
	got, _ := code(t, err)
	require.Equal(t, "PF001", got)
}

func TestFenceBlocksATakeoverAndSeesOneThatWasFirst(t *testing.T) {
	url := emptyDatabase(t)
	migrate(t, url)
	old, other, next := connect(t, url), connect(t, url), connect(t, url)
	execute(t, old, insertShards)
	const (
		fence    = `select processor.fence('s', 'g', array[3, 1], array[7, 7]::bigint[], 'm-1')`
		takeover = `update processor.shards set epoch = epoch + 1, owner = 'm-2' where shard = 3`
	)

	execute(t, old, `begin; `+fence)
	execute(t, other, `set lock_timeout = '200ms'; begin; `+fence+`; rollback`)
	execute(t, next, `set lock_timeout = '200ms'`)
	_, err := next.Exec(t.Context(), takeover)
	got, _ := code(t, err)
	require.Equal(t, "55P03", got, "a takeover passed a fenced commit")
	execute(t, old, `commit`)

	execute(t, next, `begin; `+takeover)
	refused := make(chan error, 1)
	go func() {
		_, err := old.Exec(context.WithoutCancel(t.Context()), `begin; `+fence)
		refused <- err
	}()
	require.Eventually(t, func() bool {
		var waiting bool
		err := other.QueryRow(t.Context(),
			`select wait_event_type = 'Lock' from pg_stat_activity where pid = $1`, old.PgConn().PID()).Scan(&waiting)
		return err == nil && waiting
	}, 10*time.Second, 10*time.Millisecond, "the commit did not wait for the takeover")
	execute(t, next, `commit`)
	got, detail := code(t, <-refused)
	require.Equal(t, "PF001", got)
	require.Equal(t, "shard 3: epoch 7 was expected, it is 8, owner m-2", detail)
}

func TestOldTermIsRefused(t *testing.T) {
	url := emptyDatabase(t)
	migrate(t, url)
	conn := connect(t, url)
	execute(t, conn, `insert into processor.leader (stream, group_name, term, member) values ('s', 'g', 4, 'm-1')`)
	const check = `select processor.check_term($1, 'g', $2, $3)`
	execute(t, conn, check, "s", 4, "m-1")
	for _, args := range [][]any{{"s", 3, "m-1"}, {"s", 4, "m-2"}, {"other", 4, "m-1"}, {"s", nil, nil}} {
		_, err := conn.Exec(t.Context(), check, args...)
		got, _ := code(t, err)
		require.Equal(t, "PF002", got, "%v", args)
	}
}

func TestGeofenceVersionsDoNotOverlapAndAreAnnounced(t *testing.T) {
	url := emptyDatabase(t)
	migrate(t, url)
	conn, listener := connect(t, url), connect(t, url)
	execute(t, listener, `listen processor_geofences`)
	const insert = `
insert into processor.geofences (id, version, name, kind, geometry, radius_m, valid_from, valid_to)
values ($1, $2, 'a fence', 'circle', '{"type": "Point", "coordinates": [1, 2]}', 50, $3::timestamptz, $4::timestamptz)`

	execute(t, conn, insert, "a", 1, nil, "2026-01-01")
	execute(t, conn, insert, "a", 2, "2026-01-01", nil)
	execute(t, conn, insert, "b", 1, nil, nil)
	for want := 1; want <= 3; want++ {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		n, err := listener.WaitForNotification(ctx)
		cancel()
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(want), n.Payload)
	}

	_, err := conn.Exec(t.Context(), insert, "a", 3, "2025-12-31", "2026-06-01")
	got, _ := code(t, err)
	require.Equal(t, "23P01", got)
	require.ErrorContains(t, err, "geofence a: versions")

	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), insert, "a", 3, "2026-03-01", nil)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `update processor.geofences set valid_to = '2026-03-01' where id = 'a' and version = 2`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()), "closing the earlier version in the same transaction makes room")

	tx, err = conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `update processor.geofences set replaced_at = now() where id = 'b'`)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), insert, "b", 2, nil, nil)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()), "a replaced version holds no longer")
}

func TestTwoTransactionsCannotAddOverlappingGeofenceVersions(t *testing.T) {
	url := emptyDatabase(t)
	migrate(t, url)
	first, second := connect(t, url), connect(t, url)
	const insert = `
insert into processor.geofences (id, version, name, kind, geometry)
values ('a', %d, 'a gate', 'gate', '{"type": "LineString", "coordinates": [[1, 2], [1, 3]]}')`
	execute(t, first, `begin; `+fmt.Sprintf(insert, 1))
	refused := make(chan error, 1)
	go func() {
		_, err := second.Exec(context.WithoutCancel(t.Context()), `begin; `+fmt.Sprintf(insert, 2)+`; commit`)
		refused <- err
	}()
	watcher := connect(t, url)
	require.Eventually(t, func() bool {
		var waiting bool
		err := watcher.QueryRow(t.Context(),
			`select wait_event_type = 'Lock' from pg_stat_activity where pid = $1`, second.PgConn().PID()).Scan(&waiting)
		return err == nil && waiting
	}, 10*time.Second, 10*time.Millisecond, "the second transaction did not wait for the first")
	execute(t, first, `commit`)
	got, _ := code(t, <-refused)
	require.Equal(t, "23P01", got)
}

// BenchmarkFence times the check that ends every commit, for 32 shards, on a
// quiet database and when an open snapshot keeps all old progress marks alive.
func BenchmarkFence(b *testing.B) {
	ctx := b.Context()
	url := emptyDatabase(b)
	_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
	require.NoError(b, err)
	conn, err := pgx.Connect(ctx, url)
	require.NoError(b, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(ctx, insertShards)
	require.NoError(b, err)
	_, err = conn.Exec(ctx, `
insert into processor.progress (stream, group_name, shard, applied_id)
select stream, group_name, shard, '0-0' from processor.shards`)
	require.NoError(b, err)

	measure := func(b *testing.B) {
		b.Helper()
		shards, epochs := make([]int32, 32), make([]int64, 32)
		for i := range shards {
			shards[i], epochs[i] = int32(2*i), 7
		}
		times := make([]time.Duration, 0, b.N)
		for b.Loop() {
			tx, err := conn.Begin(ctx)
			require.NoError(b, err)
			begin := time.Now()
			_, err = tx.Exec(ctx, `select processor.fence('s', 'g', $1, $2, 'm-1')`, shards, epochs)
			times = append(times, time.Since(begin))
			require.NoError(b, err)
			require.NoError(b, tx.Commit(ctx))
		}
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "median-ms")
	}
	b.Run("quiet", measure)

	snapshot, err := pgx.Connect(ctx, url)
	require.NoError(b, err)
	defer snapshot.Close(context.Background())
	_, err = snapshot.Exec(ctx, `begin isolation level repeatable read; select count(*) from processor.shards`)
	require.NoError(b, err)
	// Ten minutes of one applied ID a second for each of 64 shards.
	for i := range 600 {
		_, err = conn.Exec(ctx, `update processor.progress set applied_id = $1 || '-0'`, fmt.Sprint(i))
		require.NoError(b, err)
	}
	b.Run("snapshot open for 600 marks per shard", measure)
}
