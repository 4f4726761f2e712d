package scenarios

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fencelog"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/loadtest/linear"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

const (
	equal     = "equal"
	different = "different"
	// afterwards is how long a curve continues once others have taken over.
	afterwards = 3 * time.Second
)

// verdict runs both judges on what is left.
func (r *run) verdict(ctx context.Context) (*Result, error) {
	samples := r.watch.Taken()
	res := &Result{
		Scenario: r.scenario.Name, Instances: r.plan.Instances, Seed: r.cfg.Seed, World: r.cfg.World, Oracle: equal,
		PeakAge: cli.Round(peak(samples, 0, time.Hour), 3), Samples: samples,
	}
	stored := make([]int64, r.line.Size())
	for _, s := range r.streams {
		if err := r.judge(ctx, s, res, stored); err != nil {
			return nil, err
		}
	}
	slices.Sort(r.took)
	res.P50MS, res.P99MS = percentile(r.took, 50), percentile(r.took, 99)
	account := res.Account.Over(r.finished.Sub(r.sendingBegan))
	res.Account, res.Seconds, res.PerSecond = account, cli.Round(account.Seconds, 3), cli.Round(account.PerSecond, 1)
	res.Sent, res.Stored, res.Duplicates = account.Entries, account.Stored, account.Duplicates
	res.DeadLettered, res.Lost = account.DeadLettered, account.Lost
	if err := r.shares(ctx, res, stored); err != nil {
		return nil, err
	}
	if len(r.fences) > 0 {
		err := r.environment.Feed.Finish(ctx)
		r.check(err == nil, "a copy of the crossings, kept by reading processor.timing_feed: %v", err)
		r.fact("feed", "%s changes of crossings read, begun %d times", cli.Thousands(int64(r.environment.Feed.Changes())), r.environment.Feed.Starts())
	}
	r.checkCommonBounds(res)
	if err := r.rareBranches(res); err != nil {
		return nil, err
	}
	if err := r.judgeHistory(); err != nil {
		return nil, err
	}
	for _, f := range r.after {
		f(res)
	}
	res.Missed, res.Facts, res.Marks = r.missed, r.facts, r.marks
	res.TakeoverSeconds, res.Rates = r.takeovers, r.rates
	for _, s := range r.spans {
		if s.orderly {
			continue
		}
		res.Curves = append(res.Curves, lagCurve(s.what, samples, s.from.Sub(r.began), s.to.Sub(r.began)+afterwards))
	}
	r.usage(res)
	return res, nil
}

// judge adds what became of one stream to the result, and of the rows stored those of each
// slot.
func (r *run) judge(ctx context.Context, s *oneStream, res *Result, stored []int64) error {
	sent, err := s.load.Open()
	if err != nil {
		return err
	}
	defer func() { _ = sent.Close() }()
	o, err := oracle.New(sent)
	if err != nil {
		return err
	}
	look := s.servers.Observer
	archived, err := look.Archived(ctx)
	if err != nil {
		return err
	}
	seen := oracle.Observed{
		Positions: testbed.Of(s.servers, s.servers.Positions(ctx), func(r *oracle.Row) string { return r.Device }),
		Pending:   observer.Among(s.left.Pending), Dispatched: (*oracle.ID)(&s.left.Dispatched),
		DeadLetters: observer.WithArchived(s.servers.Letters(ctx), archived), Rules: r.rules(),
	}
	if len(r.fences) > 0 {
		seen.Crossings = testbed.Of(s.servers, s.servers.Crossings(ctx), func(c *oracle.Crossing) string { return c.Device })
		if s.servers.Dated {
			seen.Changes = testbed.Of(s.servers, look.Changes(ctx), func(c *oracle.Change) string { return c.Device })
		}
	}
	seen.Letters = &oracle.LetterRules{Shards: r.shards(), MaxAttempts: r.maxAttempts()}
	if s.servers.Dated {
		if seen.Deferred, err = look.Deferrals(ctx, nil); err != nil {
			return err
		}
		if seen.Rejections, err = look.Rejections(ctx); err != nil {
			return err
		}
	}
	seen.Refused = r.refusals
	if seen.Losses, err = look.Losses(ctx); err != nil {
		return err
	}
	if seen.Requests, err = look.Requests(ctx); err != nil {
		return err
	}
	report, err := o.Judge(seen)
	if err != nil {
		return fmt.Errorf("judge the rows: %w", err)
	}
	account, double := report.Account, report.Counts[oracle.KindDouble]+report.Counts[oracle.KindUnexpected]
	res.Account = res.Account.Plus(account)
	res.Double += double
	res.Backlog += s.left.Outstanding
	res.Crossings += report.Crossings
	res.Revised += report.Revised
	res.Findings = append(res.Findings, report.Examples...)
	if account.Mismatches > 0 || account.Lost > 0 {
		res.Oracle = different
	}
	r.check(account.Balanced(), "account: %+v does not add up", account)
	r.check(account.Mismatches == 0 && account.Lost == 0, "oracle: %v", report.Counts)
	reordered, err := r.order(ctx, s, o, res, stored)
	if err != nil {
		return err
	}
	if len(r.streams) > 1 {
		res.Streams = append(res.Streams, StreamResult{
			Stream: s.servers.Stream, Sent: account.Entries, Stored: account.Stored, Lost: account.Lost, Double: double, Reordered: reordered,
		})
	}
	return nil
}

