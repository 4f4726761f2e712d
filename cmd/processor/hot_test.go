package main

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/console"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// One device sends half of all: members, top and doctor say which it is, and on which shard.
func TestAHotDeviceIsNamed(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	one := dep.Run(servicetest.FourShards, "INSTANCE_ID=one")
	one.AwaitReady()
	var m operator.Members
	round := 0
	testenv.Wait(t, time.Minute, func() error {
		dep.Publish(servicetest.RecordsOfMany(200*round, 200)...)
		dep.Publish(servicetest.Records(int64(200*round), 200)...)
		round++
		m = operator.Members{}
		dep.Ask(fault.Clean, &m, "members")
		// A worker that stalls on a busy machine blames the device it was at for a while.
		if len(m.Members) != 1 || len(m.Members[0].Hot) != 1 {
			return fmt.Errorf("not one device is named after %d rounds: %+v", round, m)
		}
		return nil
	})
	hot := m.Members[0].Hot[0]
	require.Equal(t, servicetest.IMEI, hot.Device)
	require.Equal(t, telemetry.ShardOf(servicetest.IMEI, 4), hot.Shard)
	require.InDelta(t, .5, hot.Share, .15)

	named := fmt.Sprintf("device %s on shard %d costs it", servicetest.IMEI, hot.Shard)
	say := func(command string) string {
		p := servicetest.Spawn(t, dep.Environ(), command)
		require.Equal(t, fault.Clean, p.Exit(30*time.Second), p.Errors())
		return p.Output()
	}
	require.Contains(t, say("members"), named)
	require.Contains(t, say("top"), "hot: ")
	var g console.Glance
	dep.Ask(fault.Clean, &g, "top")
	require.Len(t, g.Hot, 1)
	require.Contains(t, g.Hot[0], named)
	page, err := http.Get("http://" + one.Addr() + "/console/")
	require.NoError(t, err)
	defer page.Body.Close()
	html, err := io.ReadAll(page.Body)
	require.NoError(t, err)
	require.Contains(t, string(html), named)
	_, d := examined(dep)
	require.Equal(t, operator.LevelWarning, d.has(named), "%+v", d.Findings)
}
