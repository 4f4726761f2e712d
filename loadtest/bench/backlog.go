package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/loadtest/ceiling"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// drainResult is how a backlog was drained, between the first fifth and the last
// tenth of it. Times are microseconds of CPU a record.
type drainResult struct {
	rate      float64
	own       float64
	redis     float64
	postgres  float64
	perCommit float64   // records
	mallocs   float64   // of the service, a record
	peak      float64   // MB, of the largest instance
	first     float64   // seconds from start to the first commit
	nodes     []float64 // of Redis, each
}

// pollInterval is how exactly a rate is known: often enough for some seconds, seldom
// enough not to cost what is to be measured.
const pollInterval = 25 * time.Millisecond

// spent is what everything has used up at one moment.
type spent struct {
	at          time.Time
	outstanding int64
	own         time.Duration
	redis       time.Duration
	nodes       []time.Duration // of Redis
	postgres    time.Duration
	told        told                   // by the instances, in all
	commands    map[string]commandStat // of Redis; nil without a profile
}

// told is what an instance counts itself.
type told struct{ mallocs, records, commits float64 }

// backlog is what instances drain.
type backlog struct {
	entries   [][]string
	instances int
	// shared has the instances share all shards before: otherwise shards are handed over
	// meanwhile, in a time that has nothing to do with what a record costs.
	shared  bool
	profile string // name of the files, empty for none
}

func (b *run) drain(ctx context.Context, g *testbed.Servers, d backlog) (w drainResult, err error) {
	if !d.shared {
		if err := b.fill(ctx, g, d.entries); err != nil {
			return w, err
		}
	}
	dir, err := b.folder()
	if err != nil {
		return w, err
	}
	line := &testbed.Cluster{Program: b.cfg.Processor, Env: b.cfg.Env, Dir: dir, Servers: g}
	defer func() { err = errors.Join(err, line.Close()) }()
	began := time.Now()
	for n := range d.instances {
		if _, err := line.Start(n); err != nil {
			return w, err
		}
	}
	if d.shared {
		if err := b.poise(ctx, g, line, d.entries); err != nil {
			return w, err
		}
	}
	var profiles errgroup.Group
	if b.cfg.Profile != "" && d.profile != "" {
		profiles.Go(func() error { return b.profile(ctx, line, d.profile) })
	}
	total := int64(len(d.entries))
	var from, to spent
	err = awaitDrained(ctx, g, line, func(outstanding int64, now time.Time) error {
		if w.first == 0 && stored(ctx, line) {
			w.first = now.Sub(began).Seconds()
		}
		if from.at.IsZero() && outstanding <= total*4/5 {
			from = b.spent(ctx, line, outstanding, now)
		}
		if to.at.IsZero() && outstanding <= total/10 {
			to = b.spent(ctx, line, outstanding, now)
		}
		return nil
	})
	err = errors.Join(err, profiles.Wait())
	if err != nil {
		return w, err
	}
	if b.cfg.Profile != "" && d.profile != "" {
		if err := b.saveCommandStats(d.profile, from, to); err != nil {
			return w, err
		}
	}
	first := w.first
	if w, err = resultBetween(from, to, total); err != nil {
		return w, err
	}
	w.first = first
	for _, in := range line.Current() {
		w.peak = max(w.peak, testbed.PeakMB(in.Cmd.Process.Pid))
	}
	if err := line.Stop(ctx); err != nil {
		return w, err
	}
	return w, b.complete(ctx, g.PostgresURL)
}

// pauseTakes is how long a pause takes: a look of the leader, and a dispatch lease.
const pauseTakes = 5 * time.Second

// poise fills the streams of instances that have shared all shards and wait for the end of
// a pause, and ends it.
func (b *run) poise(ctx context.Context, g *testbed.Servers, line *testbed.Cluster, entries [][]string) error {
	operate := func(args ...string) error {
		cmd, err := line.Operator(ctx, args...)
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("processor %s: %w: %s", args[0], err, out)
		}
		return nil
	}
	if err := line.AwaitSettled(ctx, testbed.JudgeTimeout); err != nil {
		return err
	}
	if err := operate("pause", "--reason", "bench"); err != nil {
		return err
	}
	if err := testbed.Pause(ctx, pauseTakes); err != nil {
		return err
	}
	if err := b.fill(ctx, g, entries); err != nil {
		return err
	}
	if left, _ := g.Backlog(ctx); left == nil || *left != int64(len(entries)) {
		return errors.New("the pause took no effect in time: entries were stored before the backlog was complete")
	}
	return operate("resume", "--reason", "bench")
}

