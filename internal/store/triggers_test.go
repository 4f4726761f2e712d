package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

// A trigger of one partition keeps rows out as one of positions does. A hypertable copies
// its own to all chunks: it is named once.
func TestATriggerBelowPositionsIsSeenToSwallowRows(t *testing.T) {
	s := newSink(t)
	require.NoError(t, s.fresh(t.Context(), `{}`)) // makes the chunks
	var heap, owner string
	require.NoError(t, s.pool.QueryRow(t.Context(), "select tableoid::regclass::text from positions limit 1").Scan(&heap))
	s.exec(t, `create function swallow() returns trigger language plpgsql as 'begin if new.speed > 0 then return null; end if; return new; end'`)
	if owner = "public." + heap; testenv.World(t) == devenv.Hypertable {
		owner = "public.positions"
	}
	s.exec(t, "create trigger swallows before insert on "+owner+" for each row execute function swallow()")
	list, err := store.RowTriggers(t.Context(), s.pool, store.BeforeInsert)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "swallows", list[0].Name)
	require.Equal(t, owner, list[0].Table)
	report, err := schema.VerifyURL(t.Context(), s.url)
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(report.Notes), "swallows on "+owner)

	b := s.batch()
	for n := range 4 { // in the same heap
		r := record(11+n, `{}`)
		r.Speed = float32(n % 2)
		b.Fresh = append(b.Fresh, r)
	}
	out, err := store.NewWriter(s.pool, s.scope, "one", 5*time.Second).Write(t.Context(), b) // which looks for triggers anew
	require.NoError(t, err)
	require.Equal(t, 2, out.Swallowed)
	require.Equal(t, "swallows", out.Triggers)
	for _, other := range []string{"disable trigger swallows", "enable replica trigger swallows"} {
		s.exec(t, "alter table "+owner+" "+other)
		list, err = store.RowTriggers(t.Context(), s.pool, store.BeforeInsert)
		require.NoError(t, err)
		require.Empty(t, list, other)
	}
}
