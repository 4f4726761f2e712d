package history

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

const (
	// LiveLimit is the maximum number of devices that a member publishes per second.
	LiveLimit = 2000
	// watchedFor is how long a member publishes after it was asked to.
	watchedFor = 5 * time.Second
)

// Move is where a device was last committed: ID, latitude, longitude, device time
// in Unix milliseconds and speed.
type Move struct {
	Device   string
	Lat, Lon float64
	At       int64
	Speed    float32
}

// MarshalJSON writes a move as an array.
func (m Move) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{m.Device, m.Lat, m.Lon, m.At, m.Speed})
}

// UnmarshalJSON reads the array.
func (m *Move) UnmarshalJSON(text []byte) error {
	if err := json.Unmarshal(text, &[]any{&m.Device, &m.Lat, &m.Lon, &m.At, &m.Speed}); err != nil {
		return fmt.Errorf("read a move: %w", err)
	}
	return nil
}

// Moves is what a member committed within a second: the newest of each device, and
// how many devices were left out.
type Moves struct {
	Moves   []Move `json:"m"`
	Dropped int    `json:"d"`
}

// Feed collects what a member commits while somewhere a live map is shown, the
// newest of each device; nothing otherwise. It is safe for concurrent use.
type Feed struct {
	mu      sync.Mutex
	until   time.Time // watched
	moves   map[string]Move
	dropped int
	wake    chan struct{}
}

// NewFeed returns a feed that nobody watches.
func NewFeed() *Feed { return &Feed{wake: make(chan struct{}, 1)} }

// Watch has the feed collect for some seconds.
func (f *Feed) Watch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until = time.Now().Add(watchedFor); f.moves == nil {
		f.moves = make(map[string]Move)
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Watched reports whether it collects. Woken receives when that begins.
func (f *Feed) Watched() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.moves != nil
}

// Woken is signalled by Watch.
func (f *Feed) Woken() <-chan struct{} { return f.wake }

// Add adds a commit. each calls its argument with the moves.
func (f *Feed) Add(each func(add func(Move))) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.moves == nil {
		return
	}
	each(func(m Move) {
		before, there := f.moves[m.Device]
		switch {
		case there && before.At > m.At:
		case !there && len(f.moves) >= LiveLimit:
			f.dropped++
		default:
			f.moves[m.Device] = m
		}
	})
}

// Take returns what was collected; ok is false once nobody watches.
func (f *Feed) Take() (out Moves, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().After(f.until) {
		f.moves, f.dropped = nil, 0
		return out, false
	}
	for _, m := range f.moves {
		out.Moves = append(out.Moves, m)
	}
	out.Dropped = f.dropped
	clear(f.moves)
	f.dropped = 0
	return out, true
}