// awaitDrained waits until nothing is unfinished, as long as something moves. It tells
// look how much is left each time; an error of look ends the waiting.
func awaitDrained(ctx context.Context, g *testbed.Servers, line *testbed.Cluster, look func(outstanding int64, now time.Time) error) error {
	moved, least := time.Now(), int64(math.MaxInt64)
	// Each stream is asked: with several of them all together as often.
	return testbed.Until(ctx, pollInterval*time.Duration(len(g.All())), func() error {
		for _, in := range line.Current() {
			if in.Gone() {
				return testbed.GiveUp(fmt.Errorf("instance %s ended by itself (%w), its log ends with:\n%s", in.Name, in.Err, in.Tail(3)))
			}
		}
		outstanding, _ := g.Backlog(ctx)
		if outstanding == nil {
			return errors.New("the backlog is unknown")
		}
		now := time.Now()
		if *outstanding < least {
			least, moved = *outstanding, now
		}
		if err := look(*outstanding, now); err != nil {
			return testbed.GiveUp(err)
		}
		if *outstanding == 0 {
			return nil
		}
		if now.Sub(moved) > testbed.NoProgressLimit {
			return testbed.GiveUp(fmt.Errorf("%d entries in the backlog and nothing moves", *outstanding))
		}
		return fmt.Errorf("%d entries in the backlog", *outstanding)
	})
}

// resultBetween returns what a record of a backlog cost from one moment to another.
func resultBetween(from, to spent, entries int64) (w drainResult, err error) {
	if from.at.IsZero() || !from.at.Before(to.at) || from.outstanding <= to.outstanding {
		return w, fmt.Errorf("a backlog of %d entries is too short to measure a rate: use more", entries)
	}
	records := float64(from.outstanding - to.outstanding)
	each := func(from, to time.Duration) float64 { return float64((to - from).Microseconds()) / records }
	w.rate = records / to.at.Sub(from.at).Seconds()
	w.own, w.redis, w.postgres = each(from.own, to.own), each(from.redis, to.redis), each(from.postgres, to.postgres)
	for i := range to.nodes {
		w.nodes = append(w.nodes, each(from.nodes[i], to.nodes[i]))
	}
	w.mallocs = (to.told.mallocs - from.told.mallocs) / records
	if commits := to.told.commits - from.told.commits; commits > 0 {
		w.perCommit = (to.told.records - from.told.records) / commits
	}
	return w, nil
}

// complete makes sure that the rows there were before and those of the backlog
// are all there: speed without them would be no speed.
func (b *run) complete(ctx context.Context, url string) error {
	return ceiling.Exec(ctx, url, fmt.Sprintf(`do $$
declare
  n bigint := (select count(*) from public.positions);
begin
  if n <> %d then
    raise exception 'the backlog is done and %% rows are stored, not %d', n;
  end if;
end $$`, 2*b.cfg.Entries, 2*b.cfg.Entries))
}

// stored reports whether any instance says that it has committed something.
func stored(ctx context.Context, line *testbed.Cluster) bool {
	for _, in := range line.Current() {
		if f, err := in.Scrape(ctx); err == nil && f.Stored > 0 {
			return true
		}
	}
	return false
}

func (b *run) spent(ctx context.Context, line *testbed.Cluster, outstanding int64, at time.Time) spent {
	s := spent{at: at, outstanding: outstanding, postgres: cpuOfTree(b.env.Postgres.PID())}
	for _, node := range b.nodes() {
		s.nodes = append(s.nodes, testbed.CPUOf(node.PID()))
		s.redis += s.nodes[len(s.nodes)-1]
	}
	if b.cfg.Profile != "" {
		s.commands, _ = b.commandStats(ctx) // without them the table is empty
	}
	for _, in := range line.Current() {
		s.own += testbed.CPUOf(in.Cmd.Process.Pid)
		t := selfReport(ctx, in)
		s.told.mallocs += t.mallocs
		s.told.records += t.records
		s.told.commits += t.commits
	}
	return s
}

// selfReport returns what the instance counts, nothing when it does not say.
func selfReport(ctx context.Context, in *testbed.Instance) (t told) {
	address, _ := in.Known()
	resp, err := testbed.Get(ctx, "http://"+address+"/metrics")
	if err != nil {
		return t
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return t
	}
	for _, m := range families["go_memstats_mallocs_total"].GetMetric() {
		t.mallocs += m.GetCounter().GetValue()
	}
	for _, m := range families["processor_pipeline_batch_records"].GetMetric() {
		t.records += m.GetHistogram().GetSampleSum()
		t.commits += float64(m.GetHistogram().GetSampleCount())
	}
	return t
}

// profileSeconds is shorter than a backlog of the usual size takes.
const profileSeconds = 3

// profile keeps the CPU profile and the allocations of the first instance.
func (b *run) profile(ctx context.Context, line *testbed.Cluster, name string) error {
	in := line.Current()[0]
	if err := line.Ready(ctx, in); err != nil {
		return err
	}
	address, _ := in.Known()
	for _, p := range []struct{ path, file string }{
		{fmt.Sprintf("profile?seconds=%d", profileSeconds), name + ".cpu.pprof"},
		{"allocs", name + ".allocs.pprof"},
	} {
		if err := download(ctx, "http://"+address+"/debug/pprof/"+p.path, filepath.Join(b.cfg.Profile, p.file)); err != nil {
			return fmt.Errorf("profile instance %s: %w", in.Name, err)
		}
	}
	return nil
}

func download(ctx context.Context, url, path string) error {
	resp, err := testbed.Get(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, resp.Body)
	return errors.Join(err, file.Close())
}
