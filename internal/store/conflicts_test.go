package store_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// of returns the record of a time that an attempt sends, with or without a fix.
func of(n, satellites, speed int) telemetry.Record {
	r := record(n, `{}`)
	r.ID.Seq, r.Satellites, r.Speed = uint64(speed), int16(satellites), float32(speed)
	return r
}

func (s *sink) writeLate(t *testing.T, list ...telemetry.Record) (protocol.CommitResult, error) {
	t.Helper()
	b := s.batch()
	b.Late, b.Rules.Eligibility.MinSatellites = list, 1
	return store.NewWriter(s.pool, s.scope, "one", 5*time.Second).Write(t.Context(), b)
}

// withoutDelete opens the sink as a role that a platform grants no delete on positions.
func (s *sink) withoutDelete(t *testing.T) {
	t.Helper()
	testenv.SkipIn(t, devenv.Pooled, "the pooler has one role for all")
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	role := u.Path[1:] + "_writer"
	s.exec(t, fmt.Sprintf("create role %[1]s login; grant usage on schema processor to %[1]s; "+
		"grant all on all tables in schema processor to %[1]s; grant all on all sequences in schema processor to %[1]s; grant select, insert on positions to %[1]s", role))
	admin := connect(t, s.url)
	t.Cleanup(func() {
		_, err := admin.Exec(context.Background(), "drop owned by "+role+"; drop role "+role)
		require.NoError(t, err)
	})
	u.User = url.User(role)
	s.url = u.String()
	s.pool = s.open(t, s.url)
	t.Cleanup(s.pool.Close)
}

// onDelete has a trigger run for each row that is deleted.
func (s *sink) onDelete(t *testing.T, body string) {
	t.Helper()
	s.exec(t, "create function keeps() returns trigger language plpgsql as $$ begin "+body+" end $$")
	s.exec(t, "create trigger keeps before delete on positions for each row execute function keeps()")
}

// A row that cannot be deleted keeps its time, and the record that should have it is noted:
// it neither ends the service nor repeats a batch for ever, and is not lost.
func TestARowThatCannotBeDeletedStaysAndTheRecordIsNoted(t *testing.T) {
	for name, tt := range map[string]struct {
		keeps func(t *testing.T, s *sink)
		why   string // what the writer says
		note  string // what migrate verify says before
	}{
		"no privilege": {func(t *testing.T, s *sink) { t.Helper(); s.withoutDelete(t) }, "permission denied for table positions", "delete is not granted"},
		"a publication of all tables": {func(t *testing.T, s *sink) {
			t.Helper()
			var heap string
			require.NoError(t, s.pool.QueryRow(t.Context(), "select tableoid::regclass::text from positions limit 1").Scan(&heap))
			s.exec(t, "create publication everything for all tables; alter table "+heap+" replica identity nothing")
		}, "replica identity", "carries removals"},
		"a trigger that returns null": {func(t *testing.T, s *sink) { t.Helper(); s.onDelete(t, "return null;") }, "keeps rows from being deleted", "keeps on public.positions"},
		"a trigger that raises":       {func(t *testing.T, s *sink) { t.Helper(); s.onDelete(t, "raise exception 'positions are kept';") }, "positions are kept", "keeps on public.positions"},
		"a trigger that refuses the privilege": {func(t *testing.T, s *sink) {
			t.Helper()
			s.onDelete(t, "raise insufficient_privilege;")
		}, "insufficient_privilege", "keeps on public.positions"},
		"a reference": {func(t *testing.T, s *sink) {
			t.Helper()
			testenv.SkipIn(t, devenv.Hypertable, "nothing refers to a hypertable")
			s.exec(t, `create table alarms (device_id text, ts timestamptz, foreign key (device_id, ts) references positions (device_id, ts)); insert into alarms select device_id, ts from positions`)
		}, "alarms", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSink(t)
			_, err := s.writeLate(t, of(1, 0, 1), of(2, 0, 1))
			require.NoError(t, err)
			tt.keeps(t, s)
			report, err := schema.VerifyURL(t.Context(), s.url)
			require.NoError(t, err)
			require.Contains(t, fmt.Sprint(report.Notes), tt.note)

			out, err := s.writeLate(t, of(1, 9, 2), of(2, 9, 2), of(3, 9, 2))
			require.NoError(t, err)
			require.Equal(t, []bool{false, false, true}, out.Stored)
			require.Equal(t, 2, out.Stayed)
			require.ErrorContains(t, out.StayedWhy, tt.why)
			require.Equal(t, [3]int{2, 2, 0}, [3]int{out.Conflicts, out.NewConflicts, out.SwallowedLate})
			require.Equal(t, []int{2, 1, 2}, s.counts(t,
				"select count(*) from positions where speed = 1", "select count(*) from positions where speed = 2",
				"select count(*) from processor.conflicts where entry_id like '%-2' and (record ->> 'speed')::int = 2"))
			out, err = s.writeLate(t, of(1, 9, 2))
			require.NoError(t, err)
			require.Equal(t, [2]int{1, 0}, [2]int{out.Conflicts, out.NewConflicts}, "delivered again")
		})
	}
}

