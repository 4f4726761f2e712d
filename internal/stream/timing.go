package stream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
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
	fleet  string // written into each entry
	most   int64
}

// NewTimingStream returns the stream of a fleet, named by its stream and group, that keeps
// at least most entries, and not many more.
func NewTimingStream(client redis.UniversalClient, key, stream, group string, most int64) *TimingStream {
	return &TimingStream{client: client, key: key, fleet: stream + " " + group, most: most}
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
		return "", p, s.mustBeFree(ctx)
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
		return "", p, s.foreign(fmt.Sprintf("its last entry %s is no change of a crossing", found[0].ID))
	}
	if of := text("fleet"); of != "" && of != s.fleet { // earlier versions did not say
		return "", p, s.foreign(fmt.Sprintf("the fleet %q publishes there", of))
	}
	return found[0].ID, p, nil
}

// mustBeFree returns an error if the key, which has no entry, is a stream with consumer
// groups: one that another program reads its work from, before it has any.
func (s *TimingStream) mustBeFree(ctx context.Context) error {
	groups, err := s.client.XInfoGroups(ctx, s.key).Result()
	switch {
	case err != nil && strings.Contains(err.Error(), "no such key"):
		return nil
	case err != nil:
		return s.failure("look for its consumer groups", err)
	case len(groups) > 0:
		return s.foreign(fmt.Sprintf("it is empty and has the consumer group %q, so it is another program's", groups[0].Name))
	}
	return nil
}

func (s *TimingStream) foreign(why string) error {
	return &protocol.Failure{
		Kind: protocol.Misconfigured,
		Err:  fmt.Errorf("TIMING_STREAM %s is a foreign key: %s; name a stream that nobody else writes to", s.key, why),
	}
}

// Append adds changes behind the entry with an ID, "" for none, and returns the ID of the
// last one. It reports false, and adds nothing, if the stream does not end with that entry.
// After an error some may be there.
func (s *TimingStream) Append(ctx context.Context, after string, changes []protocol.TimingChange) (last string, ok bool, err error) {
	const perEntry = 18
	args := make([]any, 0, 3+perEntry*len(changes))
	args = append(args, after, s.most, perEntry)
	for i := range changes {
		c := &changes[i]
		args = append(args, "tx", c.Tx, "id", c.ID, "device_id", c.Device, "number", c.Number, "change", c.Change,
			"crossing", c.Crossing, "old", c.Old, "changed_at", c.At.UTC().Format(time.RFC3339Nano), "fleet", s.fleet)
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
