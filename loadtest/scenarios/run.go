package scenarios

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fencelog"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// run is one run of a scenario.
type run struct {
	scenario    Scenario
	cfg         Config
	plan        Plan
	log         *slog.Logger
	environment *testbed.Servers
	line        *testbed.Cluster
	load        *testbed.Load
	streams     []*oneStream // the first is that of environment and load
	watch       *testbed.Watch
	began       time.Time
	fleets      int         // begun so far
	reached     rare.Counts // before this run

	mu        sync.Mutex
	marks     []Mark
	missed    []string
	facts     []Fact
	takeovers []float64
	rates     []float64
	spans     []span
	unforced  []unforced
	took      []int64 // microseconds from stream time to commit of each record, where commits are dated
	fences    []geofence.Fence
	refusals  []oracle.Refusal
	resizedTo int                                            // shards, 0 while there are as many as at first
	resizedUS int64                                          // when
	after     []func(*Result)                                // bounds that need the verdict
	stored    func(c oracle.Commit, shard int, id oracle.ID) // nil where nobody needs the time of each row

	sendingBegan time.Time
	finished     time.Time
	postgresMB   float64 // of our own, before the instances ended
}

// oneStream is what a run sends to one stream, and what it left there.
type oneStream struct {
	servers  *testbed.Servers
	several  bool // there are others
	load     *testbed.Load
	probe    *testbed.Probe
	times    recordTimes // where there are several
	left     testbed.Leftover
	finished time.Time
}

// Run runs a scenario and judges it. Without a result there is no verdict; an error beside one
// is of what had to be cleaned up after it.
func Run(ctx context.Context, s Scenario, cfg Config) (_ *Result, err error) {
	cfg.Plan = cfg.Plan.over(s.Plan)
	if err := cfg.Check(s); err != nil {
		return nil, err
	}
	r := &run{scenario: s, cfg: cfg, plan: cfg.Plan, log: cfg.Log}
	r.line = &testbed.Cluster{Program: cfg.Processor, Env: slices.Concat(s.env, cfg.Env), Dir: cfg.Dir, Proxied: s.proxied}
	if cfg.Rare != "" {
		if r.reached, err = rare.Read(cfg.Rare); err != nil {
			return nil, err
		}
		history := filepath.Join(cfg.Dir, "history")
		// What an earlier run left there is of other registers with the same names.
		if err := errors.Join(os.RemoveAll(history), os.MkdirAll(history, 0o755)); err != nil {
			return nil, fmt.Errorf("make a folder: %w", err)
		}
		r.line.Env = append(r.line.Env, rare.Env+"="+cfg.Rare, fencelog.Env+"="+history)
	}
	if s.held {
		r.line.Env = append(r.line.Env, "MUTANT_HOLD="+cfg.Dir)
	}
	if r.environment, err = testbed.Open(ctx, testbed.Options{
		RedisURL: cfg.RedisURL, PostgresURL: cfg.PostgresURL, World: cfg.World, Durable: s.durable,
		Streams: r.plan.Streams, Cluster: s.cluster, Devices: r.devices(),
	}, r.log); err != nil {
		return nil, err
	}
	r.line.Servers = r.environment
	if s.publishes {
		r.line.Env = append(r.line.Env, r.environment.Publishing())
	}
	if s.container {
		if r.line.Docker, err = testbed.OpenDocker(ctx, cfg.Image); err != nil {
			return nil, errors.Join(err, r.environment.Close(context.WithoutCancel(ctx)))
		}
		// Deferred before the instances' end, so that it comes after it.
		defer func() { err = errors.Join(err, r.line.Docker.Close(context.WithoutCancel(ctx))) }()
	}
	defer func() {
		past := context.WithoutCancel(ctx)
		err = errors.Join(err, r.environment.Clear(past, r.line.Identities(), r.plan.Devices), r.environment.Close(past))
	}()
	if s.dated && !r.environment.Dated {
		return nil, fmt.Errorf("scenario %s measures by the times of commits, which Postgres does not keep: set track_commit_timestamp = on, or let the scenario start its own servers", s.Name)
	}
	for n, servers := range r.environment.All() {
		dir := cfg.Dir
		if n > 0 {
			dir = filepath.Join(dir, servers.Stream)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, fmt.Errorf("make a folder: %w", err)
			}
		}
		load, err := testbed.NewLoad(servers, dir, r.log)
		if err != nil {
			return nil, err
		}
		defer func() { _ = load.Close() }() // what it could not write, its End says
		r.streams = append(r.streams, &oneStream{servers: servers, several: r.plan.Streams > 1, load: load, probe: testbed.NewProbe(servers)})
	}
	r.load = r.streams[0].load
	if !s.bare {
		if err := r.fence(ctx); err != nil {
			return nil, err
		}
	}
	defer func() { err = errors.Join(err, r.line.Close()) }()
	return r.execute(ctx)
}

