package history

import (
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// LiveEvery is the interval in which members publish, and live maps move.
	LiveEvery = 2 * time.Second
	// LiveLimit is the maximum number of devices that a member publishes at a time.
	LiveLimit = 2000
	// watchedFor is how long a member publishes after it was asked to.
	watchedFor = 3 * LiveEvery
)

// Move is where a device was last committed: ID, latitude, longitude, device time
// in Unix milliseconds and speed.
type Move struct {
	Device   string
	Lat, Lon float64
	At       int64
	Speed    float32
}

// Moves is what a member committed within LiveEvery: the newest of each device, and
// how many devices were left out.
type Moves struct {
	Moves   []Move
	Dropped int
}

// Text is for ReadMoves: a line with what was left out, and one for each move.
func (m *Moves) Text() string {
	b := append(strconv.AppendInt(nil, int64(m.Dropped), 10), '\n')
	for i := range m.Moves {
		x := &m.Moves[i]
		b = append(strconv.AppendFloat(b, x.Lat, 'f', 6, 64), ' ')
		b = append(strconv.AppendFloat(b, x.Lon, 'f', 6, 64), ' ')
		b = append(strconv.AppendInt(b, x.At, 10), ' ')
		b = append(strconv.AppendFloat(b, float64(x.Speed), 'f', 0, 32), ' ')
		b = append(strconv.AppendQuote(b, x.Device), '\n')
	}
	return string(b)
}

// ReadMoves passes on what Text wrote: of each move its device, and its place, which is
// latitude, longitude, device time and speed as text with spaces between them. All members
// with a live map read what all members write, and only browsers need the numbers: so that
// this is cheap, it does not look at them. Lines that are no moves are skipped. It returns
// how many devices were left out.
func ReadMoves(text string, each func(device, place string)) (dropped int) {
	first, text, _ := strings.Cut(text, "\n")
	dropped, _ = strconv.Atoi(first) // 0 of other text
	n := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		at := strings.IndexByte(line, '"')
		if n == LiveLimit || at < 1 {
			continue
		}
		if device, err := strconv.Unquote(line[at:]); err == nil {
			each(device, strings.TrimSuffix(line[:at], " "))
			n++
		}
	}
	return dropped
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
