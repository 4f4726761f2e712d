package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

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
// all are drained and the instances are stopped. From then on one that fails ends no other.
func ResizeAll(ctx context.Context, fleets []*Fleet, to int, onProgress func(waiting string)) ([]Resized, error) {
	together := &coordination.ResizeTogether{OnProgress: onProgress}
	from := make([]int, len(fleets))
	for i, f := range fleets {
		_, pinned, err := f.changeable(ctx)
		if err != nil { // before dispatch is paused anywhere
			return nil, fmt.Errorf("stream %s: %w", f.scope.Stream, err)
		}
		from[i] = pinned.Shards
		together.Add(f.scope.Stream)
	}
	all, failed := make([]Resized, len(fleets)), make([]error, len(fleets))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var g sync.WaitGroup
	for i, f := range fleets {
		g.Go(func() {
			var err error
			all[i], err = f.resize(ctx, to, nil, together)
			all[i].Stream = f.scope.Stream
			if err == nil {
				together.Done(f.scope.Stream)
				return
			}
			failed[i] = fmt.Errorf("stream %s: %w", f.scope.Stream, err)
			if together.Fail() {
				stop()
			}
		})
	}
	g.Wait()
	return all, errors.Join(append(failed, halfResized(all, failed, from))...)
}

// halfResized says what is to be done where some of the streams were changed: no instance
// serves streams of two numbers.
func halfResized(all []Resized, failed []error, from []int) error {
	var changed, left []string
	var start string
	for i, r := range all {
		if failed[i] == nil {
			changed = append(changed, r.Stream)
			continue
		}
		left = append(left, r.Stream)
		start += fmt.Sprintf("; if it waits for what %s has to do, start an instance with REDIS_TELEMETRY_STREAM=%s SHARDS=%d meanwhile", r.Stream, r.Stream, from[i])
	}
	if len(changed) == 0 || len(left) == 0 {
		return nil
	}
	return fmt.Errorf("changed: %s; not changed: %s: run it again for the rest%s", strings.Join(changed, ", "), strings.Join(left, ", "), start)
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
