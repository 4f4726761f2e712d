package pipeline_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/pipeline"
)

// A batch that cannot end within the time limit of a statement is not tried
// again as it is: 5 ms a row and 300 ms a statement are batches of some dozens.
func TestABatchThatTakesTooLongIsMadeSmaller(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, sql := range []string{
		`create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.005); return new; end'`,
		`create trigger slow before insert on positions for each row execute function slow()`,
	} {
		_, err := b.Pool.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	pool, err := store.Open(t.Context(), store.Config{
		URL: b.PostgresURL, Member: "one", MaxConns: 12,
		ConnectTimeout: 5 * time.Second, StatementTimeout: 300 * time.Millisecond, LockTimeout: 5 * time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	var entries [][]string
	for s := range int64(150) {
		for d := range 4 {
			entries = append(entries, at(d, s))
			if s%10 == 9 {
				entries = append(entries, at(d, s-200)) // late
			}
		}
	}
	b.Publish(entries...)
	in := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Sink = store.NewWriter(pool, b.Scope(), "one", 5*time.Second)
	})
	b.AcquireAll(in)
	b.Settled(20*time.Second, 0)
	require.Equal(t, len(entries), b.Count("select count(*) from positions"))
	require.Empty(t, in.Lost())
}
