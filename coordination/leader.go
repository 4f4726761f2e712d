package coordination

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Holds is what operators hold back.
type Holds interface {
	Holds(ctx context.Context) (protocol.Holds, error)
}

// Ledger records incidents, and the newest entry ever seen. For losses there is Losses.
type Ledger interface {
	RaiseHighWatermark(ctx context.Context, id telemetry.EntryID) error
	Opened(ctx context.Context, kind string) (subjects []string, err error)
	Open(ctx context.Context, kind, subject string, detail map[string]any) error
	Close(ctx context.Context, kind, subject string) error
}

// Task is additional work of the leader. Do performs a bounded part of it, and
// is harmless when two leaders do it.
type Task interface {
	Do(ctx context.Context, term int64) error
}

// Leader does a leader's work: it assigns shards, claims entries of foreign
// consumers, and records losses. All of it is harmless when done twice.
type Leader struct {
	cfg        Config
	membership *Membership
	shards     ownership
	store      LeaderStore
	stream     Stream
	ledger     Ledger
	losses     *Losses
	holds      Holds // nil for none
	metrics    *metrics
	tasks      []Task
	beside     []Task // that may take longer than a step
	log        *slog.Logger

	quiet map[any]*lograte.Limit // of each step that failed, by its task or its name

	term     int64     // of the last pass
	assigned time.Time // when assign began last
	swept    time.Time
	cursors  map[string]telemetry.EntryID // where the sweep of a consumer continues
	readers  map[string]time.Duration     // idle times at the last sweep
	progress *protocol.ProgressTracker    // of the shards
	open     map[string][]string          // subjects of open incidents, by kind; a kind is missing until it was read
	copies   string                       // the servers that members work with, in the last pass, where several
	silent   map[string]time.Time         // when this leader opened the incident of a silent member
	unnoted  map[string]map[string]any    // details of silent members whose incident is still to be opened
	known    protocol.Holds               // read last in this term, nil if they never were
	planner  protocol.Planner             // of this term
	loads    *protocol.LoadTracker        // of the shards, as this leader has seen them
	pending  map[int]int64                // entries that wait on the queue of each shard, or are in flight
	resumed  time.Time                    // when this leader last let dispatching go on; zero while it is stopped
	leaves   bool                         // this member is leaving, and finishes what it has
	handed   map[int]time.Time            // since when a shard waits for its owner's release
	more     atomic.Bool                  // shards are left to assign once others are released
	locked   []int                        // shards that the last pass could not assign, since their rows are locked
}

// Steps returns the steps of one pass: of one that was woken only the assignment, so that
// a plan is not held up by the tasks. A task that takes long holds it up for one step.
func (l *Leader) Steps(term int64, woken bool) []func(context.Context) error {
	assign := func(ctx context.Context) error { return l.assign(ctx, term, l.membership.eligible()) }
	const keeping = "keeping incidents"
	readHolds := func(ctx context.Context) error { return l.try(ctx, "reading what is held back", l.readHolds) }
	noteSilent := func(ctx context.Context) error { return l.try(ctx, keeping, quietly(l.noteSilent)) }
	if woken && term == l.term {
		return []func(context.Context) error{readHolds, assign, noteSilent}
	}
	var steps []func(context.Context) error
	sweep := term != l.term || time.Since(l.swept) >= l.cfg.ClaimInterval
	if term != l.term {
		l.beginTerm()
		// A leader that resigned is probably leaving. Membership as of a second
		// ago would assign its shards back to it.
		steps = append(steps, func(ctx context.Context) error {
			if err := l.membership.heartbeatRound(ctx); err != nil {
				return err
			}
			l.term = term
			return nil
		})
	}
	steps = append(steps, readHolds, assign, noteSilent)
	add := func(about any, do func(context.Context) error) {
		steps = append(steps, func(ctx context.Context) error {
			if time.Since(l.assigned) < l.cfg.renewEvery() {
				return nil
			}
			return assign(ctx)
		}, func(ctx context.Context) error { return l.try(ctx, about, do) })
	}
	add("recording losses", l.record)
	if sweep {
		add("claim sweep", func(ctx context.Context) error {
			l.swept = time.Now()
			return l.sweep(ctx)
		})
		for _, watch := range []func(context.Context){l.watchMembers, l.watchCopies, l.watchShards, l.watchRefusals} {
			add(keeping, quietly(watch))
		}
	}
	for _, task := range l.tasks {
		add(task, func(ctx context.Context) error { return task.Do(ctx, term) })
	}
	return steps
}

