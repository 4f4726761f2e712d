package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/ceiling"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// Config says how to measure.
type Config struct {
	Processor string   // the program to run
	Env       []string // further variables of the instances, NAME=value
	Entries   int      // of a backlog
	Devices   int
	Rounds    int           // of ceiling, backlog, ceiling, backlog
	Rates     []float64     // of the steady load, records a second
	WarmUp    time.Duration // of the steady load, not measured
	Window    time.Duration // of the steady load, measured
	Streams   []int         // numbers of streams that share a backlog: these are measured instead of the rest
	Instances []int         // that drain it
	Cluster   bool          // the streams are on a Redis Cluster, spread over its masters
	Profile   string        // folder for profiles of the instances, empty for none
	Seed      uint64
	Dir       string    // for logs of the instances; must exist
	Notes     io.Writer // what is being done
	Log       *slog.Logger
}

// Check returns the problems that no retry can fix. The program to run may still be missing.
func (c Config) Check() error {
	switch {
	case c.Entries < 20_000 || c.Entries > 5_000_000:
		return fmt.Errorf("entries %d: want 20,000 to 5,000,000, fewer are done before a rate can be measured", c.Entries)
	case c.Devices < 1 || c.Devices > c.Entries:
		return fmt.Errorf("devices %d: want 1 to the number of entries, %d", c.Devices, c.Entries)
	case c.Rounds < 1:
		return fmt.Errorf("rounds %d: want at least 1", c.Rounds)
	case (c.Cluster || len(c.Instances) > 0) && len(c.Streams) == 0:
		return errors.New("--instances and --cluster are of --streams: say how many there are, such as --streams 1,2,4,8")
	case slices.ContainsFunc(c.Streams, func(n int) bool { return n < 1 || n > 16 }):
		return fmt.Errorf("streams %v: want 1 to 16 each", c.Streams)
	case slices.ContainsFunc(c.Instances, func(n int) bool { return n < 1 || n > 8 }):
		return fmt.Errorf("instances %v: want 1 to 8 each", c.Instances)
	case c.Window < time.Second:
		return fmt.Errorf("window %s: want at least 1s", c.Window)
	}
	return nil
}

// Run measures what the servers can do, and what the service does with them.
func Run(ctx context.Context, cfg Config) (_ *Result, err error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	began := time.Now()
	b := &run{cfg: cfg, res: newResult(cfg)}
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.env.Close()) }()
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	if len(cfg.Streams) > 0 {
		if err := b.severalStreams(ctx); err != nil {
			return nil, err
		}
		b.res.finish(time.Since(began))
		return b.res, nil
	}
	if err := b.redisCeiling(ctx); err != nil {
		return nil, err
	}
	for n := range cfg.Rounds {
		if err := b.postgresCeilings(ctx, n); err != nil {
			return nil, err
		}
		if err := b.backlogs(ctx, n); err != nil {
			return nil, err
		}
	}
	for _, rate := range cfg.Rates {
		if err := b.steady(ctx, rate); err != nil {
			return nil, err
		}
	}
	b.res.finish(time.Since(began))
	return b.res, nil
}

func (b *run) note(format string, args ...any) {
	_, _ = fmt.Fprintf(b.cfg.Notes, format+"\n", args...)
}

// connectionsTried are the numbers of connections of which the best counts.
var connectionsTried = []int{1, 2, 4}