// rareBranches says which rare branches this run has reached.
func (r *run) rareBranches(res *Result) error {
	if r.cfg.Rare == "" {
		return nil
	}
	now, err := rare.Read(r.cfg.Rare)
	if err != nil {
		return err
	}
	res.Reached = make(rare.Counts)
	for b, n := range now {
		if n -= r.reached[b]; n > 0 {
			res.Reached[b] = n
		}
	}
	r.check(len(res.Reached) > 0, "no rare branch was reached: is %s built with the tag mutant?", r.cfg.Processor)
	r.fact("rare branches", "%d reached: %s", len(res.Reached), res.Reached)
	if missing := res.Reached.Missing(r.scenario.Reaches); len(missing) > 0 {
		r.fact("rare branches", "not reached in this run, as a campaign does: %s", rare.Join(missing))
	}
	return nil
}

// historyWithin is how long the search for an order of one register's operations may take.
const historyWithin = 20 * time.Second

// judgeHistory checks that nothing was done under a fencing token that was no longer the
// newest.
func (r *run) judgeHistory() error {
	if r.cfg.Rare == "" {
		return nil
	}
	ops, err := fencelog.Read(filepath.Join(r.cfg.Dir, "history"))
	if err != nil {
		return err
	}
	v := linear.Check(ops, historyWithin)
	r.check(v.Ops > 0, "no history was recorded: is %s built with the tag mutant?", r.cfg.Processor)
	r.check(len(v.Wrong) == 0, "something was done under a fencing token that was no longer the newest: %s", strings.Join(v.Wrong, ", "))
	r.check(len(v.Undecided) == 0, "undecided within %s whether the history is right: %s", historyWithin, strings.Join(v.Undecided, ", "))
	r.fact("history", "%s operations on %d fenced registers, %d of them in an order that is not legal", cli.Thousands(int64(v.Ops)), v.Registers, len(v.Wrong))
	if r.cfg.Picture == "" || v.Ops == 0 {
		return nil
	}
	return v.Draw(r.cfg.Picture)
}

// maxAttempts returns how often an entry that cannot be decoded is tried.
func (r *run) maxAttempts() int {
	n := deliveries
	for _, v := range r.line.Env {
		if value, ok := strings.CutPrefix(v, "DLQ_MAX_ATTEMPTS="); ok {
			n, _ = strconv.Atoi(value) // the instances would not have started with anything else
		}
	}
	return n
}

