package console

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/operator"
)

const (
	// heardFor is how long a device counts as moving.
	heardFor = 15 * time.Minute
	// maxHeard bounds the devices that are counted.
	maxHeard = 50_000
)

// liveData is what the page of the live map shows.
type liveData struct {
	view
	Tiles string
}

func (c *Console) liveMap(ctx context.Context, _ *http.Request) (any, error) {
	return liveData{view: c.view(ctx, slowest), Tiles: c.cfg.Tiles}, nil
}

// following is the moves of all members while live maps are open.
type following struct {
	mu      sync.Mutex
	moves   map[string]history.Move
	heard   map[string]int64 // when each device last moved, Unix seconds
	dropped int
	ticks   int
}

// heardMoves adds what a member committed.
func (l *following) heardMoves(m history.Moves) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped += m.Dropped
	now := time.Now().Unix()
	for _, move := range m.Moves {
		if _, there := l.heard[move.Device]; there || len(l.heard) < maxHeard {
			l.heard[move.Device] = now
		}
		if _, there := l.moves[move.Device]; !there && len(l.moves) >= history.LiveLimit {
			l.dropped++
			continue
		}
		l.moves[move.Device] = move
	}
}

// take returns what moved since the last time, for the script of the live map.
func (l *following) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ticks++; l.ticks%30 == 0 {
		old := time.Now().Add(-heardFor).Unix()
		maps.DeleteFunc(l.heard, func(_ string, at int64) bool { return at < old })
	}
	b := append(make([]byte, 0, 100+80*len(l.moves)), `{"devices":[`...)
	first := len(b)
	for _, m := range l.moves {
		if len(b) > first {
			b = append(b, ',')
		}
		b = m.AppendJSON(b, visible(m.Device))
	}
	b = fmt.Appendf(b, `],"known":%d,"dropped":%d,"limit":%d,"ticks":%d}`, len(l.heard), l.dropped, history.LiveLimit, l.ticks)
	clear(l.moves)
	l.dropped = 0
	return string(b)
}

// follow listens to the members while the live map is open, and adds what moved to
// each state of the page.
func (c *Console) follow(ctx context.Context, render func(ctx context.Context) (update, error)) func(ctx context.Context) (update, error) {
	l := &following{moves: make(map[string]history.Move), heard: make(map[string]int64)}
	go func() { // ends with the last viewer
		for ctx.Err() == nil {
			_ = c.with(func(f *operator.Fleet) error { return f.Live(ctx, l.heardMoves) }) // the page says what does not answer
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return func(ctx context.Context) (update, error) {
		u, err := render(ctx)
		if err != nil {
			return nil, err
		}
		asking, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_ = c.with(func(f *operator.Fleet) error { return f.Watch(asking) }) // as above
		u["data:live"] = l.take()
		return u, nil
	}
}
