package stream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
)

//go:embed timing_publish.lua
var timingPublishSource string

var timingPublish = redis.NewScript(timingPublishSource)

// TimingStream is the stream on which changes of crossings are published. Its last entry
// is the only memory of what is there: it cannot be ahead of the stream, or behind it,
// also where Redis lost its newest entries.
type TimingStream struct {
	client redis.UniversalClient
	key    string
	most   int64
}

// NewTimingStream returns a stream that keeps at least most entries, and not many more.
func NewTimingStream(client redis.UniversalClient, key string, most int64) *TimingStream {
	return &TimingStream{client: client, key: key, most: most}
}

// Name returns the name of the stream.
func (s *TimingStream) Name() string { return s.key }

// Last returns the ID of the last entry, "" if there is none, and the position in the
// feed that it tells.
func (s *TimingStream) Last(ctx context.Context) (id string, p protocol.TimingPosition, err error) {
	found, err := s.client.XRevRangeN(ctx, s.key, "+", "-", 1).Result()
	if err != nil {
		return "", p, s.failure("read its last entry", err)
	}
	if len(found) == 0 {
		return "", p, nil
	}
	text := func(field string) string {
		v, _ := found[0].Values[field].(string)
		return v
	}
	var errs [3]error
	p.Tx, errs[0] = strconv.ParseInt(text("tx"), 10, 64)
	p.ID, errs[1] = strconv.ParseInt(text("id"), 10, 64)
	p.At, errs[2] = time.Parse(time.RFC3339Nano, text("changed_at"))
	if errors.Join(errs[:]...) != nil {
		return "", p, &protocol.Failure{
			Kind: protocol.Misconfigured,
			Err:  fmt.Errorf("TIMING_STREAM %s: its last entry %s is no change of a crossing; name a stream that nobody else writes to", s.key, found[0].ID),
		}
	}
	return found[0].ID, p, nil
}

// Append adds changes behind the entry with an ID, "" for none, and returns the ID of the
// last one. It reports false, and adds nothing, if the stream does not end with that entry.
// After an error some may be there.
func (s *TimingStream) Append(ctx context.Context, after string, changes []protocol.TimingChange) (last string, ok bool, err error) {
	const perEntry = 16
	args := make([]any, 0, 3+perEntry*len(changes))
	args = append(args, after, s.most, perEntry)
	for i := range changes {
		c := &changes[i]
		args = append(args, "tx", c.Tx, "id", c.ID, "device_id", c.Device, "number", c.Number, "change", c.Change,
			"crossing", c.Crossing, "old", c.Old, "changed_at", c.At.UTC().Format(time.RFC3339Nano))
	}
	last, err = timingPublish.Run(ctx, s.client, []string{s.key}, args...).Text()
	if errors.Is(err, redis.Nil) {
		return "", false, nil
	}
	return last, err == nil, s.failure("append to it", err)
}

// failure names the setting where the key is at fault.
func (s *TimingStream) failure(op string, err error) error {
	err = failure(op, err)
	f, ok := errors.AsType[*protocol.Failure](err)
	switch {
	case !ok:
		return err
	case f.Code == "WRONGTYPE":
		f.Err = fmt.Errorf("TIMING_STREAM %s: the key is not a stream; name another, or remove it", s.key)
	default:
		f.Err = fmt.Errorf("TIMING_STREAM %s: %w", s.key, f.Err)
	}
	return f
}