// try does what may fail without an end of the term. It returns an error if the term ends;
// that a step is cut off is a failure like any other.
func (l *Leader) try(ctx context.Context, about any, do func(context.Context) error) error {
	err := do(ctx)
	if ctx.Err() != nil {
		cause := context.Cause(ctx)
		if !errors.Is(cause, errCutOff) {
			return cause
		}
		err = cutOff(err)
	}
	if err != nil && l.quietOf(about).Pass() {
		what, ok := about.(string)
		if !ok {
			what = fmt.Sprintf("%T", about)
		}
		l.log.Warn("leader task failed, will retry", "what", what, "err", err)
	}
	return nil
}

// cutOff returns the error of a step that was cut off, which may have told its own or not.
func cutOff(err error) error {
	if err == nil {
		return errCutOff
	}
	return fmt.Errorf("%w: %w", errCutOff, err)
}

// Beside runs the tasks that may take longer than a step.
func (l *Leader) Beside(ctx context.Context, term int64) {
	var running sync.WaitGroup
	for _, task := range l.beside {
		running.Go(func() {
			var quiet lograte.Limit
			for ctx.Err() == nil {
				if err := task.Do(ctx, term); err != nil && ctx.Err() == nil && quiet.Pass() {
					l.log.Warn("leader task failed, will retry", "err", err)
				}
				_ = pause(ctx, l.cfg.renewEvery())
			}
		})
	}
	running.Wait()
}

// quietly makes a step of what logs its own errors.
func quietly(do func(context.Context)) func(context.Context) error {
	return func(ctx context.Context) error {
		do(ctx)
		return nil
	}
}

// beginTerm forgets what was known in an earlier term.
func (l *Leader) beginTerm() {
	l.cursors = make(map[string]telemetry.EntryID)
	l.progress = protocol.NewProgressTracker(l.cfg.ClaimThreshold)
	l.open = make(map[string][]string)
	l.silent, l.unnoted = make(map[string]time.Time), make(map[string]map[string]any)
	l.resumed = time.Time{}
	l.handed, l.pending, l.locked, l.known, l.planner, l.loads = nil, nil, nil, nil, protocol.Planner{}, protocol.NewLoadTracker(l.cfg.Shards, loadMemory*l.cfg.MemberTTL)
}

// quietOf limits the log lines of one step: one that fails hides no other.
func (l *Leader) quietOf(about any) *lograte.Limit {
	if l.quiet == nil {
		l.quiet = make(map[any]*lograte.Limit)
	}
	if l.quiet[about] == nil {
		l.quiet[about] = new(lograte.Limit)
	}
	return l.quiet[about]
}

// ReassignOwnShards assigns this member's shards to other members, if there are
// any.
func (l *Leader) ReassignOwnShards(ctx context.Context, term int64) error {
	others := slices.DeleteFunc(l.membership.eligible(), func(m string) bool { return m == l.membership.Name() })
	if len(others) == 0 {
		return nil
	}
	// Its intake has ended: what it has left waits for nothing.
	l.leaves = true
	defer func() { l.leaves = false }()
	if l.known == nil { // before the first pass
		if err := l.readHolds(ctx); err != nil {
			l.log.Warn("reading what is held back failed", "err", err)
		}
	}
	return l.assign(ctx, term, others)
}

