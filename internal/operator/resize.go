package operator

import (
	"context"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/store"
)

// Resized is the outcome of a change of the number of shards.
type Resized struct {
	From    int     `json:"from"`
	To      int     `json:"to"`
	Changed bool    `json:"changed"`
	Seconds float64 `json:"seconds"`
}

// Resize changes the number of shards: it pauses dispatch, waits until the queues
// are empty and the instances stopped, and tells onProgress what it waits for.
// Nothing is changed before that; run again, it finishes what was interrupted.
func (f *Fleet) Resize(ctx context.Context, to int, onProgress func(waiting string)) (Resized, error) {
	r := Resized{To: to}
	group, pinned, err := f.changeable(ctx)
	if err != nil {
		return r, err
	}
	r.From = pinned.Shards
	began := time.Now()
	resize := coordination.Resize{
		Store: f.shards(), Stream: group, Members: f.heartbeats,
		End: store.NewSessions(f.pool, askTimeout).End, Operator: f.by, OnProgress: onProgress,
	}
	r.Changed, err = resize.Run(ctx, to)
	r.Seconds = time.Since(began).Seconds()
	return r, err
}
