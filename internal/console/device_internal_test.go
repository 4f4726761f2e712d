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

	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
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