// assign writes the difference between the current and the desired assignments.
func (l *Leader) assign(ctx context.Context, term int64, members []string) error {
	l.assigned = time.Now()
	list, err := l.shards.List(ctx)
	if err != nil {
		return err
	}
	current := make([]string, l.cfg.Shards)
	records := make([]protocol.ShardRecord, l.cfg.Shards)
	claimed := make([]bool, l.cfg.Shards)
	for _, s := range list {
		if s.Shard < len(current) {
			current[s.Shard], records[s.Shard], claimed[s.Shard] = s.Assigned, s.Record(), s.Claimed
		}
		if s.Claimed {
			l.planner.Claimed()
		}
	}
	held := l.known
	if held == nil && l.holds != nil {
		held = protocol.HeldAsAssigned(current, members)
	}
	able := members
	members = slices.DeleteFunc(slices.Clone(members), held.Drained)
	holds := func(shard int) bool { return held.Of(protocol.HoldShard, strconv.Itoa(shard)) != nil }
	target := l.planner.Plan(time.Now(), current, members, outdated(l.membership.Members()), holds, l.load())
	willing, late := l.releases(records)
	next := protocol.Pace(records, target, willing, late)
	l.more.Store(!slices.Equal(next, target))
	for i := range next {
		if holds(i) {
			next[i] = "" // its owner releases it, and what is dispatched waits
		}
	}
	var shards []int
	var names []string
	for i := range next {
		if next[i] != current[i] || claimed[i] && !l.planner.KeepsClaim() {
			shards, names = append(shards, i), append(names, next[i])
		}
	}
	l.locked = nil
	if len(shards) > 0 {
		written, err := l.store.Assign(ctx, term, shards, names)
		if _, blocked := protocol.BlockedBy(err); err != nil && !blocked {
			return err
		}
		locked := slices.DeleteFunc(slices.Clone(shards), func(shard int) bool { return slices.Contains(written, shard) })
		if len(locked) > 0 && l.quietOf("locked").Pass() {
			l.log.Warn("assignments wait: another session has their rows locked, will retry", "shards", locked, "err", err)
		}
		if err != nil {
			l.more.Store(true)
			return nil //nolint:nilerr // the table is locked: nothing was written, nor the term checked
		}
		for _, shard := range locked {
			next[shard] = current[shard] // the next pass plans it again
		}
		l.locked = locked
		l.planner.Assigned(next, locked...)
		if len(written) > 0 {
			l.log.Info("assigned shards", "count", len(written), "members", len(members), "term", term)
		}
		for n, shard := range shards {
			if slices.Contains(written, shard) && current[shard] != "" && names[n] != "" && current[shard] != names[n] {
				l.metrics.moved.WithLabelValues(l.why(current[shard], records[shard].Owner, able, held)).Inc()
			}
		}
	}
	l.watchSilent(list) // the term was valid just now
	return nil
}

// rests reports whether all shards are assigned as planned: a successor takes what it finds for
// what is wanted, and leaves it for a while.
func (l *Leader) rests() bool { return !l.more.Load() && l.planner.Settled() }

// why returns why a shard moves from a member, where owner still has it, "" for nobody, and
// able are those that may own shards.
func (l *Leader) why(from, owner string, able []string, held protocol.Holds) string {
	last, gone := l.membership.silent(from)
	here := slices.Contains(able, from)
	switch {
	case last.Leaving, l.leaves && from == l.membership.Name():
		return movedForDeploy
	case owner == "" && !here:
		return movedAtStart
	case gone:
		return movedForKill
	case !here:
		return movedByForce
	case held.Drained(from):
		return movedForDrain
	case l.planner.ForLoad():
		return movedForLoad
	}
	return movedForJoin
}

// loadMemory is over how many MemberTTL the load of shards is averaged.
const loadMemory = 4

// load returns the entries per second of each shard, or nil while they are unknown.
func (l *Leader) load() []float64 {
	now := time.Now()
	for _, m := range l.membership.Members() {
		if len(m.Shards) > 0 && len(m.ShardFinished) == 0 {
			return nil // of an earlier version, which does not say
		}
		l.loads.Observe(now, m.Name(), m.Shards, m.ShardFinished, func(shard int, rate float64) bool {
			return float64(l.pending[shard]) > 2*rate+10
		})
	}
	return l.loads.Loads(now)
}

// outdated returns the members that a deploy is about to replace: those of another deploy
// than the one that began last. Without DEPLOY_ID there are none.
func outdated(members []Member) []string {
	began := make(map[string]time.Time) // a process that is started again makes its deploy no newer
	for _, m := range members {
		if first, ok := began[m.Deploy]; !ok || m.Started.Before(first) {
			began[m.Deploy] = m.Started
		}
	}
	if len(members) == 0 {
		return nil
	}
	latest := slices.MaxFunc(members, func(a, b Member) int { return began[a.Deploy].Compare(began[b.Deploy]) }).Deploy
	var names []string
	for _, m := range members {
		if latest != "" && m.Deploy != latest {
			names = append(names, m.Name())
		}
	}
	return names
}

