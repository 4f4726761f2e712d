package console

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// The fences of a map are large and those of each other map: they are asked for and kept
// once, and what one answer makes of them is not what another one is just reading.
func TestAllMapsShareTheFences(t *testing.T) {
	c := &Console{}
	asked := 0
	c.shapes = newCached(time.Hour, func(context.Context) ([]store.FenceShape, error) {
		asked++
		return []store.FenceShape{{ID: strings.Repeat("x", 500), Geometry: []byte("{}")}}, nil
	})
	for _, device := range []string{"one", "two"} {
		c.tracks.get(device+"\x00\x00", time.Hour, askFor, func(context.Context) (operator.TrackWindow, error) { return operator.TrackWindow{}, nil })
	}
	var readers sync.WaitGroup
	for _, device := range []string{"one", "two", "one", "two"} {
		readers.Go(func() {
			w := httptest.NewRecorder()
			c.serveTrack(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, Root+"track.json?device="+device, nil))
			if !strings.Contains(w.Body.String(), `"fences":[{"id":"xxx`) {
				t.Errorf("%d: %s", w.Code, w.Body)
			}
		})
	}
	readers.Wait()
	require.Equal(t, 1, asked)
}

func TestARequestThatFailsOrIsCancelledIsAnActionThatFailed(t *testing.T) {
	dep := servicetest.New(t)
	cfg, err := config.LoadServers(dep.Environ())
	require.NoError(t, err)
	f, err := operator.Open(t.Context(), cfg, "test", "test")
	require.NoError(t, err)
	defer f.Close()
	for i, state := range []string{"done", "failed", "cancelled"} {
		dep.Exec(`insert into processor.requests (id, stream, group_name, kind, shard, requested_by, state, finished_at, result)
overriding system value values ($1, $2, $3, 'recompute', 0, 'test', $4, now(), '{"error": "x"}')`, i+1, dep.Stream, dep.Group, state)
		j := &job{}
		err := awaitRequest(t.Context(), f, j, store.RequestStatus{ID: int64(i + 1)})
		require.Contains(t, j.lines, "state: "+state)
		if state == "done" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, state)
	}
}