func (s *sink) counts(t *testing.T, list ...string) []int {
	t.Helper()
	got := make([]int, len(list))
	for i := range list {
		require.NoError(t, s.pool.QueryRow(t.Context(), list[i]).Scan(&got[i]))
	}
	return got
}

// Of many rows the one that cannot be deleted stays, and no other.
func TestARowThatStaysKeepsNoOtherFromGivingWay(t *testing.T) {
	for name, body := range map[string]string{
		"raises":       "if old.ts = to_timestamp(1700000003) then raise exception 'kept'; end if; return old;",
		"returns null": "if old.ts = to_timestamp(1700000003) then return null; end if; return old;",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSink(t)
			var first, then []telemetry.Record
			for n := range 7 {
				first, then = append(first, of(n, 0, 1)), append(then, of(n, 9, 2))
			}
			_, err := s.writeLate(t, first...)
			require.NoError(t, err)
			s.onDelete(t, body)
			out, err := s.writeLate(t, then...)
			require.NoError(t, err)
			require.Equal(t, 1, out.Stayed)
			require.Equal(t, []bool{true, true, true, false, true, true, true}, out.Stored)
			require.Equal(t, []int{6, 1, 6, 1}, s.counts(t,
				"select count(*) from positions where speed = 2", "select count(*) from positions where speed = 1 and ts = to_timestamp(1700000003)",
				"select count(*) from processor.conflicts where entry_id is null", "select count(*) from processor.conflicts where entry_id is not null"))
		})
	}
}

// A record that wins against one of its own batch is what later ones of its device are
// computed from: where the other stays, the batch is computed again.
func TestARivalThatCannotWinHasTheBatchComputedAgain(t *testing.T) {
	s := newSink(t)
	s.onDelete(t, "raise exception 'positions are kept';")
	b := s.batch()
	b.Late, b.Rivals, b.Rules.Eligibility.MinSatellites = []telemetry.Record{of(1, 0, 1)}, []telemetry.Record{of(1, 9, 2)}, 1
	w := store.NewWriter(s.pool, s.scope, "one", 5*time.Second)
	_, err := w.Write(t.Context(), b)
	require.Equal(t, protocol.Conflict, failureOf(t, err).Kind)
	require.Equal(t, []int{0, 0}, s.counts(t, "select count(*) from positions", "select count(*) from processor.conflicts"))
	b.Idempotent = true
	out, err := w.Write(t.Context(), b)
	require.NoError(t, err)
	require.Equal(t, 1, out.Stayed)
	require.Equal(t, []int{1, 1}, s.counts(t, "select count(*) from positions where speed = 1", "select count(*) from processor.conflicts"))
}

// The row is flagged, or another program wrote it: then it is not what the state of the device is.
func TestARivalThatLosesToARowNobodyExpectedHasTheBatchComputedAgain(t *testing.T) {
	s := newSink(t)
	b := s.batch()
	b.Late, b.Rivals, b.Rules.Eligibility.MinSatellites = []telemetry.Record{of(1, 0, 1)}, []telemetry.Record{of(1, 9, 2), of(1, 9, 3)}, 1
	w := store.NewWriter(s.pool, s.scope, "one", 5*time.Second)
	_, err := w.Write(t.Context(), b)
	require.NoError(t, err)
	_, err = w.Write(t.Context(), b)
	require.NoError(t, err, "delivered again, the first that takes part is the row")
	for name, sql := range map[string]string{
		"flagged": "update positions set faulty = true", "of another program": "update positions set faulty = false, speed = 7",
	} {
		s.exec(t, sql)
		_, err = w.Write(t.Context(), b)
		require.Equal(t, protocol.Conflict, failureOf(t, err).Kind, name)
		again := *b
		again.Idempotent = true
		_, err = w.Write(t.Context(), &again)
		require.NoError(t, err, name)
	}
}

// What passes, or is of another kind, is no refusal: the batch fails, and nothing is decided.
func TestALockOrAFaultIsNotTakenForARowThatStays(t *testing.T) {
	s := newSink(t)
	_, err := s.writeLate(t, of(1, 0, 1))
	require.NoError(t, err)
	other := connect(t, s.url)
	exec(t, other, "begin; select from positions for update")
	_, err = s.writeLate(t, of(1, 9, 2))
	require.Equal(t, "55P03", failureOf(t, err).Code)
	exec(t, other, "rollback")
	s.onDelete(t, "raise exception 'x' using errcode = (select code from what);")
	s.exec(t, "create table what (code text)")
	for _, code := range strings.Fields("40001 53100 57014 XX000 " + store.CodeFenced) {
		s.exec(t, "truncate what")
		s.exec(t, "insert into what values ($1)", code)
		_, err = s.writeLate(t, of(1, 9, 2))
		require.Equal(t, code, failureOf(t, err).Code)
		require.Equal(t, []int{1, 0}, s.counts(t, "select count(*) from positions where speed = 1", "select count(*) from processor.conflicts"))
	}
	s.exec(t, "drop trigger keeps on positions")
	out, err := s.writeLate(t, of(1, 9, 2))
	require.NoError(t, err)
	require.Equal(t, []bool{true}, out.Stored)
	require.Zero(t, out.Stayed)
}