// releases notes which shards wait for a release. willing reports whether a member hands
// over while it works: one that has used up its budget for a shard does not, and its
// other shards need not wait for it. late reports whether a shard has waited for longer
// than a release takes as a rule, or could not be assigned.
func (l *Leader) releases(shards []protocol.ShardRecord) (willing func(member string) bool, late func(shard int) bool) {
	now, handed, overdue := time.Now(), make(map[int]time.Time), make(map[string]bool)
	for i, s := range shards {
		if s.Owner == "" || s.Owner == s.Assigned {
			continue
		}
		handed[i] = now
		if since, ok := l.handed[i]; ok {
			handed[i] = since
		}
		// A shard that is held back goes to nobody who would wait for it.
		overdue[s.Owner] = overdue[s.Owner] || s.Assigned != "" && now.Sub(handed[i]) >= l.cfg.budgets().For(l.membership.owner(s.Owner, i))
	}
	l.handed = handed
	overdue[l.membership.Name()] = overdue[l.membership.Name()] || l.leaves
	willing = func(member string) bool { return !overdue[member] && l.membership.willing(member) }
	late = func(shard int) bool {
		since, waits := handed[shard]
		return waits && now.Sub(since) >= l.cfg.HandoffBudget || slices.Contains(l.locked, shard)
	}
	return willing, late
}

// readHolds reads what operators hold back, and stops or continues dispatching. That it goes on
// is said again each MemberTTL only: an earlier leader that was frozen may have stopped it. While
// that fails, as while another session has the table locked, what was read last holds.
func (l *Leader) readHolds(ctx context.Context) error {
	if l.holds == nil {
		return nil
	}
	held, err := l.holds.Holds(ctx)
	if err != nil {
		return err
	}
	l.known = append(protocol.Holds{}, held...)
	paused := held.Of(protocol.HoldFleet, "") != nil
	if !paused && time.Since(l.resumed) < l.cfg.MemberTTL {
		return nil
	}
	l.resumed = time.Time{}
	if err := l.stream.SetPaused(ctx, paused); err != nil {
		return fmt.Errorf("stop or continue dispatching: %w", err)
	}
	if !paused {
		l.resumed = time.Now()
	}
	return nil
}

// record moves losses from Redis to the ledger.
func (l *Leader) record(ctx context.Context) error {
	for {
		losses, receipt, foreign, err := l.stream.Losses(ctx, 500)
		if err != nil || len(losses) == 0 && len(foreign) == 0 {
			return err
		}
		if len(losses) > 0 {
			if err := l.recordLosses(ctx, losses, receipt); err != nil {
				return err
			}
		}
		if err := recordUnreadable(ctx, l.ledger, l.log, "losses", foreign, func(text string) error {
			return l.stream.Recorded(ctx, []string{text})
		}); err != nil {
			return err
		}
	}
}

func (l *Leader) recordLosses(ctx context.Context, losses []protocol.Loss, receipt []string) error {
	if err := l.losses.Record(ctx, losses); err != nil {
		return err
	}
	if err := l.stream.Recorded(ctx, receipt); err != nil {
		return err
	}
	var n int64
	for _, loss := range losses {
		n += max(0, loss.Entries)
	}
	rare.Reached(rare.LossRecorded)
	l.log.Error("entries lost before completion", "count", n,
		"reason", losses[0].Cause, "entry_id", losses[0].First.String())
	return nil
}

// sweepPages bounds one sweep, so that a leader with much to claim still renews
// in time; the next sweep continues.
const (
	sweepPages = 20
	sweepPage  = 200
)

// sweep puts entries that foreign consumers have held for ClaimThreshold on the
// queues of their shards, and removes consumers that are empty and idle.
func (l *Leader) sweep(ctx context.Context) error {
	consumers, err := l.stream.Consumers(ctx)
	if err != nil {
		if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Kind == protocol.Lost {
			return nil // no group yet
		}
		return err
	}
	readers := make(map[string]time.Duration)
	for _, c := range consumers {
		if c.Shard >= 0 {
			continue
		}
		readers[c.Name] = c.Idle
		if before, ok := l.readers[c.Name]; ok && c.Idle < before && c.Idle < l.cfg.ClaimInterval {
			// It was active since the last sweep: it reads in our group.
			l.incident(ctx, protocol.ForeignConsumer, c.Name, map[string]any{"pending": c.Pending})
			l.log.Error("foreign consumer reads in our group; stop it, or follow the switch-over procedure", "consumer", c.Name)
		}
		if c.Pending == 0 {
			if removed, err := l.stream.Remove(ctx, c.Name, l.cfg.ClaimThreshold); err != nil {
				return err
			} else if removed {
				l.log.Info("removed empty foreign consumer", "consumer", c.Name)
				delete(readers, c.Name)
			}
			continue
		}
		if err := l.claim(ctx, c.Name); err != nil {
			return err
		}
	}
	l.readers = readers
	l.closeResolved(ctx, protocol.ForeignConsumer, func(name string) bool {
		_, there := readers[name]
		return !there
	})
	return nil
}

