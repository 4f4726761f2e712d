package operator

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/store"
)

// Resized is the outcome of a change of the number of shards.
type Resized struct {
	Stream  string  `json:"stream,omitempty"` // of several
	From    int     `json:"from"`
	To      int     `json:"to"`
	Changed bool    `json:"changed"`
	Seconds float64 `json:"seconds"`
}

// Resize changes the number of shards: it pauses dispatch, waits until the queues
// are empty and the instances stopped, and tells onProgress what it waits for.
// Nothing is changed before that; run again, it finishes what was interrupted.
func (f *Fleet) Resize(ctx context.Context, to int, onProgress func(waiting string)) (Resized, error) {
	return f.resize(ctx, to, onProgress, nil)
}

// ResizeAll is Resize of several streams that the same instances serve: none is changed before
// all are drained and the instances are stopped.
func ResizeAll(ctx context.Context, fleets []*Fleet, to int, onProgress func(waiting string)) ([]Resized, error) {
	together := &coordination.ResizeTogether{OnProgress: onProgress}
	for _, f := range fleets {
		if _, _, err := f.changeable(ctx); err != nil { // before dispatch is paused anywhere
			return nil, fmt.Errorf("stream %s: %w", f.scope.Stream, err)
		}
		together.Add(f.scope.Stream)
	}
	all := make([]Resized, len(fleets))
	g, ctx := errgroup.WithContext(ctx)
	for i, f := range fleets {
		g.Go(func() (err error) {
			all[i], err = f.resize(ctx, to, nil, together)
			all[i].Stream = f.scope.Stream
			if err != nil {
				return fmt.Errorf("stream %s: %w", f.scope.Stream, err)
			}
			together.Done(f.scope.Stream)
			return nil
		})
	}
	return all, g.Wait()
}

func (f *Fleet) resize(ctx context.Context, to int, onProgress func(waiting string), together *coordination.ResizeTogether) (Resized, error) {
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
		Together: together, Name: f.scope.Stream,
	}
	r.Changed, err = resize.Run(ctx, to)
	r.Seconds = time.Since(began).Seconds()
	return r, err
}