func (r *run) execute(ctx context.Context) (*Result, error) {
	r.began = time.Now()
	r.watch = &testbed.Watch{
		Servers: r.environment, Cluster: r.line, Began: r.began, Show: r.cfg.Show, Load: r.sent, Fault: r.lastMark,
	}
	watching, stopWatch := context.WithCancel(ctx)
	var looking sync.WaitGroup
	looking.Go(func() { r.watch.Run(watching) })
	if !r.scenario.bare {
		for _, s := range r.streams {
			looking.Go(func() { s.probe.Run(watching) })
		}
		looking.Go(func() { r.environment.Follow(watching, r.scenario.publishes) })
	}
	defer looking.Wait()
	defer stopWatch()

	if !r.scenario.idle {
		if err := r.line.StartAll(ctx, 0, r.plan.Instances); err != nil {
			return nil, err
		}
		if err := r.line.AwaitSettled(ctx, testbed.ReadyWithin); err != nil {
			return nil, fmt.Errorf("wait for an even split at the start: %w", err)
		}
		if err := r.awaitNoRequests(ctx); err != nil {
			return nil, fmt.Errorf("wait until the new fences are known: %w", err)
		}
	}
	if err := r.scenario.run(ctx, r); err != nil {
		return nil, err
	}
	for _, s := range r.streams {
		if err := s.load.End(ctx, true); err != nil {
			return nil, err
		}
	}
	for _, s := range r.streams {
		if err := r.finishOne(ctx, s); err != nil {
			return nil, err
		}
	}
	if err := r.awaitNoRequests(ctx); ctx.Err() != nil {
		return nil, err // what is left over otherwise is the judge's to report
	}
	r.watch.Look(ctx)
	if r.environment.Env != nil {
		r.postgresMB = testbed.ServerMB(r.environment.Env.Postgres.PID())
	}
	stopWatch()
	looking.Wait()
	if r.scenario.publishes {
		err := testbed.Within(ctx, testbed.ReadyWithin, 100*time.Millisecond, func() error { return r.environment.Published.Finish(ctx) })
		r.check(err == nil, "a copy of the crossings, kept by reading TIMING_STREAM: %v", err)
		r.fact("stream of crossings", "%s changes read, begun %d times", cli.Thousands(int64(r.environment.Published.Changes())), r.environment.Published.Starts())
	}
	r.unexpectedExits()
	if err := r.line.Stop(ctx); err != nil {
		r.check(false, "%v", err)
	}
	return r.verdict(ctx)
}