func (l *Leader) claim(ctx context.Context, consumer string) error {
	for range sweepPages {
		page, err := l.stream.Claim(ctx, consumer, l.cfg.ClaimThreshold, l.cursors[consumer], sweepPage)
		if err != nil {
			return err
		}
		l.cursors[consumer] = page.Next
		if page.Entries > 0 {
			rare.Reached(rare.Swept)
			l.metrics.claimed.Add(float64(page.Entries))
			l.log.Info("claimed entries of a foreign consumer", "consumer", consumer, "count", page.Entries)
			shards := make([]int, 0, len(page.Shards))
			for s := range page.Shards {
				shards = append(shards, s)
			}
			if err := l.stream.Notify(ctx, shards); err != nil {
				return err
			}
		}
		if !page.More {
			delete(l.cursors, consumer)
			return nil
		}
	}
	return nil
}

// watchMembers keeps the incident of each stalled member.
func (l *Leader) watchMembers(ctx context.Context) {
	stalled := l.membership.stalled()
	for _, m := range stalled {
		if l.incident(ctx, protocol.StalledMember, m, map[string]any{"since": fmt.Sprint(l.cfg.ClaimThreshold)}) {
			rare.Reached(rare.StalledMember)
			l.log.Error("member stalled", "member", m)
		}
	}
	l.closeResolved(ctx, protocol.StalledMember, func(m string) bool { return !slices.Contains(stalled, m) })
}

// watchCopies keeps the incident of members that work with a copy of the database on another
// server. A copy is refused to those that join, but while Postgres is away from the others nobody
// says which server is ours. After a planned change the members say so one after the other.
func (l *Leader) watchCopies(ctx context.Context) {
	members := make(map[string][]string)
	for _, m := range l.membership.Members() {
		if m.Server != "" {
			members[m.Server] = append(members[m.Server], m.Name())
		}
	}
	servers := slices.Sorted(maps.Keys(members))
	if subject := strings.Join(servers, " and "); len(servers) > 1 {
		if l.copies == subject && l.incident(ctx, protocol.DatabaseCopy, subject, map[string]any{"members": members}) {
			l.log.Error("members work with copies of one database; stop those that lead to the copy", "servers", subject, "members", members)
		}
		l.copies = subject
	} else {
		l.copies = ""
	}
	l.closeResolved(ctx, protocol.DatabaseCopy, func(subject string) bool { return subject != l.copies })
}

// watchSilent notes each owner whose heartbeat expired; its shards are reassigned without a
// release, and once they are acquired nothing else shows the event.
func (l *Leader) watchSilent(list []protocol.Shard) {
	owned := make(map[string][]int)
	for _, s := range list {
		if s.Owner != "" {
			owned[s.Owner] = append(owned[s.Owner], s.Shard)
		}
	}
	for member, shards := range owned {
		last, silent := l.membership.silent(member)
		if !silent || l.unnoted[member] != nil || slices.Contains(l.open[protocol.SilentMember], member) {
			continue
		}
		detail := map[string]any{"shards": shards}
		if !last.at.IsZero() {
			detail["since"], detail["host"], detail["pid"], detail["version"] = last.at.UTC().Truncate(time.Second), last.Host, last.PID, last.Version
		}
		l.unnoted[member] = detail
		rare.Reached(rare.SilentMember)
		l.log.Warn("member heartbeat expired; reassigning its shards", "member", member, "count", len(shards), "host", last.Host, "pid", last.PID)
	}
}

