package operator_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/testenv"
)

// A request for the second stream comes once both are drained.
func TestOfStreamsThatAreResizedOneThatFailsEndsNoOther(t *testing.T) {
	dep := newDeployment(t)
	one, two := dep.redis.Stream, dep.redis.Stream+"-b"
	fleets := []*operator.Fleet{dep.fleet(one), dep.fleet(two)}

	request, err := dep.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = request.Exec(t.Context(), "insert into processor.requests (stream, group_name, kind, shard, requested_by) values ($1, $2, 'recompute', 3, 'test')", two, dep.redis.Group)
	require.NoError(t, err)
	resized := make(chan error, 1)
	go func() {
		_, err := operator.ResizeAll(t.Context(), fleets, 64, nil)
		resized <- err
	}()
	testenv.Wait(t, 20*time.Second, func() error {
		var waiting int
		if err := dep.pool.QueryRow(t.Context(), `select count(*) from pg_locks where not granted and relation = 'processor.requests'::regclass
  and database = (select oid from pg_database where datname = current_database())`).Scan(&waiting); err != nil || waiting == 2 {
			return err
		}
		return errors.New("not all streams are about to be changed")
	})
	require.NoError(t, request.Commit(t.Context()))
	err = <-resized
	require.ErrorContains(t, err, "stream "+two+": change the number of shards from 16 to 64")
	require.ErrorContains(t, err, "changed: "+one+"; not changed: "+two+": run it again for the rest; if it waits for what "+two+
		" has to do, start an instance with REDIS_TELEMETRY_STREAM="+two+" SHARDS=16 meanwhile")
	_, err = dep.pool.Exec(t.Context(), "update processor.requests set state = 'done'")
	require.NoError(t, err)
	all, err := operator.ResizeAll(t.Context(), fleets, 64, nil)
	require.NoError(t, err)
	require.False(t, all[0].Changed)
	require.True(t, all[1].Changed)
}
