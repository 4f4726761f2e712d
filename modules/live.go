package modules

import (
	"context"
	"time"

	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/pipeline"
)

// liveSink passes what was committed to the live maps, while there are any.
type liveSink struct {
	pipeline.Sink
	feed *history.Feed
}

// Write commits a batch.
func (s liveSink) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	result, err := s.Sink.Write(ctx, b)
	if err == nil {
		s.feed.Add(func(add func(history.Move)) {
			for i := range b.Fresh {
				r := &b.Fresh[i]
				add(history.Move{Device: r.DeviceID, Lat: r.Latitude, Lon: r.Longitude, At: r.TimeUS / 1000, Speed: r.Speed})
			}
		})
	}
	return result, err
}

// publishLive publishes what the feed collects every history.LiveEvery, and waits while
// nobody watches. What cannot be published is dropped.
func publishLive(feed *history.Feed, group *stream.Group) run {
	return func(ctx context.Context) error {
		tick := time.NewTicker(history.LiveEvery)
		defer tick.Stop()
		for {
			tick.Stop()
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-feed.Woken():
			}
			tick.Reset(history.LiveEvery)
			for {
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case <-tick.C:
				}
				moves, watched := feed.Take()
				if !watched {
					break
				}
				if len(moves.Moves) == 0 {
					continue
				}
				_ = group.PublishLive(ctx, moves.Text()) // a picture for people: the next one follows
			}
		}
	}
}