// noteSilent opens the incident of each silent member. It stays open for silentFor.
func (l *Leader) noteSilent(ctx context.Context) {
	for member, detail := range l.unnoted {
		if l.incident(ctx, protocol.SilentMember, member, detail) {
			l.silent[member] = time.Now()
		}
		if slices.Contains(l.open[protocol.SilentMember], member) {
			delete(l.unnoted, member)
		}
	}
	l.closeResolved(ctx, protocol.SilentMember, func(member string) bool {
		return l.membership.rejoined(member) || time.Since(l.silent[member]) > silentFor
	})
}

// watchShards keeps the incident of each shard that is stalled while other
// shards advance.
func (l *Leader) watchShards(ctx context.Context) {
	work, _, err := l.stream.Work(ctx)
	if err != nil {
		return // the sweep reports the error
	}
	l.pending = make(map[int]int64, len(work))
	for shard, w := range work {
		l.pending[shard] = w.Pending
	}
	l.progress.Observe(time.Now(), work)
	for _, shard := range l.progress.Stalled() {
		w, since := l.progress.Since(shard)
		if l.incident(ctx, protocol.StalledShard, strconv.Itoa(shard), map[string]any{
			"pending": w.Pending, "oldest": w.Oldest.String(), "since": since.UTC().Format(time.RFC3339),
		}) {
			l.log.Error("shard stalled", "shard", shard, "count", w.Pending, "entry_id", w.Oldest.String())
		}
	}
	l.closeResolved(ctx, protocol.StalledShard, func(subject string) bool {
		shard, err := strconv.Atoi(subject)
		return err != nil || l.progress.Progressing(shard)
	})
}

// watchRefusals keeps the incident of each reason for which Postgres rejects rows
// that are not at fault, while any member pauses for it.
func (l *Leader) watchRefusals(ctx context.Context) {
	members := make(map[string][]string)
	reasons := make(map[string]protocol.Refusal)
	for _, m := range l.membership.Members() {
		if m.Refusal != nil {
			members[m.Refusal.Reason] = append(members[m.Refusal.Reason], m.Name())
			reasons[m.Refusal.Reason] = *m.Refusal
		}
	}
	for reason, r := range reasons {
		if l.incident(ctx, protocol.SinkRefuses, reason, map[string]any{"error": r.Error, "remedy": r.Remedy, "members": members[reason]}) {
			l.log.Error("Postgres rejects rows for a reason that is not theirs; paused until it is gone", "reason", reason, "err", r.Error, "remedy", r.Remedy)
		}
	}
	l.closeResolved(ctx, protocol.SinkRefuses, func(reason string) bool { return members[reason] == nil })
}

// opened reads which incidents of a kind are open, those of earlier leaders too, unless that
// is known. It reports whether it is.
func (l *Leader) opened(ctx context.Context, kind string) bool {
	if _, known := l.open[kind]; known {
		return true
	}
	subjects, err := l.ledger.Opened(ctx, kind)
	if err != nil {
		l.incidentFailed(ctx, "reading", err)
		return false
	}
	l.open[kind] = subjects
	if kind == protocol.SilentMember {
		for _, member := range subjects {
			l.silent[member] = time.Now()
		}
	}
	return true
}

func (l *Leader) incidentFailed(ctx context.Context, what string, err error) {
	if ctx.Err() == nil && l.quietOf(what).Pass() {
		l.log.Warn("keeping incidents failed, will retry", "what", what, "err", err)
	}
}

// incident opens an incident, or updates its detail. It reports whether it is
// new.
func (l *Leader) incident(ctx context.Context, kind, subject string, detail map[string]any) bool {
	if !l.opened(ctx, kind) {
		return false
	}
	if err := l.ledger.Open(ctx, kind, subject, detail); err != nil {
		l.incidentFailed(ctx, "recording", err)
		return false
	}
	if slices.Contains(l.open[kind], subject) {
		return false
	}
	l.open[kind] = append(l.open[kind], subject)
	return true
}

// closeResolved closes the open incidents of a kind that are resolved.
func (l *Leader) closeResolved(ctx context.Context, kind string, over func(subject string) bool) {
	if !l.opened(ctx, kind) {
		return
	}
	l.open[kind] = slices.DeleteFunc(l.open[kind], func(subject string) bool {
		if !over(subject) {
			return false
		}
		if err := l.ledger.Close(ctx, kind, subject); err != nil {
			l.incidentFailed(ctx, "closing", err)
			return false
		}
		return true
	})
}
