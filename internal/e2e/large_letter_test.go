package e2e_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// What looks at the stream and at the dead letters all the time does not read a large
// one each time: as entry and as dead letter it is in Redis for days.
func TestAFleetAtRestDoesNotReadALargeDeadLetterAgain(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	dep := &servicetest.Deployment{
		T: t, RedisURL: env.Redis.URL(), Stream: "telemetry:large", Group: "processor", PostgresURL: testenv.Postgres(t, servicetest.Migrated()),
	}
	p := dep.Run(servicetest.FourShards, "LEADER_TTL=4s", "MEMBER_TTL=5s")
	p.AwaitReady()
	const size = 30 << 20
	dep.Publish([]string{"ts", "1", "device_id", servicetest.IMEI, "codec", "8", "payload", strings.Repeat("x", size)})
	dep.AwaitDeadLetters(1)
	testenv.Wait(t, 40*time.Second, func() error {
		if n, err := p.Metric(`processor_group_dead_letters{class="too_large"}`); err != nil || n != 1 {
			return fmt.Errorf("the leader has counted %v dead letters, %w", n, err)
		}
		return nil
	})

	client := dep.Client()
	sent := func() (n int64) {
		info := client.InfoMap(t.Context(), "stats").Val()["Stats"]["total_net_output_bytes"]
		n, err := strconv.ParseInt(info, 10, 64)
		require.NoError(t, err)
		return n
	}
	const span = 20 * time.Second // longer than between two counts
	began, from := time.Now(), sent()
	testenv.Wait(t, 2*time.Minute, func() error {
		took := time.Since(began)
		if took < span {
			return fmt.Errorf("measuring")
		}
		bytes := sent() - from
		began, from = time.Now(), from+bytes
		t.Logf("Redis sent %.3f MB/s", float64(bytes)/1e6/took.Seconds())
		if bytes > size/2 {
			return fmt.Errorf("Redis sent %d bytes in %s", bytes, took)
		}
		return nil
	})
	require.Zero(t, p.Terminate())
}
