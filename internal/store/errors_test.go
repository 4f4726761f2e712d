package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// sink is a database with one shard, owned by member one, and its writer.
type sink struct {
	url    string
	pool   *pgxpool.Pool
	scope  store.Scope
	writer *store.Writer
	epoch  int64
}

func newSink(t *testing.T) *sink {
	t.Helper()
	s := &sink{url: testenv.Postgres(t, servicetest.Migrated()), scope: store.Scope{Stream: "s", Group: "g"}}
	s.pool = s.open(t, s.url)
	s.writer = store.NewWriter(s.pool, s.scope, "one", 5*time.Second)
	shards := store.NewShards(s.pool, s.scope, 5*time.Second)
	require.NoError(t, shards.Ensure(t.Context(), 1))
	s.exec(t, "update processor.assignments set member = 'one'")
	taken, err := shards.Acquire(t.Context(), 0, "one", "")
	require.NoError(t, err)
	s.epoch = taken.Epoch
	return s
}

func (s *sink) open(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := store.Open(t.Context(), store.Config{
		URL: url, Member: "one", MaxConns: 4,
		ConnectTimeout: 2 * time.Second, StatementTimeout: 700 * time.Millisecond, LockTimeout: 300 * time.Millisecond,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func (s *sink) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	exec(t, connect(t, s.url), sql, args...)
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

// record returns a record of device 1; its attributes say what is to go wrong with it.
func record(n int, attributes string) telemetry.Record {
	us := int64(1_700_000_000_000_000 + n*1_000_000)
	return telemetry.Record{
		ID: telemetry.EntryID{Ms: uint64(us / 1000), Seq: uint64(n)}, DeviceID: "1", Codec: "8", TimeUS: us, StreamUS: us,
		Latitude: 1, Longitude: 1, Attributes: []byte(attributes),
	}
}

func (s *sink) batch() *protocol.Batch {
	set, _ := geofence.NewSet(nil) // no fences
	return &protocol.Batch{
		Leases: []protocol.ShardLease{{Shard: 0, Epoch: s.epoch}},
		Rules:  protocol.Rules{Fences: &protocol.Fences{Set: set}, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute},
	}
}

// fresh and late write ten records, newest first, of which the seventh has the
// attributes. They are not copied in this order.
func (s *sink) fresh(ctx context.Context, attributes string) error {
	b := s.batch()
	for n := range 10 {
		b.Fresh = append(b.Fresh, record(10-n, `{}`))
	}
	b.Fresh[6].Attributes = []byte(attributes)
	_, err := s.writer.Write(ctx, b)
	return err
}

func (s *sink) late(ctx context.Context, attributes string) error {
	b := s.batch()
	for n := range 10 {
		b.Late = append(b.Late, record(n, `{}`))
	}
	b.Late[6].Attributes = []byte(attributes)
	_, err := s.writer.Write(ctx, b)
	return err
}

func failureOf(t *testing.T, err error) *protocol.Failure {
	t.Helper()
	var f *protocol.Failure
	require.ErrorAs(t, err, &f, "%v", err)
	return f
}

// raising is a trigger that runs the SQL in a record.
const raising = `
create function raising() returns trigger language plpgsql as $$
begin
  if new.attributes ? 'code' then
    raise exception using errcode = new.attributes->>'code', message = 'as asked';
  end if;
  if new.attributes ? 'run' then
    execute new.attributes->>'run';
  end if;
  return new;
end
$$;
create trigger raising before insert on positions for each row execute function raising()`

func TestEveryKindOfServerErrorIsClassified(t *testing.T) {
	s := newSink(t)
	s.exec(t, raising)
	s.exec(t, "alter table positions add constraint no_bad check (attributes->>'bad' is distinct from 'yes')")
	s.exec(t, "create table parent (id int primary key); create table child (id int references parent)")
	s.exec(t, `insert into positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
		values ('2', to_timestamp(1700000000), now(), 1, 1, 1, 1, 1, 1, 1, '8', '{"only": "1"}')`)
	var heap string // the one where all records go
	require.NoError(t, s.pool.QueryRow(t.Context(), "select tableoid::regclass::text from positions").Scan(&heap))
	s.exec(t, "create unique index only_one on "+heap+" ((attributes->>'only')) where attributes ? 'only'")
	s.exec(t, "create index fits on "+heap+" ((attributes->>'long'))")
	long := make([]string, 900) // beyond a third of a page, and not to be compressed below it
	for i := range long {
		long[i] = fmt.Sprintf("%x", (i*2654435761)%4294967291)
	}

	statement := func(sql string) string { return fmt.Sprintf(`{"run": %q}`, sql) }
	raise := func(code string) string { return fmt.Sprintf(`{"code": %q}`, code) }
	tests := []struct {
		give  string
		code  string
		want  protocol.FailureKind
		field string
	}{
		{`{"bad": "yes"}`, "23514", protocol.Rejected, "no_bad"},
		{`{"only": "1"}`, "23505", protocol.Conflict, "only_one"},
		{fmt.Sprintf(`{"long": %q}`, strings.Join(long, "")), "54000", protocol.Rejected, "fits"},
		{statement("insert into child values (7)"), "23503", protocol.Rejected, "child_id_fkey"},
		{statement("insert into parent values (null)"), "23502", protocol.Rejected, "id"},
		{statement("select 1 / 0"), "22012", protocol.Rejected, ""},
		{statement("select 99999::smallint"), "22003", protocol.Rejected, ""},
		{statement("select 'x'::int"), "22P02", protocol.Rejected, ""},
		{statement("select repeat('x', 2)::varchar(1)::date"), "22007", protocol.Rejected, ""},
		{raise("P0001"), "P0001", protocol.Rejected, ""},
		{raise("P0004"), "P0004", protocol.Rejected, ""},
		{raise("38001"), "38001", protocol.Rejected, ""},
		{raise("44000"), "44000", protocol.Rejected, ""},
		{raise("TR123"), "TR123", protocol.Rejected, ""},
		{raise("40001"), "40001", protocol.Unavailable, ""},
		{raise("40P01"), "40P01", protocol.Unavailable, ""},
		{raise("53100"), "53100", protocol.Unavailable, ""},
		{raise("53300"), "53300", protocol.Unavailable, ""},
		{raise("53200"), "53200", protocol.Unavailable, ""},
		{raise("53400"), "53400", protocol.Unavailable, ""}, // compressed rows that are too many to unpack
		{raise("57P01"), "57P01", protocol.Unavailable, ""},
		{raise("25P03"), "25P03", protocol.Unavailable, ""}, // the session was idle for too long
		{raise("58030"), "58030", protocol.Unavailable, ""},
		{raise("XX001"), "XX001", protocol.Unavailable, ""},
		{statement("select pg_sleep(5)"), "57014", protocol.Unavailable, ""},
		{statement("select no_such_column"), "42703", protocol.Misconfigured, ""},
		{statement("select no_such_function()"), "42883", protocol.Misconfigured, ""},
		{statement("drop table processor.no_such_table"), "42P01", protocol.Misconfigured, ""},
		{statement("set local role no_such_role"), "22023", protocol.Rejected, ""},
		{statement("select pg_terminate_backend(pg_backend_pid()), pg_sleep(1)"), "57P01", protocol.Unknown, ""},
	}
	for _, tt := range tests {
		t.Run(tt.code+" "+tt.give[:min(40, len(tt.give))], func(t *testing.T) {
			f := failureOf(t, s.fresh(t.Context(), tt.give))
			require.Equal(t, tt.code, f.Code, "%v", f)
			require.Equal(t, tt.want, f.Kind, "%v", f)
			require.Equal(t, tt.field, f.Field)
			require.Equal(t, slices.Contains([]string{"57014", "25P03", "53200", "53400"}, tt.code), f.TooMuch, "half may be tried")
			ofRow := tt.want == protocol.Misconfigured || tt.code == "XX001"
			require.Equal(t, ofRow, f.OfRow, "others may be taken")
			if tt.want == protocol.Rejected || ofRow {
				require.Equal(t, 7, f.Row, "COPY names the row, and the row its record: %v", f)
			}
			f = failureOf(t, s.late(t.Context(), tt.give))
			require.Equal(t, tt.code, f.Code)
			require.Equal(t, tt.want, f.Kind)
			require.Zero(t, f.Row)
			require.Equal(t, ofRow, f.OfRow)
			var n int
			require.NoError(t, s.pool.QueryRow(t.Context(), "select count(*) from positions where device_id = '1'").Scan(&n))
			require.Zero(t, n, "nothing of the batch is left behind")
		})
	}
	require.NoError(t, s.fresh(t.Context(), `{}`))
}

func TestAServerFaultIsNotBlamedOnARow(t *testing.T) {
	s := newSink(t)
	admin := connect(t, s.url)

	tx, err := admin.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "lock table positions")
	require.NoError(t, err)
	f := failureOf(t, s.fresh(t.Context(), `{}`))
	require.Equal(t, protocol.Unavailable, f.Kind)
	require.Equal(t, "55P03", f.Code, "lock timeout")
	require.NoError(t, tx.Rollback(t.Context()))

	s.exec(t, `do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$`)
	s.pool.Reset()
	f = failureOf(t, s.fresh(t.Context(), `{}`))
	require.Equal(t, protocol.Unavailable, f.Kind, "%v", f)

	nowhere := s.open(t, "postgres://nobody@127.0.0.1:1/none")
	_, err = store.NewWriter(nowhere, s.scope, "one", time.Second).Write(t.Context(), s.batch())
	require.Equal(t, protocol.Unavailable, failureOf(t, err).Kind)
}

// TestTextIsSentAsUTF8WhateverTheDatabaseSays: with another client_encoding the
// server converts what it takes for that encoding, and stores another text.
func TestTextIsSentAsUTF8WhateverTheDatabaseSays(t *testing.T) {
	b := newBench(t)
	b.exec("do $$ begin execute format('alter database %I set client_encoding = ''LATIN1''', current_database()); end $$")
	const text = "Größe ✓ 車"
	var stored []byte
	require.NoError(t, b.open("utf8", b.url).QueryRow(t.Context(), "select convert_to($1::text, 'UTF8')", text).Scan(&stored))
	require.Equal(t, text, string(stored))
}
