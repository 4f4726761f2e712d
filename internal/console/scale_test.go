package console_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestManyDeadLettersAndALongTrackAreShownInTime(t *testing.T) {
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	b := open(t)
	b.base = "http://" + p.Addr() + "/console/"
	client := dep.Client()
	letters, fixes := testenv.Size(10_000, 100_000), testenv.Size(100_000, 1_000_000)
	began := time.Now()
	for from := range letters / 1000 {
		pipe := client.Pipeline()
		for i := range 1000 {
			n := from*1000 + i
			class := []string{"decode", "invalid"}[n%2]
			pipe.Do(t.Context(), "xadd", dep.Stream+":dlq", "*", "device_id", "device-"+class, "payload", "{}", "dlq_class", class, "dlq_error", "broken", "dlq_field", "payload",
				"dlq_source_id", "1764000000000-1", "dlq_shard", "0", "dlq_attempts", "3", "dlq_first_failed", "2026-08-01T10:00:00.000000Z", "dlq_last_failed", "2026-08-01T10:00:00.000000Z",
				"dlq_instance", "one", "dlq_version", "1", "dlq_fingerprint", class+"/payload/test", "dlq_original_fields", "2")
		}
		_, err := pipe.Exec(t.Context())
		require.NoError(t, err)
	}
	dep.Exec(`insert into positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select 'long', '2026-01-01'::timestamptz + n * interval '10 seconds', '2026-01-01'::timestamptz + n * interval '10 seconds', 48 + n / 1e6, 11 + sin(n / 1e4), 0, 0, 50, 9, 0, '8', '{}'
from generate_series(1, $1) as n`, fixes)
	dep.Exec("analyze positions")
	t.Logf("%d dead letters and %d positions are there after %v", letters, fixes, time.Since(began).Round(time.Millisecond))

	began = time.Now()
	b.visit("dead-letters/")
	b.await("document.getElementById('letter-groups').innerText", cli.Thousands(int64(letters))+" dead letters")
	t.Logf("their groups are shown after %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	b.visit("dead-letters/?class=decode")
	b.await("document.getElementById('letter-list').innerText", "more match")
	t.Logf("a filtered list after %v", time.Since(began).Round(time.Millisecond))

	began = time.Now()
	b.visit("devices/?device=long")
	b.await("document.querySelector('.map').dataset.shown", "4000")
	t.Logf("the last day after %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	b.visit("devices/?device=long&from=2026-01-01T00:00:00&to=2026-12-31T00:00:00")
	b.await("document.getElementById('device-tables').innerText", "sampled")
	require.NotEqual(t, "0", b.eval("document.querySelector('.map').dataset.shown ?? 0"))
	t.Logf("all positions after %v: %s points", time.Since(began).Round(time.Millisecond), b.eval("document.querySelector('.map').dataset.shown"))
	b.quiet()
}
