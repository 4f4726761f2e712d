package fleet

import (
	"fmt"
	"slices"
	"time"
)

// Order is the order in which recorded fixes are sent.
type Order string

// The orders of a replay.
const (
	OrderTime Order = "time" // by device time, all devices interleaved
	OrderFile Order = "file" // as in the files, where a device may go back in time
)

// ParseOrder reads the name of an order.
func ParseOrder(s string) (Order, error) {
	if o := Order(s); o == OrderTime || o == OrderFile {
		return o, nil
	}
	return "", fmt.Errorf("order %q: want %s or %s", s, OrderTime, OrderFile)
}

// Replay is recorded tracks as a source. A fix is due when as much time has
// passed since the beginning of the run as lies between it and the first fix
// sent; one that goes back in time is due with the one before it. Long
// silences, in which no device reports, are cut to MaxSilence.
type Replay struct {
	fixes  []Message
	next   int
	at     time.Duration
	newest time.Time
}

// MaxSilence is the longest time in a replay in which nothing is due: data sets
// hold days that lie years apart.
const MaxSilence = time.Minute

// Replay makes a source of the tracks. Several can be made of the same tracks.
func (t *Tracks) Replay(order Order) *Replay {
	fixes := t.fixes
	if order == OrderTime {
		fixes = slices.Clone(fixes)
		slices.SortStableFunc(fixes, func(a, b Message) int { return a.Time.Compare(b.Time) })
	}
	r := &Replay{fixes: fixes}
	if len(fixes) > 0 {
		r.newest = fixes[0].Time
	}
	return r
}

// Next implements Source.
func (r *Replay) Next() (Item, bool) {
	if r.next == len(r.fixes) {
		return Item{}, false
	}
	m := r.fixes[r.next]
	r.next++
	if step := m.Time.Sub(r.newest); step > 0 {
		r.newest = m.Time
		r.at += min(step, MaxSilence)
	}
	return Item{At: r.at, Message: m}, true
}