// order judges when and by whom rows of one stream were committed.
func (r *run) order(ctx context.Context, s *oneStream, o *oracle.Oracle, res *Result, slots []int64) (reordered *int64, err error) {
	if !s.servers.Dated {
		return nil, nil
	}
	ownershipSpans, err := s.servers.Observer.OwnershipSpans(ctx)
	if err != nil {
		return nil, err
	}
	stored := r.stored
	if len(r.streams) > 1 {
		stored = s.times.add
	}
	commits := testbed.Of(s.servers, s.servers.Observer.Commits(ctx), func(c *oracle.Commit) string { return c.Device })
	deferred, err := s.servers.Observer.Deferrals(ctx, nil)
	if err != nil {
		return nil, err
	}
	verdict, err := o.Order(commits, oracle.OrderRules{
		Spans: ownershipSpans, Shards: r.shards(), Deferred: deferred,
		Stored: func(c oracle.Commit, shard int, id oracle.ID) {
			r.took = append(r.took, c.AtUS-int64(id.Ms)*1000)
			if stored != nil {
				stored(c, shard, id)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("judge the order: %w", err)
	}
	if res.Reordered == nil {
		res.Reordered, res.Stale = new(int64), new(int64)
		res.OwnershipSpans = r.ownershipSpans(ownershipSpans) // of several streams, those of the first
	}
	for _, u := range r.unforced {
		n := forced(ownershipSpans, u.period)
		r.check(n == 0, "%s: %d shards%s were taken by force, want none", u.what, n, s.of())
	}
	*res.Reordered += verdict.Reordered
	*res.Stale += verdict.Stale
	r.check(verdict.Unjudged == 0, "stale: of %d rows%s it is unknown which member committed them, or who owned their shard, want 0", verdict.Unjudged, s.of())
	res.Order = append(res.Order, verdict.Examples...)
	for member, n := range verdict.Members {
		if slot := r.line.SlotOf(member); slot >= 0 {
			slots[slot] += n
		}
	}
	return &verdict.Reordered, nil
}

// shares says which slot stored how much, and for how long the others did not in each
// span.
func (r *run) shares(ctx context.Context, res *Result, stored []int64) error {
	if !r.environment.Dated {
		for i, s := range res.Samples[len(res.Samples)-1].Slots {
			stored[i] = s.Stored
		}
	}
	res.Share = make([]float64, len(stored))
	for i, n := range stored {
		res.Share[i] = cli.Round(float64(n)/float64(max(1, res.Stored)), 3)
	}
	if !r.environment.Dated {
		return nil
	}
	times, err := r.environment.Observer.CommitTimes(ctx)
	if err != nil {
		return err
	}
	commits := make([]commitTime, len(times))
	for i, t := range times {
		commits[i] = commitTime{member: t.Member, at: time.UnixMicro(t.AtUS)}
	}
	r.gaps(commits)
	return nil
}

// ownershipSpans returns who owned what, as spans of the run.
func (r *run) ownershipSpans(changes []oracle.OwnershipSpan) []OwnershipSpan {
	var spans []OwnershipSpan
	open := map[int]int{} // by shard: index in spans
	since := func(us int64) time.Duration { return time.UnixMicro(us).Sub(r.began) }
	for _, c := range changes {
		if i, ok := open[c.Shard]; ok {
			spans[i].To = since(c.FromUS)
		}
		open[c.Shard] = len(spans)
		spans = append(spans, OwnershipSpan{Shard: c.Shard, Slot: r.line.SlotOf(c.Owner), From: since(c.FromUS)})
	}
	end := r.finished.Sub(r.began)
	for _, i := range open {
		spans[i].To = max(end, spans[i].From)
	}
	return spans
}

// lagCurve returns what the samples tell about the seconds after a fault.
func lagCurve(after string, samples []testbed.Sample, from, to time.Duration) LagCurve {
	c := LagCurve{After: after, Backlog: make([]*int64, 1+int((to-from)/time.Second))}
	c.AgeSeconds = make([]*float64, len(c.Backlog))
	for _, s := range samples {
		if s.At < from || s.At > to {
			continue
		}
		n := int((s.At - from) / time.Second)
		if s.Backlog != nil && (c.Backlog[n] == nil || *s.Backlog > *c.Backlog[n]) {
			c.Backlog[n] = s.Backlog
		}
		if s.Age != nil && (c.AgeSeconds[n] == nil || *s.Age > *c.AgeSeconds[n]) {
			age := cli.Round(*s.Age, 2)
			c.AgeSeconds[n] = &age
		}
	}
	return c
}

// usage says what the processes took.
func (r *run) usage(res *Result) {
	r.instances(res)
	seen := int64(0)
	for _, s := range r.streams {
		seen += s.probe.Seen
	}
	if seen > 0 {
		res.Facts = append(res.Facts, Fact{
			Name: "acknowledged",
			Value: fmt.Sprintf("%s records were looked for in Postgres while the run went on, %s were not there",
				cli.Thousands(seen), cli.Thousands(deref(res.Early))),
		})
	}
	if r.load.Sending > 0 {
		share := r.load.Spent.Seconds() / r.load.Sending.Seconds() / float64(runtime.NumCPU())
		res.Facts = append(res.Facts, Fact{
			Name: "load",
			Value: fmt.Sprintf("at most %d ms behind its plan; sending and watching took %.0f %% of %d CPUs",
				r.load.Worst.Milliseconds(), 100*share, runtime.NumCPU()),
		})
	}
	if env := r.environment.Env; env != nil && env.Redis != nil {
		res.Facts = append(res.Facts, Fact{
			Name: "memory", Value: fmt.Sprintf("Redis %.0f MB at most, Postgres %.0f MB at the end, this process %.0f MB at most",
				testbed.PeakMB(env.Redis.PID()), r.postgresMB, testbed.PeakMB(os.Getpid())),
		})
	}
}

// instances says what each took, or all together where they are many.
func (r *run) instances(res *Result) {
	const many = 6
	add := func(name, format string, args ...any) {
		res.Facts = append(res.Facts, Fact{Name: name, Value: fmt.Sprintf(format, args...)})
	}
	var seen []testbed.Figures
	for _, in := range r.line.All() {
		f := in.LastScrape()
		if f.MaxRSS == 0 {
			continue
		}
		seen = append(seen, f)
		if len(r.line.All()) <= many {
			add("instance "+in.Name, "%.0f MB resident at most, %.1f s of CPU, %d commits fenced", f.MaxRSS/1e6, f.CPU, f.Fenced)
		}
	}
	if len(seen) == 0 || len(r.line.All()) <= many {
		return
	}
	var cpu float64
	var fenced int64
	for _, f := range seen {
		cpu, fenced = cpu+f.CPU, fenced+f.Fenced
	}
	bySize := func(a, b testbed.Figures) int { return cmp.Compare(a.MaxRSS, b.MaxRSS) }
	add("instances", "%d, %.0f to %.0f MB resident at most, %.1f s of CPU, %d commits fenced",
		len(seen), slices.MinFunc(seen, bySize).MaxRSS/1e6, slices.MaxFunc(seen, bySize).MaxRSS/1e6, cpu, fenced)
}

// peak returns the highest age of the oldest unfinished entry in a span of the run.
func peak(samples []testbed.Sample, from, to time.Duration) float64 {
	highest := 0.0
	for _, s := range samples {
		if s.At >= from && s.At <= to && s.Age != nil {
			highest = max(highest, *s.Age)
		}
	}
	return highest
}