// postgresCeilings copies and inserts the rows that the service has stored into
// databases like the ones that it works in.
func (b *run) postgresCeilings(ctx context.Context, round int) error {
	best, at, cost := 0.0, 0, 0.0
	for _, n := range connectionsTried {
		var spent time.Duration
		rate, err := b.inDatabase(ctx, func(url string) (float64, error) {
			before := cpuOfTree(b.env.Postgres.PID())
			took, err := ceiling.Copy(ctx, url, b.rows, n)
			spent = cpuOfTree(b.env.Postgres.PID()) - before
			return float64(b.cfg.Entries) / took.Seconds(), err
		})
		if err != nil {
			return fmt.Errorf("copy over %d connections: %w", n, err)
		}
		each := float64(spent.Microseconds()) / float64(b.cfg.Entries)
		b.note("round %d: COPY, %d connections: %s rows/s, %.1f us of Postgres a row", round+1, n, cli.Thousands(int64(rate)), each)
		if rate > best {
			best, at, cost = rate, n, each
		}
	}
	b.res.CopyCPU.add(cost)
	b.res.Copy.add(best)
	b.res.CopyConnections = append(b.res.CopyConnections, at)
	rate, err := b.inDatabase(ctx, func(url string) (float64, error) {
		took, rows, err := ceiling.Insert(ctx, url, b.database(dbStored), b.second, benchBatch, at)
		return float64(rows) / took.Seconds(), err
	})
	if err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	b.note("round %d: INSERT, %d connections: %s rows/s", round+1, at, cli.Thousands(int64(rate)))
	b.res.Insert.add(rate)
	return nil
}

// backlogs has one and two instances drain the same entries in both orders. Two share the
// shards before, but for a round in which they start with the backlog, and half of the
// shards may be handed over while it is drained.
func (b *run) backlogs(ctx context.Context, round int) error {
	for _, d := range []struct {
		name string
		backlog
		into *Series
	}{
		{"in order", backlog{entries: b.inOrder, instances: 1}, &b.res.One},
		{"in order", backlog{entries: b.inOrder, instances: 2, shared: true}, &b.res.Two},
		{"in order, joining", backlog{entries: b.inOrder, instances: 2}, &b.res.TwoJoining},
		{"newest first", backlog{entries: b.newestFirst, instances: 1}, &b.res.OneNewest},
		{"newest first", backlog{entries: b.newestFirst, instances: 2, shared: true}, &b.res.TwoNewest},
	} {
		what := fmt.Sprintf("round %d, %s, %d", round+1, d.name, d.instances)
		d.profile = fmt.Sprintf("round%d-%s-%d", round+1, slug(d.name), d.instances)
		w, err := b.inRound(ctx, func(g *testbed.Servers) (drainResult, error) { return b.drain(ctx, g, d.backlog) })
		if err != nil {
			return fmt.Errorf("backlog, %s: %w", what, err)
		}
		d.into.add(w.rate)
		b.note("%s: %s records/s, %.0f a commit; us a record: service %.1f, Redis %.1f, Postgres %.1f; %.2f allocations a record, peak %.0f MB",
			what, cli.Thousands(int64(w.rate)), w.perCommit, w.own, w.redis, w.postgres, w.mallocs, w.peak)
		if d.into == &b.res.One {
			b.res.OwnCPU.add(w.own)
			b.res.RedisCPU.add(w.redis)
			b.res.PostgresCPU.add(w.postgres)
			b.res.PerCommit.add(w.perCommit)
			b.res.Allocs.add(w.mallocs)
			b.res.Peak.add(w.peak)
			b.res.FirstCommit.add(w.first)
		}
	}
	return nil
}

func slug(name string) string {
	out := []byte(name)
	for i := range out {
		if out[i] == ' ' || out[i] == ',' {
			out[i] = '-'
		}
	}
	return string(out)
}

// newestFirst returns entries with each block of a device reversed, each block sent
// at once: what a tracker does that has been out of coverage.
func newestFirst(entries [][]string, devices []string, block int) [][]string {
	blocks := make(map[string][][]string)
	var out [][]string
	flush := func(device string) {
		slices.Reverse(blocks[device])
		out = append(out, blocks[device]...)
		blocks[device] = blocks[device][:0]
	}
	var order []string
	for i, e := range entries {
		d := devices[i]
		if _, ok := blocks[d]; !ok {
			order = append(order, d)
		}
		if blocks[d] = append(blocks[d], e); len(blocks[d]) == block {
			flush(d)
		}
	}
	for _, d := range order {
		flush(d)
	}
	return out
}
