package stream

import (
	"maps"
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
		"a snapshot":        {map[string]string{"aof_enabled": "0", "rdb_last_save_time": "1699999000", "rdb_last_bgsave_time_sec": "9"}, time.Unix(1699998990, 0)},
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
