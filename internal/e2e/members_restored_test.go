package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// older is where a server's data is kept as it was.
func older(server *devenv.Server) string { return filepath.Join(server.Dir(), "older") }

// keep copies a server's data aside. What Redis appends meanwhile may be in the
// copy or not: it is a state that the server once had.
func (c *campaign) keep(server *devenv.Server) {
	c.T.Helper()
	out, err := exec.CommandContext(c.T.Context(), "cp", "-a", filepath.Join(server.Dir(), "data"), older(server)).CombinedOutput()
	require.NoError(c.T, err, "%s", out)
}

// goBack has a stopped server come up with the data that was kept.
func (c *campaign) goBack(server *devenv.Server) {
	c.T.Helper()
	data := filepath.Join(server.Dir(), "data")
	require.NoError(c.T, os.RemoveAll(data))
	require.NoError(c.T, os.Rename(older(server), data))
	c.bring(server)
}

// bring starts a stopped server. The connections of the judge went with it.
func (c *campaign) bring(server *devenv.Server) {
	c.T.Helper()
	require.NoError(c.T, server.Start(c.T.Context()))
	c.pool.Reset()
}

// total is the sum of a counter over all instances.
func (c *campaign) total(counter string) (sum float64) {
	c.T.Helper()
	for _, p := range c.running {
		v, err := p.Metric(counter)
		require.NoError(c.T, err)
		sum += v
	}
	return sum
}

// awaitStored waits until so many rows more are stored.
func (c *campaign) awaitStored(n int) {
	c.T.Helper()
	base := c.stored()
	testenv.Wait(c.T, time.Minute, func() error {
		if have := c.stored() - base; have < n {
			return fmt.Errorf("%d of %d records more are stored", have, n)
		}
		return nil
	})
}

// awaitReacquired waits until all shards were reacquired since a count.
func (c *campaign) awaitReacquired(before float64) {
	c.T.Helper()
	testenv.Wait(c.T, time.Minute, func() error {
		if n := c.total("processor_coordination_shards_acquired_total") - before; n < fleetShards {
			return fmt.Errorf("%v shards were reacquired", n)
		}
		return nil
	})
}

// gone is the entries sent that the stream does not hold.
func (c *campaign) gone() map[telemetry.EntryID]bool {
	c.T.Helper()
	there := make(map[telemetry.EntryID]bool)
	for after := (telemetry.EntryID{}); ; {
		page, err := c.group.ReadRange(c.T.Context(), after, 5000)
		require.NoError(c.T, err)
		for i := range page {
			there[page[i].ID] = true
		}
		if len(page) == 0 {
			break
		}
		after = page[len(page)-1].ID
	}
	sent, err := fleet.OpenLog(c.file)
	require.NoError(c.T, err)
	defer sent.Close()
	gone := make(map[telemetry.EntryID]bool)
	require.NoError(c.T, sent.Scan(func(_ int64, s *fleet.Sent) error {
		if !there[s.ID] {
			gone[s.ID] = true
		}
		return nil
	}))
	return gone
}

// P1, P2, P3, P5, P6: Redis goes on with a state from some seconds ago, under load:
// without the newest entries, with the queues, marks and acknowledgements of then.
// What it still holds and what Postgres has is there, once and in order.
func TestRedisFailsOverToAnOlderStateUnderLoad(t *testing.T) {
	testenv.Full(t)
	c := newCampaignOf(t, fleet.Steady(20260302, 200, 200, time.Hour), 800)
	c.start("a")
	c.start("b")
	c.awaitShares("a", "b")
	c.awaitStored(800)
	c.keep(c.env.Redis)
	c.awaitStored(2400)
	taken := c.total("processor_coordination_shards_acquired_total")
	require.NoError(t, c.env.Redis.Kill())
	c.goBack(c.env.Redis)
	began := time.Now()
	c.awaitReacquired(taken)
	t.Logf("all shards taken again %.2f s after it came back", time.Since(began).Seconds())
	c.awaitShares("a", "b")
	c.awaitStored(1600)
	c.settle()
	gone := c.gone()
	require.Greater(t, len(gone), 500, "some seconds of entries went with Redis")
	account := c.judgeBut(gone)
	t.Logf("%d entries went with Redis, %d of them were stored before", len(gone), len(gone)-int(account.Pending))
	require.Less(t, int(account.Pending), len(gone)/2, "what was stored stays")
	var l lagReport
	c.Ask(0, &l, "lag")
	require.Nil(t, l.Lost, "nobody can tell how many")
	require.Len(t, l.Losses, 1)
	loss := l.Losses[0]
	require.Equal(t, "failover", loss.Cause)
	require.Nil(t, loss.Entries)
	first, err := telemetry.ParseEntryID(*loss.First)
	require.NoError(t, err)
	last, err := telemetry.ParseEntryID(*loss.Last)
	require.NoError(t, err)
	for id := range gone {
		require.True(t, first.Compare(id) <= 0 && id.Compare(last) <= 0, "%s went and is not in the ledger, which has %s to %s", id, first, last)
	}
	require.Len(t, l.Incidents, 1)
	require.Equal(t, protocol.RedisFailedOver, l.Incidents[0].Kind)
	c.end("a")
	c.end("b")
}

// P1, P2, P3, P5, P7: Postgres goes on with a state from some seconds ago, under
// load. What was acknowledged since is redelivered from the stream.
func TestPostgresGoesBackToAnOlderStateUnderLoad(t *testing.T) {
	testenv.Full(t)
	c := newCampaign(t, 200, 800)
	c.start("a")
	c.start("b")
	c.awaitShares("a", "b")
	c.awaitStored(800)
	pg := c.env.Postgres
	require.NoError(t, pg.Stop(t.Context()))
	c.keep(pg)
	c.bring(pg)
	c.awaitShares("a", "b")
	c.awaitStored(2400)
	taken, before := c.total("processor_coordination_shards_acquired_total"), c.stored()
	require.NoError(t, pg.Stop(t.Context()))
	c.goBack(pg)
	began := time.Now()
	require.Less(t, c.stored(), before, "commits are lost")
	c.awaitReacquired(taken)
	t.Logf("all shards taken again %.2f s after it came back", time.Since(began).Seconds())
	c.awaitShares("a", "b")
	c.awaitStored(1600)
	c.judge()
	redelivered := c.total("processor_coordination_redelivered_entries_total")
	t.Logf("%.0f entries were redelivered", redelivered)
	require.Positive(t, redelivered)
	c.end("a")
	c.end("b")
}
