package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

// forbiddenFences is a table of fences that this role may not read.
type forbiddenFences struct{ err error }

func (f forbiddenFences) Version(context.Context) (int64, error) { return 0, f.err }

func (f forbiddenFences) Load(context.Context) (*protocol.Fences, []error, error) {
	return nil, nil, f.err
}

// What an operator has to fix is the cause for which the pipeline ends: at the
// start, and when the fences in force are refreshed.
func TestFencesThatCannotBeReadEndThePipelineWithTheCause(t *testing.T) {
	denied := &protocol.Failure{Kind: protocol.Misconfigured, Code: "42501", Err: errors.New("permission denied")}
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics(prometheus.NewRegistry(), &table{})
		log := slog.New(slog.DiscardHandler)

		start := &Pipeline{fences: newFences(forbiddenFences{denied}, time.Second, m, log)}
		require.ErrorIs(t, start.Run(t.Context(), t.Context()), denied, "at start")

		later := newFences(forbiddenFences{denied}, time.Second, m, log)
		later.present.Store(&protocol.Fences{})
		require.ErrorIs(t, later.run(t.Context()), denied, "in the background")

		ended, end := context.WithCancel(t.Context())
		end()
		require.NoError(t, later.run(ended), "an orderly end is no failure")
		require.NoError(t, (&Pipeline{fences: later}).Run(ended, ended))
	})
}

// replacedFences are those of a server that is replaced while they are read first.
type replacedFences struct {
	loads    int
	replaced func()
}

func (*replacedFences) Version(context.Context) (int64, error) { return 7, nil }

func (f *replacedFences) Load(context.Context) (*protocol.Fences, []error, error) {
	if f.loads++; f.loads == 1 {
		f.replaced()
	}
	return &protocol.Fences{Version: 7, Versions: []int{f.loads}}, nil, nil
}

func TestP5FencesReadWhileTheServerIsReplacedAreReadAgain(t *testing.T) {
	loader := &replacedFences{}
	f := newFences(loader, time.Second, newMetrics(prometheus.NewRegistry(), &table{}), slog.New(slog.DiscardHandler))
	loader.replaced = f.forget
	require.NoError(t, f.refresh(t.Context()))
	require.Equal(t, []int{2}, f.now().Versions)
	require.NoError(t, f.refresh(t.Context()))
	require.Equal(t, 2, loader.loads, "the version is known")
}
