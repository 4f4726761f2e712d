package console

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// scans are questions that take long, and end with their context.
type scans struct {
	mu sync.Mutex
	scanned
}

type scanned struct{ running, most, ended, n int }

func (s *scans) seen() scanned {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scanned
}

func (s *scans) ask(takes time.Duration) func(ctx context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		s.mu.Lock()
		s.n++
		s.running++
		s.most = max(s.most, s.running)
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.running--
			s.ended++
		}()
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(takes):
			return 7, nil
		}
	}
}

func TestHoweverManyFiltersOneIsAskedForAtATimeAndNoneThatNobodyWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked scans
		l := newLanes()
		of := []*selections[int]{{turn: l.lists}, {turn: l.lists}} // of two lists, or streams
		began := time.Now()
		var readers sync.WaitGroup
		for i := range 50 {
			for _, s := range of {
				readers.Go(func() {
					r := s.get(strconv.Itoa(i), time.Second, scanFor, asked.ask(time.Minute)).get(t.Context())
					if !r.Stale() || r.Known() {
						t.Errorf("a reader of %d was told %v", i, r)
					}
				})
			}
		}
		readers.Wait()
		require.LessOrEqual(t, time.Since(began), maxWait, "the page answers meanwhile")
		require.Equal(t, 1, asked.seen().most)
		for _, s := range of {
			require.Len(t, s.byID, maxSelections)
			require.Len(t, s.used, maxSelections)
		}
		<-time.After(watchedFor)
		synctest.Wait()
		now := asked.seen()
		require.Equal(t, 1, now.most)
		require.Zero(t, now.running, "nobody asked again")
		require.Equal(t, now.n, now.ended)
		require.Less(t, now.n, 50, "what was crowded out before its turn is not asked for")
	})
}

func TestAQuestionThatIsWatchedEndsAndOneThatIsCrowdedOutDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var long, crowd scans
		s := selections[int]{turn: newLanes().lists}
		watch := func() reading[int] {
			return s.get("watched", time.Hour, scanFor, long.ask(time.Minute)).get(t.Context())
		}
		require.Equal(t, errSlow, watch().Err)
		for i := range 30 { // others crowd out each other, not what is watched
			for n := range 10 {
				s.get(strconv.Itoa(10*i+n), time.Second, scanFor, crowd.ask(time.Minute))
			}
			require.Equal(t, errSlow, watch().Err)
		}
		for !watch().Known() {
		}
		require.Equal(t, reading[int]{Value: 7, At: watch().At}, watch())
		require.Equal(t, 1, long.seen().n)

		require.Equal(t, errSlow, s.get("a", time.Second, scanFor, crowd.ask(time.Minute)).get(t.Context()).Err)
		waits := s.get("b", time.Second, scanFor, crowd.ask(time.Minute))
		require.Equal(t, errBusy, waits.get(t.Context()).Err)
		require.Equal(t, 1, crowd.seen().running)
		for i := range maxSelections {
			s.get("of another "+strconv.Itoa(i), time.Second, scanFor, nil)
		}
		synctest.Wait()
		require.Zero(t, crowd.seen().running, "nobody can ask for it again")
		require.LessOrEqual(t, crowd.seen().n, 2, "the one that waited may have had its turn before it was crowded out, too")
		s.forget()
	})
}

func TestWhatAPageDoesNotReadOfItsAddressIsWatchedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []string
		c := &Console{root: Root, hub: newHub()}
		c.templates = templatesOf(Root)
		p := &page{path: "map/", every: time.Second, reads: []string{"span"}, data: func(_ context.Context, r *http.Request) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, r.URL.RawQuery)
			return nil, nil
		}}
		c.pages = map[string]*page{p.path: p}
		for _, query := range []string{"x=1&span=5m0s", "span=5m0s&x=2", "span=5m0s&span=1h", "span=20m0s"} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, Root+"events/map/?"+query, nil)
			r.SetPathValue("page", p.path)
			go c.serveEvents(watching{httptest.NewRecorder()}, r)
		}
		synctest.Wait()
		require.Equal(t, 4, c.hub.count())
		require.Len(t, c.hub.topics, 2)
		mu.Lock()
		defer mu.Unlock()
		require.ElementsMatch(t, []string{"span=5m0s", "span=20m0s"}, seen)
	})
}

// watching is a client that reads.
type watching struct{ *httptest.ResponseRecorder }

func (watching) SetWriteDeadline(time.Time) error { return nil }
