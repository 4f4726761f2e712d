package observer_test

import (
	"context"
	"log/slog"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/observer"
)

// Any table whose rows carry a stream or a device gets a row, whatever else it wants, and so does what
// carries neither.
func TestNothingOfALoadTestStaysInAnyTable(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t, testenv.WithTemplate("loadtest", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	defer pool.Close()
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql, args...)
		require.NoError(t, err, sql)
	}
	rows, err := pool.Query(t.Context(), `
select c.oid::regclass::text
from pg_class c
where c.relnamespace in ('public'::regnamespace, 'processor'::regnamespace)
  and c.relkind = 'r'
  and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname in ('stream', 'device_id'))`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Greater(t, len(tables), 15)

	exec("insert into processor.settings (name, value, set_by) values ('theirs', '1', 'them')")
	o := observer.NewObserver(pool, store.Scope{Stream: "s", Group: "g"})
	found, used, err := o.Find(t.Context())
	require.NoError(t, err)
	require.Empty(t, used)
	exec("insert into processor.settings (name, value, set_by) values ('DATABASE', 'x', 'us')")
	exec("insert into processor.timing_shown (at, tx) values (now(), 1)")
	for _, table := range tables {
		rows, err := pool.Query(t.Context(), `
select attname
from pg_attribute
where attrelid = $1::regclass
  and attnum > 0
  and attname in ('stream', 'device_id')`, table)
		require.NoError(t, err)
		columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		loosen(t, pool, table)
		for _, c := range columns {
			if c == "device_id" && slices.Contains(columns, "stream") {
				continue
			}
			exec("insert into "+table+" ("+c+") values ($1)", map[string]string{"stream": "s", "device_id": "d"}[c])
		}
	}
	require.NoError(t, o.Clear(t.Context(), found, slices.Values([]string{"d"})))
	for _, table := range append(tables, "processor.timing_shown", "processor.settings where name <> 'theirs'") {
		var n int
		require.NoError(t, pool.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n))
		require.Zero(t, n, table)
	}
	var theirs int
	require.NoError(t, pool.QueryRow(t.Context(), "select count(*) from processor.settings").Scan(&theirs))
	require.Equal(t, 1, theirs)
}

// loosen takes all rules from a table.
func loosen(t *testing.T, pool *pgxpool.Pool, table string) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `
do $$
declare
  x record;
begin
  alter table `+table+` replica identity nothing;
  for x in select conname from pg_constraint where conrelid = '`+table+`'::regclass and contype <> 'n'
  loop
    execute format('alter table `+table+` drop constraint %I cascade', x.conname);
  end loop;
  for x in select attname from pg_attribute where attrelid = '`+table+`'::regclass and attnum > 0 and attnotnull and attidentity = ''
  loop
    execute format('alter table `+table+` alter column %I drop not null', x.attname);
  end loop;
  alter table `+table+` disable trigger user;
end
$$`)
	require.NoError(t, err, table)
}
