package schema_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store/schema"
)

// upstreamPositions is the table as the earlier service and the platform made
// it, before the column faulty.
const upstreamPositions = `
create table public.positions (
  device_id text not null,
  ts timestamptz not null,
  ingested_at timestamptz not null default now(),
  latitude double precision not null,
  longitude double precision not null,
  altitude real not null,
  angle real not null,
  speed real not null,
  satellites smallint not null,
  priority smallint not null,
  codec text not null,
  attributes jsonb not null,
  primary key (device_id, ts)
);
create index positions_device_ts_idx on public.positions (device_id, ts desc);
create table public.schema_migrations (version text primary key);
insert into public.positions
select 'device-' || n % 7, timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second', now(),
  n, n, n, n, n, 5, 0, '8E', jsonb_build_object('16', n)
from generate_series(1, 50) n`

func TestMigrateTakesOverAnUpstreamTableInPlace(t *testing.T) {
	url := emptyDatabase(t)
	conn := connect(t, url)
	execute(t, conn, upstreamPositions)
	var before, after string
	const content = `
select md5(string_agg(concat_ws('|', device_id, ts, ingested_at, latitude, attributes), ',' order by device_id, ts))
from public.positions`
	require.NoError(t, conn.QueryRow(t.Context(), content).Scan(&before))

	require.Equal(t, migrationNames, migrate(t, url))

	require.NoError(t, conn.QueryRow(t.Context(), content).Scan(&after))
	require.Equal(t, before, after)
	var faulty int
	require.NoError(t, conn.QueryRow(t.Context(),
		`select count(*) from public.positions where faulty is not false`).Scan(&faulty))
	require.Zero(t, faulty)
	report, err := schema.VerifyURL(t.Context(), url)
	require.NoError(t, err)
	require.NoError(t, report.Err())
	require.Equal(t, []schema.Finding{
		{Kind: "index", Name: "on public.positions", Have: "extra, btree (device_id, ts desc)"},
	}, report.Notes)
}

// A platform may have partitioned its table; ours is then that one.
func TestMigrateTakesOverAPartitionedTableInPlace(t *testing.T) {
	url := emptyDatabase(t)
	conn := connect(t, url)
	execute(t, conn, strings.NewReplacer(
		"primary key (device_id, ts)\n)", `primary key (device_id, ts)
) partition by range (ts);
create table public.positions_early partition of public.positions for values from (minvalue) to ('2026-01-01 00:00:20Z');
create table public.positions_late partition of public.positions for values from ('2026-01-01 00:00:20Z') to (maxvalue)`,
	).Replace(upstreamPositions))

	require.Equal(t, migrationNames, migrate(t, url))

	var partitions, rows int
	require.NoError(t, conn.QueryRow(t.Context(), `
select count(distinct tableoid), count(*)
from public.positions
where not faulty`).Scan(&partitions, &rows))
	require.Equal(t, 2, partitions)
	require.Equal(t, 50, rows)
	report, err := schema.VerifyURL(t.Context(), url)
	require.NoError(t, err)
	require.NoError(t, report.Err())
}

func TestMigrateAgainAppliesNothing(t *testing.T) {
	url := unmigrated(t)
	status, err := schema.Status(t.Context(), url)
	require.NoError(t, err)
	require.Len(t, status, len(migrationNames))
	for i, m := range status {
		require.Equal(t, migrationNames[i], m.Name)
		require.Nil(t, m.AppliedAt)
	}

	require.Equal(t, migrationNames, migrate(t, url))
	require.Empty(t, migrate(t, url))

	status, err = schema.Status(t.Context(), url)
	require.NoError(t, err)
	for _, m := range status {
		require.NotNil(t, m.AppliedAt, m.Name)
	}
}

func TestPrintedSQLMakesTheSameSchemaAndMayBeAppliedAgain(t *testing.T) {
	url := unmigrated(t)
	var printed bytes.Buffer
	require.NoError(t, schema.PrintSQL(&printed))
	require.NotContains(t, printed.String(), "+goose")

	conn := connect(t, url)
	for range 2 {
		execute(t, conn, printed.String())
		report, err := schema.VerifyURL(t.Context(), url)
		require.NoError(t, err)
		require.NoError(t, report.Err())
		require.Empty(t, report.Notes)
	}
	require.Equal(t, migrationNames, migrate(t, url), "a printed schema can be migrated later")
	execute(t, conn, printed.String())
}

func TestEveryTableAndColumnIsCommented(t *testing.T) {
	url := unmigrated(t)
	migrate(t, url)
	tables, err := schema.NeededTables()
	require.NoError(t, err)
	rows, err := connect(t, url).Query(t.Context(), `
select a.attrelid::regclass::text || coalesce('.' || nullif(a.attname, 'tableoid'), '')
from pg_attribute a
where a.attrelid = any (select unnest($1::text[])::regclass)
  and (a.attnum > 0 or a.attname = 'tableoid')
  and not a.attisdropped
  and col_description(a.attrelid, greatest(a.attnum, 0)) is null
  and (a.attnum > 0 or obj_description(a.attrelid, 'pg_class') is null)`, tables)
	require.NoError(t, err)
	var missing []string
	for rows.Next() {
		var name string
		require.NoError(t, rows.Scan(&name))
		missing = append(missing, name)
	}
	require.NoError(t, rows.Err())
	require.Empty(t, missing)
	require.NotEmpty(t, tables)
}

func TestMigrateSaysWhenTheRoleMayNotChangeTheSchema(t *testing.T) {
	url := emptyDatabase(t)
	admin := connect(t, url)
	execute(t, admin, `drop role if exists migrate_reader`)
	execute(t, admin, `create role migrate_reader login`)
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), url)
		require.NoError(t, err)
		defer conn.Close(context.Background())
		_, err = conn.Exec(context.Background(), `drop owned by migrate_reader; drop role migrate_reader`)
		require.NoError(t, err)
	})
	reader := asRole(t, url, "migrate_reader")
	_, err := schema.Migrate(t.Context(), reader, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, schema.ErrSchema)
	require.ErrorContains(t, err, "the role may not change the schema")

	migrate(t, url)
	execute(t, admin, `grant usage on schema processor to migrate_reader`)
	execute(t, admin, `grant select on processor.goose_db_version to migrate_reader`)
	require.Empty(t, migrate(t, reader), "nothing to apply needs no rights to apply it")
}

func TestMigrateErrorsTellNoPassword(t *testing.T) {
	for _, url := range []string{
		"postgres://u:s3cret@127.0.0.1:1/x",
		"postgres://u:s3cret@127.0.0.1:port/x",
		"postgres://u:s3cret@127.0.0.1:1/x?sslmode=nonsense",
	} {
		_, err := schema.Migrate(t.Context(), url, slog.New(slog.DiscardHandler))
		require.Error(t, err)
		require.NotContains(t, err.Error(), "s3cret")
	}
	_, err := schema.Migrate(t.Context(), "", slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "POSTGRES_URL")
}

func asRole(t *testing.T, address, role string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	u.User = url.User(role)
	return u.String()
}
