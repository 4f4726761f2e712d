package console

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/cli"
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
	moves   map[string]string // the newest place of each device
	heard   map[string]int64  // when each device last moved, Unix seconds
	dropped int
	ticks   int
}

// hear adds what a member committed.
func (l *following) hear(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().Unix()
	l.dropped += history.ReadMoves(text, func(device, place string) {
		if _, there := l.heard[device]; there || len(l.heard) < maxHeard {
			l.heard[device] = now
		}
		if _, there := l.moves[device]; !there && len(l.moves) >= history.LiveLimit {
			l.dropped++
			return
		}
		l.moves[device] = place
	})
}

// liveMoves is what a script of the live map reads: in Moves a line for each device, with
// latitude, longitude, device time, speed and, up to its end, the ID.
type liveMoves struct {
	Moves   string `json:"moves"`
	Known   int    `json:"known"`
	Dropped int    `json:"dropped"`
	Limit   int    `json:"limit"`
	Ticks   int    `json:"ticks"`
}

// take returns what moved since the last time, for the script of the live map.
func (l *following) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ticks++; l.ticks%30 == 0 {
		old := time.Now().Add(-heardFor).Unix()
		maps.DeleteFunc(l.heard, func(_ string, at int64) bool { return at < old })
	}
	lines := make([]byte, 0, 80*len(l.moves))
	for device, place := range l.moves {
		lines = append(append(lines, place...), ' ')
		lines = append(append(lines, cli.VisibleLine(device)...), '\n')
	}
	text, _ := json.Marshal(liveMoves{string(lines), len(l.heard), l.dropped, history.LiveLimit, l.ticks}) // text and numbers always can be encoded
	clear(l.moves)
	l.dropped = 0
	return string(text)
}

// follow listens to the members while the live map is open, and adds what moved to
// each state of the page.
func (c *Console) follow(ctx context.Context, render func(ctx context.Context) (update, error)) func(ctx context.Context) (update, error) {
	l := &following{moves: make(map[string]string), heard: make(map[string]int64)}
	go func() { // ends with the last viewer
		for ctx.Err() == nil {
			_ = c.with(func(f *operator.Fleet) error { return f.Live(ctx, l.hear) }) // the page says what does not answer
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
