package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// P1, P3, P5, P7: a restart of a server is nobody's crash. Most shards are idle here,
// so that no progress of theirs speaks for their owners.
func TestRestartsOfTheServersUnderLoadAreTakenForNoCrash(t *testing.T) {
	testenv.Slow(t)
	c := newCampaignOf(t, fleet.Steady(20260303, 20, 20, time.Hour), 400)
	instances := []string{"a", "b"}
	pids := make(map[string]int)
	for _, name := range instances {
		pids[name] = c.start(name).PID()
	}
	c.awaitShares(instances...)
	c.awaitStored(200)
	both := []*devenv.Server{c.env.Postgres, c.env.Redis}
	outages := [][]*devenv.Server{both}
	if testenv.IsFull() {
		for range 3 {
			outages = append(outages, both[1:], both[:1], both)
		}
	}
	for _, servers := range outages {
		expire := c.heartbeatsExpire()
		for _, s := range servers {
			require.NoError(t, s.Kill())
		}
		testenv.Wait(t, time.Minute, func() error {
			if left := time.Until(expire); left > 0 {
				return fmt.Errorf("the heartbeats expire in %v", left)
			}
			return nil
		})
		for _, s := range servers {
			c.bring(s)
		}
		c.awaitShares(instances...)
		c.awaitStored(400)
	}
	c.judge()
	for name, pid := range pids {
		require.Equal(t, pid, c.running[name].PID())
		require.True(t, c.running[name].Running())
	}
	kinds := make(map[string]int)
	for _, kind := range []string{protocol.QuarantinedShard, protocol.SilentMember, protocol.StalledMember} {
		n, err := c.Count("select count(*) from processor.incidents where kind = '" + kind + "'")
		require.NoError(t, err)
		kinds[kind] = n
	}
	lost, err := c.Count("select count(*) from processor.losses")
	require.NoError(t, err)
	// The quarantine of an idle shard is over before it could be looked for.
	suspected := kinds[protocol.QuarantinedShard]
	for _, name := range instances {
		p := c.running[name]
		c.end(name)
		suspected += strings.Count(p.Output(), "shard quarantined")
	}
	t.Logf("%d outages: %d shards suspected, incidents %v, %d losses", len(outages), suspected, kinds, lost)
	require.Zero(t, suspected)
	require.Zero(t, lost)
}

// heartbeatsExpire returns when the heartbeats that Redis has now expire.
func (c *campaign) heartbeatsExpire() (last time.Time) {
	c.T.Helper()
	client := c.Client()
	for name := range c.running {
		at, err := client.PExpireTime(c.T.Context(), c.group.Names().Heartbeat(name)).Result()
		require.NoError(c.T, err)
		if t := time.UnixMilli(at.Milliseconds()); t.After(last) {
			last = t
		}
	}
	return last
}
