// Package e2e_test has the processor, as processes of its own, go through what
// happens to a deployment: load, crashes, outages, fail-overs.
package e2e_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/demo"
	"github.com/trmtracking/processor/loadtest/fleet"
)

func TestMain(m *testing.M) { servicetest.Main(m, nil) }

// rally is a small fleet with everything that happens to trackers.
func rally(t *testing.T, devices int, length time.Duration, speed float64) *demo.Load {
	t.Helper()
	const seed = 20260117
	t.Logf("fleet seed %d", seed)
	profile := fleet.Rally(seed)
	profile.Devices, profile.Duration = devices, length
	load, err := demo.NewLoad("rally", speed, func() (fleet.Source, error) { return profile.Source() })
	require.NoError(t, err)
	return load
}

// feed sends a load, waits until the service has done it, and judges. show is
// called meanwhile with the progress.
func feed(dep *servicetest.Deployment, load *demo.Load, show func(demo.Snapshot)) *demo.Result {
	dep.T.Helper()
	result, err := demo.Run(dep.T.Context(), demo.Config{
		RedisURL: dep.RedisURL, PostgresURL: dep.PostgresURL, Stream: dep.Stream, Group: dep.Group,
		Load: load, Metrics: prometheus.NewRegistry(), Show: show, Every: 50 * time.Millisecond, StallLimit: 40 * time.Second,
	}, slog.New(slog.NewTextHandler(dep.T.Output(), nil)))
	require.NoError(dep.T, err)
	return result
}

func requireGood(dep *servicetest.Deployment, r *demo.Result) {
	dep.T.Helper()
	require.True(dep.T, r.Good(), "%+v\n%v", r.Account, r.Findings)
	require.Positive(dep.T, r.Account.Stored)
}

// lagReport is the part of `lag --json` that these tests look at.
type lagReport struct {
	Lost    *int64 // null when unknown
	Backlog *int64
	Losses  []struct {
		Cause   string
		First   *string
		Last    *string
		Entries *int64
	}
	Incidents []struct{ Kind string }
}

// awaitNoBacklog waits until `lag` says that everything is acknowledged, a moment
// after it is stored, and returns what else it says.
func awaitNoBacklog(dep *servicetest.Deployment) (l lagReport) {
	dep.T.Helper()
	testenv.Wait(dep.T, 40*time.Second, func() error {
		l = lagReport{}
		dep.Ask(0, &l, "lag")
		if l.Backlog == nil || *l.Backlog != 0 {
			return fmt.Errorf("want no backlog, have %+v", l)
		}
		return nil
	})
	return l
}

// traceReport is the part of `trace --json` that these tests look at.
type traceReport struct {
	Entries []struct{ ID string }
	Losses  []struct{ Cause string }
}

func traceDevice(dep *servicetest.Deployment) (r traceReport) {
	dep.T.Helper()
	dep.Ask(0, &r, "trace", servicetest.IMEI)
	return r
}

// diagnosis is what `doctor --json` writes.
type diagnosis struct {
	Findings []struct{ Level, About, What string }
}

func diagnose(dep *servicetest.Deployment) (d diagnosis) {
	dep.T.Helper()
	dep.Ask(0, &d, "doctor")
	return d
}

// level is that of the first finding that contains a text.
func (d diagnosis) level(text string) string {
	for _, f := range d.Findings {
		if strings.Contains(f.About+": "+f.What, text) {
			return f.Level
		}
	}
	return "none"
}

// deviceReport is the part of `device show --json` that these tests look at.
type deviceReport struct {
	Undispatched, Pending *int64
	DeadLetters           *int64 `json:"dead_letters"`
}
