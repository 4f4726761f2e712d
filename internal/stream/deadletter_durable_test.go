package stream

import (
	"maps"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWhatIsDurable(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	for name, tt := range map[string]struct {
		info map[string]string
		want time.Time // the zero ID's time for nothing
	}{
		"nothing is said":   {map[string]string{}, time.UnixMilli(0)},
		"append-only file":  {map[string]string{"aof_enabled": "1", "aof_last_write_status": "ok"}, now.Add(-syncedAfter)},
		"a failing disk":    {map[string]string{"aof_enabled": "1", "aof_last_write_status": "err"}, time.UnixMilli(0)},
		"while it is read":  {map[string]string{"aof_enabled": "1", "aof_last_write_status": "ok", "loading": "1"}, time.UnixMilli(0)},
		"its first rewrite": {map[string]string{"aof_enabled": "1", "aof_last_write_status": "ok", "aof_rewrite_in_progress": "1"}, time.UnixMilli(0)},
		"one that waits":    {map[string]string{"aof_enabled": "1", "aof_last_write_status": "ok", "aof_rewrite_scheduled": "1"}, time.UnixMilli(0)},
		"one that failed":   {map[string]string{"aof_enabled": "1", "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "err"}, time.UnixMilli(0)},
		"a snapshot":        {map[string]string{"aof_enabled": "0", "rdb_last_save_time": "1699999000", "rdb_last_bgsave_time_sec": "9"}, time.UnixMilli(0)},
		"a silent replica":  {map[string]string{"aof_enabled": "1", "aof_last_write_status": "ok", "connected_slaves": "1", "master_repl_offset": "100"}, time.UnixMilli(0)},
		"a replica behind":  {map[string]string{"aof_enabled": "1", "aof_last_write_status": "ok", "connected_slaves": "1", "master_repl_offset": "100", "slave0": "ip=::1,port=1,state=online,offset=99,lag=0"}, time.UnixMilli(0)},
		"a replica with it": {map[string]string{"aof_enabled": "1", "aof_last_write_status": "ok", "connected_slaves": "1", "master_repl_offset": "100", "slave0": "ip=::1,port=1,state=online,offset=100,lag=0"}, now.Add(-syncedAfter)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want.UTC(), new(DeadLetters).durable(now, tt.info).Time())
		})
	}

	// What a replica that lags has is what there was when its offset was reached.
	d := new(DeadLetters)
	info := map[string]string{
		"aof_enabled": "1", "aof_last_write_status": "ok", "connected_slaves": "1",
		"master_repl_offset": "100", "slave0": "state=online,offset=50",
	}
	d.durable(now, maps.Clone(info))
	info["master_repl_offset"], info["slave0"] = "200", "state=online,offset=120"
	require.Equal(t, now.UTC(), d.durable(now.Add(time.Minute), maps.Clone(info)).Time())
}

// A snapshot that failed, or that went to a replica, says how long it took, too.
func TestASnapshotHoldsWhatThereWasAtTheEndOfTheOneBefore(t *testing.T) {
	t.Parallel()
	d := new(DeadLetters)
	durable := func(server string, saved int, took string) time.Time {
		return d.durable(time.Unix(1_700_000_000, 0), map[string]string{
			"run_id": server, "aof_enabled": "0", "rdb_last_save_time": strconv.Itoa(saved), "rdb_last_bgsave_time_sec": took,
		}).Time()
	}
	none := time.UnixMilli(0).UTC()
	require.Equal(t, none, durable("a", 1000, "0"), "when the server started")
	require.Equal(t, time.Unix(1000, 0).UTC(), durable("a", 1014, "8"))
	require.Equal(t, time.Unix(1000, 0).UTC(), durable("a", 1014, "1"), "another one failed at once")
	require.Equal(t, time.Unix(1014, 0).UTC(), durable("a", 1100, "1"))
	require.Equal(t, none, durable("b", 1100, "1"), "another server may have another file")
}
