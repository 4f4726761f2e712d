package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/config"
)

// The states of a stream.
const (
	StreamServed    = "served"     // a member has it in its list
	StreamNotServed = "not_served" // none has, and not all of it is known to be done
	StreamDrained   = "drained"    // none has, and all of it is done
	StreamRemoved   = "removed"    // it was removed, and the ledger tells what it lost before
)

// StreamStatus is how one stream of the database stands. Nil is unknown.
type StreamStatus struct {
	Stream  string `json:"stream"`
	Group   string `json:"group"`
	Listed  bool   `json:"listed"` // in REDIS_TELEMETRY_STREAM here
	State   string `json:"state"`
	Members *int   `json:"members"`
	Shards  *int   `json:"shards"`
	Backlog *int64 `json:"backlog"`
	Devices *int64 `json:"devices"` // that came from it last
	Lost    *int64 `json:"lost"`    // entries in the ledger
}

// Streams is all streams that are listed or in the database.
type Streams struct {
	Streams []StreamStatus `json:"streams"`

	// Unanswered says why something is unknown; nil if all is known.
	Unanswered error `json:"-"`
}

// ListStreams returns the streams that cfg lists, and those that the database knows
// besides. It needs Postgres; what a stream does not tell is unknown.
func ListStreams(ctx context.Context, cfg config.Config, name, by string) (s Streams, err error) {
	list := cfg.PerStream()
	first, err := Open(ctx, list[0], name, by)
	if err != nil {
		return s, err
	}
	defer first.Close()
	l, err := first.lists(ctx)
	if err != nil {
		return s, err
	}
	known, err := l.Streams(ctx)
	if err != nil {
		return s, first.explained(err)
	}
	for i := range list {
		one := StreamStatus{Stream: list[i].Redis.Stream, Group: list[i].Redis.Group, Listed: true, Shards: new(int), Devices: new(int64)}
		s.Streams = append(s.Streams, one)
	}
	for _, k := range known {
		i := slices.IndexFunc(s.Streams, func(o StreamStatus) bool { return o.Stream == k.Stream && o.Group == k.Group })
		if i < 0 {
			i = len(s.Streams)
			other := cfg
			other.Redis = cfg.Redis.Of(k.Stream, k.Group)
			list = append(list, other)
			s.Streams = append(s.Streams, StreamStatus{Stream: k.Stream, Group: k.Group})
		}
		s.Streams[i].Shards, s.Streams[i].Devices = &k.Shards, &k.Devices
	}
	removed, err := l.RemovedStreams(ctx)
	if err != nil {
		return s, first.explained(err)
	}
	errs := make([]error, len(s.Streams))
	var asked errgroup.Group
	asked.SetLimit(streamsAtOnce)
	for i := range s.Streams {
		asked.Go(func() error { // a server that does not answer holds up no other stream
			if err := s.Streams[i].ask(ctx, list[i], name, by); err != nil {
				errs[i] = fmt.Errorf("stream %s: %w", s.Streams[i].Stream, err)
			}
			return nil
		})
	}
	_ = asked.Wait()
	for _, r := range removed { // Redis may know nothing of them, or have them for others
		if !slices.ContainsFunc(s.Streams, func(o StreamStatus) bool { return o.Stream == r.Stream && o.Group == r.Group }) {
			s.Streams = append(s.Streams, StreamStatus{
				Stream: r.Stream, Group: r.Group, State: StreamRemoved,
				Members: new(int), Shards: new(int), Backlog: new(int64), Devices: new(int64), Lost: r.Lost,
			})
		}
	}
	s.Unanswered = errors.Join(errs...)
	return s, nil
}

// streamsAtOnce is how many streams are asked together: each has connections of its own.
const streamsAtOnce = 8

// ask adds what Redis knows of the stream.
func (s *StreamStatus) ask(ctx context.Context, cfg config.Config, name, by string) error {
	s.State = StreamNotServed
	f, err := Open(ctx, cfg, name, by)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	there, err := f.heartbeats(ctx)
	if err != nil {
		return err
	}
	n := len(there)
	s.Members = &n
	if n > 0 {
		s.State = StreamServed
	}
	lag, err := f.Lag(ctx)
	if err != nil {
		return err
	}
	if lag.Unanswered != nil {
		return lag.Unanswered
	}
	s.Backlog, s.Lost = lag.Backlog, lag.Lost
	if n == 0 && s.Backlog != nil && *s.Backlog == 0 {
		s.State = StreamDrained
	}
	return nil
}