// awaitNoRequests waits until no request is open: putting up fences asks for what was
// derived before to be derived again, though there is nothing yet.
func (r *run) awaitNoRequests(ctx context.Context) error {
	return testbed.Within(ctx, testbed.ReadyWithin, 50*time.Millisecond, func() error {
		for _, s := range r.streams {
			open, err := s.servers.Observer.Requests(ctx)
			if err == nil && len(open) > 0 {
				err = fmt.Errorf("%d requests are open", len(open))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// devices returns how many devices each stream has.
func (r *run) devices() int { return r.plan.Devices / max(1, r.plan.Streams) }

// sent returns how many entries are known to be on the streams, and by how much the load
// is behind its plan.
func (r *run) sent() (n int64, behind time.Duration) {
	for _, s := range r.streams {
		sent, late := s.load.Sent()
		n, behind = n+sent, max(behind, late)
	}
	return n, behind
}

// begin sends the fleet of the plan in the background.
func (r *run) begin(ctx context.Context) error {
	return r.startLoadFor(ctx, r.plan.Duration, fleet.AtSpeed(1))
}

func (r *run) startLoadFor(ctx context.Context, d time.Duration, pacer fleet.Pacer) error {
	plan := r.plan
	plan.Devices, plan.Rate = r.devices(), plan.Rate/float64(len(r.streams))
	profile, err := plan.Fleet(r.cfg.Seed, r.fleets, d)
	if err != nil {
		return err
	}
	profile.Limit = r.plan.Entries
	r.fleets++
	if r.sendingBegan.IsZero() {
		r.sendingBegan = time.Now()
	}
	for _, s := range r.streams {
		if err := s.load.Begin(ctx, profile, pacer); err != nil {
			return err
		}
	}
	return nil
}

// finish waits until everything on the first stream is done, or nothing has been for a while.
func (r *run) finish(ctx context.Context) (testbed.Leftover, error) {
	s := r.streams[0]
	err := r.finishOne(ctx, s)
	return s.left, err
}

func (r *run) finishOne(ctx context.Context, s *oneStream) (err error) {
	moved, least := time.Now(), int64(math.MaxInt64)
	for {
		outstanding, known, err := s.servers.Outstanding(ctx)
		if err == nil && outstanding < least {
			least, moved = outstanding, time.Now()
		}
		if err == nil && (known && outstanding == 0 || time.Since(moved) > testbed.NoProgressLimit) {
			s.finished = moved
			if moved.After(r.finished) {
				r.finished = moved
			}
			s.left, err = s.servers.Left(ctx)
			return err
		}
		if err != nil && time.Since(moved) > 2*testbed.NoProgressLimit {
			return err
		}
		if err := testbed.Pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// mark notes an event for the view and the charts, and returns what ends it.
func (r *run) mark(slot int, format string, args ...any) (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := Mark{At: time.Since(r.began), What: fmt.Sprintf(format, args...), Slot: slot}
	r.marks = append(r.marks, m)
	n := len(r.marks) - 1
	r.log.Info("event", "reason", m.What)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.marks[n].Until = time.Since(r.began)
	}
}

func (r *run) lastMark() (int, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.marks)
	if n == 0 {
		return 0, ""
	}
	return n, r.marks[n-1].What
}

// check notes a bound that is missed.
func (r *run) check(ok bool, format string, args ...any) {
	if ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.missed = append(r.missed, fmt.Sprintf(format, args...))
}

// fact notes something measured.
func (r *run) fact(name, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.facts = append(r.facts, Fact{Name: name, Value: fmt.Sprintf(format, args...)})
}

// unexpectedExits checks that no instance ended without being told to.
func (r *run) unexpectedExits() {
	for _, in := range r.line.Unexpected() {
		r.check(false, "instance %s ended by itself (%v), its log ends with:\n%s", in.Name, in.Err, in.Tail(3))
	}
}

// afterVerdict checks a bound once the verdict is known.
func (r *run) afterVerdict(f func(*Result)) { r.after = append(r.after, f) }

// bounds that every scenario shares.
func (r *run) checkCommonBounds(res *Result) {
	r.check(res.Lost == 0, "lost: %d entries, want 0", res.Lost)
	r.check(res.Double == 0, "double: %d effects too many, want 0", res.Double)
	for _, s := range r.streams {
		if s.probe.Seen > 0 {
			res.Early = new(deref(res.Early) + s.probe.Early)
		}
		r.check(r.scenario.bare || s.probe.Seen > 0, "early: no acknowledged record%s was looked for in Postgres, want some", s.of())
	}
	r.check(deref(res.Early) == 0, "early: %d records were acknowledged before they were stored, want 0", deref(res.Early))
	// Of a lag that is unknown only the send log says that it is there.
	res.Backlog = max(res.Backlog, res.Account.Pending)
	r.check(res.Backlog == 0, "backlog: %d entries, want 0", res.Backlog)
	if res.Reordered == nil {
		res.NotJudged = "the order and the times of commits, and who owned which shard: Postgres has track_commit_timestamp = off"
		r.fact("not judged", "%s", res.NotJudged)
		return
	}
	r.check(*res.Reordered == 0, "reordered: %d rows, want 0", *res.Reordered)
	r.check(*res.Stale == 0, "stale: %d rows committed by a member that did not own the shard, want 0", *res.Stale)
}
