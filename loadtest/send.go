package loadtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/scenarios"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// SendConfig says what to send to a system that runs already.
type SendConfig struct {
	RedisURL string
	Stream   string
	MaxLen   int64  // of the stream, as the ingest trims it; 0 means never
	SendLog  string // file, which does not exist yet
	Plan     scenarios.Plan
	Seed     uint64
	Log      *slog.Logger
}

// Check returns the problems that no retry can fix.
func (c SendConfig) Check() error {
	p := c.Plan
	p.Instances = 1 // ours are none
	_, err := p.Fleet(c.Seed, 0, p.Duration)
	return errors.Join(p.Check(), err, testbed.CheckRedis(c.RedisURL))
}

// sendGrace is how long sending may continue after its duration, to make up for an
// outage.
const sendGrace = 10 * time.Second

// settleTimeout bounds the search for entries whose reply was lost, which reads all
// that was added since.
const settleTimeout = 2 * time.Minute

// runsBegan is when runs began to have devices of their own, a million each second.
var runsBegan = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// firstDevice is the number of the first device of a run: what another run sent to
// the same system is none of its business.
func firstDevice(start time.Time) int {
	const numbers = 64_000_000 // of runs, until the IMEIs are all used
	return int(1+start.Sub(runsBegan)/time.Second%numbers) * 1_000_000
}

// Send sends a fleet to a stream that others read, and records what it sent. A
// Redis that does not answer at the start is an error, and there is no send log
// then; later outages are waited for until the duration and sendGrace are over.
// A context that ends in the middle is no error, unless nothing was sent by then.
func Send(ctx context.Context, cfg SendConfig) (_ fleet.Progress, err error) {
	if err := cfg.Check(); err != nil {
		return fleet.Progress{}, err
	}
	where := stream.Config{URL: cfg.RedisURL, Stream: cfg.Stream, Group: "loadtest", Shards: 1, Timeout: testbed.ServerTimeout, Name: "loadtest"}
	client, err := stream.Connect(where)
	if err != nil {
		return fleet.Progress{}, fmt.Errorf("connect to Redis: %w", err)
	}
	defer func() { _ = client.Close() }()
	reader, err := stream.NewGroup(client, where)
	if err != nil {
		return fleet.Progress{}, fmt.Errorf("connect to Redis: %w", err)
	}
	if err := client.Ping(ctx).Err(); err != nil {
		return fleet.Progress{}, fmt.Errorf("nothing was sent, Redis (--redis-url) does not answer: %w", err)
	}
	file, err := os.OpenFile(cfg.SendLog, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fleet.Progress{}, fmt.Errorf("make the send log: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	sent, err := send(ctx, cfg, fleet.NewPublisher(client, cfg.Stream, cfg.MaxLen), reader, file)
	if err != nil && sent.Sent == 0 {
		err = errors.Join(err, os.Remove(cfg.SendLog)) // it would be in the way of the next attempt
	}
	return sent, err
}

func send(ctx context.Context, cfg SendConfig, to fleet.Publisher, reader fleet.Reader, sendLog io.Writer) (fleet.Progress, error) {
	profile, err := cfg.Plan.Fleet(cfg.Seed, 0, cfg.Plan.Duration)
	if err != nil {
		return fleet.Progress{}, err
	}
	// Device times of now: what a system has stored before is older.
	profile.Start = time.Now().UTC().Truncate(time.Second)
	profile.First = firstDevice(profile.Start)
	source, err := profile.Source()
	if err != nil {
		return fleet.Progress{}, err
	}
	writer, err := fleet.NewLogWriter(sendLog)
	if err != nil {
		return fleet.Progress{}, err
	}
	sender, err := fleet.NewSender(fleet.DefaultSenderConfig(), source, fleet.AtSpeed(1), to, writer, cfg.Log)
	if err != nil {
		return fleet.Progress{}, err
	}
	sending, stop := context.WithTimeout(ctx, cfg.Plan.Duration+sendGrace)
	defer stop()
	err = sender.Run(sending)
	if err == nil {
		settling, stop := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer stop()
		_, err = sender.Settle(settling, reader)
		if n := sender.Unsent(); n > 0 && ctx.Err() == nil {
			err = errors.Join(fmt.Errorf("%s entries of the plan were not sent, or Redis did not answer for them, within %s and %s more",
				cli.Thousands(int64(n)), cfg.Plan.Duration, sendGrace), err)
		}
	}
	sent := sender.Progress()
	if err == nil && sent.Sent == 0 {
		err = errors.New("nothing was sent before this was ended, so that there is no send log")
	}
	return sent, errors.Join(err, writer.Flush())
}
