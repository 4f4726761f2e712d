package tasks

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/coordination"
)

// refusals is a Redis that refuses with a code, and the incidents that are open.
type refusals struct {
	coordination.Ledger
	code string
	open []string
}

func (r *refusals) Refuses(context.Context) (string, error) { return r.code, nil }

func (r *refusals) Opened(context.Context, string) ([]string, error) {
	return slices.Clone(r.open), nil
}

func (r *refusals) Open(_ context.Context, _, subject string, _ map[string]any) error {
	r.open = append(r.open, subject)
	return nil
}

func (r *refusals) Close(_ context.Context, _, subject string) error {
	r.open = slices.DeleteFunc(r.open, func(s string) bool { return s == subject })
	return nil
}

// Who looks only before and after the refusal closes what a member opened that is gone.
func TestAnyMemberClosesTheIncidentOfARedisThatAcceptsAgain(t *testing.T) {
	t.Parallel()
	both := &refusals{}
	member := func() *RedisRefuses {
		return NewRedisRefuses(both, both, time.Hour, discard(), prometheus.NewRegistry())
	}
	gone, stays := member(), member()
	require.NoError(t, stays.probeOnce(t.Context()))
	both.code = "OOM"
	require.NoError(t, gone.probeOnce(t.Context()))
	require.NoError(t, gone.probeOnce(t.Context()))
	require.Equal(t, []string{"OOM"}, both.open)
	both.code = ""
	require.NoError(t, stays.probeOnce(t.Context()))
	require.Empty(t, both.open)
}
