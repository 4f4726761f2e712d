package loadtest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

// outageAfter is a stream that does not answer for a while.
type outageAfter struct {
	from, to time.Time
	n        uint64
}

func (o *outageAfter) Publish(_ context.Context, entries [][]string) ([]telemetry.EntryID, error) {
	if now := time.Now(); now.After(o.from) && now.Before(o.to) {
		return nil, &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("connection refused")}
	}
	ids := make([]telemetry.EntryID, len(entries))
	for i := range ids {
		o.n++
		ids[i] = telemetry.EntryID{Ms: o.n}
	}
	return ids, nil
}

func (*outageAfter) ReadRange(context.Context, telemetry.EntryID, int) ([]telemetry.Entry, error) {
	return nil, nil
}

// An outage in the middle is made up for; one that lasts ends the sending, which
// says how much of the plan is missing. Neither floods the log.
func TestSendEndsWithItsDurationThoughRedisDoesNotAnswer(t *testing.T) {
	cfg := SendConfig{Seed: 1, Plan: scenarios.Plan{Devices: 10, Rate: 100, Duration: 30 * time.Second, Profile: scenarios.ProfileSteady}}
	for name, tt := range map[string]struct {
		outage time.Duration
		takes  time.Duration
		sent   int64
		warned int
		err    bool
	}{
		"outage":       {outage: 15 * time.Second, takes: 30 * time.Second, sent: 3000, warned: 2},
		"never again":  {outage: time.Hour, takes: 40 * time.Second, sent: 1000, warned: 3, err: true},
		"just in time": {outage: 29 * time.Second, takes: 39 * time.Second, sent: 3000, warned: 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log, sendLog bytes.Buffer
				cfg := cfg
				cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
				began := time.Now()
				stream := &outageAfter{from: began.Add(10 * time.Second), to: began.Add(10*time.Second + tt.outage)}
				sent, err := send(t.Context(), cfg, stream, stream, &sendLog)
				require.InDelta(t, tt.takes.Seconds(), time.Since(began).Seconds(), .3)
				require.InDelta(t, tt.sent, sent.Sent, 15)
				require.Equal(t, tt.warned, strings.Count(log.String(), "publish failed, will retry"), log.String())
				if !tt.err {
					require.NoError(t, err)
				} else {
					require.Regexp(t, `^(1,99\d|2,0\d\d) entries of the plan were not sent`, err.Error())
				}
			})
		})
	}
}

// Without an entry there is nothing to verify.
func TestSendThatEndsBeforeItsFirstEntryIsAnError(t *testing.T) {
	t.Parallel()
	cfg := SendConfig{
		Seed: 1, Log: slog.New(slog.DiscardHandler),
		Plan: scenarios.Plan{Devices: 10, Rate: 100, Duration: time.Minute, Profile: scenarios.ProfileSteady},
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	stream := &outageAfter{}
	sent, err := send(ctx, cfg, stream, stream, &bytes.Buffer{})
	require.Zero(t, sent.Sent)
	require.ErrorContains(t, err, "nothing was sent")
}
