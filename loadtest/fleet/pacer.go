package fleet

import "time"

// Pacer decides when an item is due, as time since the beginning of the run.
// It looks at the item and at nothing that happens, so a slow system finds
// more and more due instead of less to do.
type Pacer interface {
	// Due is when the item of the given number, counted from 0, is due; at is
	// its place on the source's own timeline.
	Due(at time.Duration, number int) time.Duration
}

// AtSpeed sends a source at a multiple of its own speed. 0 means as fast as
// possible.
type AtSpeed float64

// Due implements Pacer.
func (s AtSpeed) Due(at time.Duration, _ int) time.Duration {
	if s <= 0 {
		return 0
	}
	return time.Duration(float64(at) / float64(s))
}

// AtRate sends a fixed number of entries a second, whatever the timeline of the
// source says.
type AtRate float64

// Due implements Pacer.
func (r AtRate) Due(_ time.Duration, number int) time.Duration {
	if r <= 0 {
		return 0
	}
	return time.Duration(float64(number) / float64(r) * float64(time.Second))
}
