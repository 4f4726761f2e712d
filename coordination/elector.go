package coordination

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
)

// lease is the leader's lock as the elector uses it.
type lease interface {
	// obtain fails as errLockHeld when another member has it, and says for how long it
	// will, unless it renews it.
	obtain(ctx context.Context) (left time.Duration, err error)
	renew(ctx context.Context) error // errLockHeld when the lock is no longer ours
	release(ctx context.Context) error
}

// elector campaigns for the leadership and runs LeaderWork while it leads.
//
// Leadership serves efficiency only: every task is harmless when two members do
// it. It is trusted for LeaderTTL minus a margin, counted from *before* the
// last renewal was sent; no work runs under a context that lasts longer. Work and
// renewals share one loop, so a leader that is stuck loses the lock. A step that takes
// too long is cut off in time for a renewal: the next leader would do it no faster.
type elector struct {
	cfg      Config
	lock     lease
	terms    LeaderStore
	notifier Stream
	work     LeaderWork
	canLead  func() bool // reports whether this member can do a leader's work now
	metrics  *metrics
	log      *slog.Logger
	vacancy  chan struct{} // the leadership may be free; size one, coalesced
	wake     chan struct{} // something changed that the leader acts upon; size one, coalesced

	spread *protocol.SpreadLease // nil for a stream alone
	peers  func() int            // number of other members; not called without spread
	rests  func() bool           // reports whether a successor can go on without knowing what was planned; not called without spread

	unended *int64 // a term that Postgres may still call ours though it ended, 0 for whichever; nil for none
}

// errSpread ends a term for the sake of another member.
var errSpread = errors.New("others lead fewer streams")

// errTrustEnded ends what runs while the leadership cannot be trusted any more.
var errTrustEnded = errors.New("the lease ends before this is done")

// errCutOff ends a step that would keep the leader from renewing its lock.
var errCutOff = errors.New("cut off, it took longer than a leader's step may (processor doctor tells a slow server and who holds a lock)")

// LeaderWork is what a leader does.
type LeaderWork interface {
	// Steps returns the steps of one pass of a leader's work under a term, in their
	// order. The error of one ends the term. A pass that was woken does only what
	// may have to follow a change of members or shards at once.
	Steps(term int64, woken bool) []func(ctx context.Context) error
	// Beside does what may take longer than a step, until ctx ends with the term.
	Beside(ctx context.Context, term int64)
	// ReassignOwnShards assigns this member's shards to other members, before
	// it leaves.
	ReassignOwnShards(ctx context.Context, term int64) error
}

// newElector returns an elector that does not campaign yet.
func newElector(cfg Config, lock lease, terms LeaderStore, notifier Stream, leaderWork LeaderWork, canLead func() bool, m *metrics, log *slog.Logger) *elector {
	return &elector{
		cfg: cfg, lock: lock, terms: terms, notifier: notifier, work: leaderWork, canLead: canLead,
		metrics: m, log: log.With("component", "elector"),
		vacancy: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
}

// campaign wakes the elector: the leadership may be free.
func (e *elector) campaign() { wakeUp(e.vacancy) }

// Wake wakes a leader: something changed that it acts upon.
func (e *elector) Wake() { wakeUp(e.wake) }

// Run campaigns and leads until ctx ends; then it reassigns its own shards and
// resigns.
func (e *elector) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var quiet, unended lograte.Limit
	for ctx.Err() == nil {
		wait := e.cfg.renewEvery()
		if e.canLead() {
			if e.spread != nil {
				_ = pause(ctx, e.spread.Yield(e.peers()))
			}
			if err := until(ctx, time.Now().Add(resignStep), context.DeadlineExceeded, e.endTerm); err != nil && ctx.Err() == nil && unended.Pass() {
				e.log.Warn("ending the last term failed, will retry", "err", err)
			}
			started := time.Now()
			left, err := e.lock.obtain(ctx)
			switch {
			case err == nil:
				e.spread.Hold(true)
				e.lead(ctx, started)
				e.spread.Hold(false)
				continue
			case errors.Is(err, errLockHeld):
				// The lock of a dead leader is free when it expires, not when it is tried next.
				wait = min(wait, max(left, time.Millisecond)+time.Millisecond)
			case ctx.Err() == nil && quiet.Pass():
				e.log.Warn("campaigning failed, will retry", "err", err)
			}
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-e.vacancy:
		}
	}
	return nil
}

// margin is subtracted from the lease, for clocks that run at different rates.
func (e *elector) margin() time.Duration { return e.cfg.LeaderTTL / 8 }

// lead runs one term; asked is the time just before the lock was requested.
func (e *elector) lead(ctx context.Context, asked time.Time) {
	trusted := asked.Add(e.cfg.LeaderTTL - e.margin())
	var term int64
	why := until(ctx, trusted, errTrustEnded, func(ctx context.Context) (err error) {
		term, err = e.terms.BeginTerm(ctx)
		return err
	})
	e.unended = &term // 0 if it may have begun all the same
	if why == nil {
		e.log.Info("leading", "term", term)
		e.metrics.terms.Inc()
		e.metrics.leader.Set(1)
		why = e.runTerm(ctx, trusted, term)
		e.metrics.leader.Set(0)
	}
	e.resign(ctx, term, why)
}

// runTerm alternates work and renewals until the term ends. It returns the
// reason: ctx.Err() when the member is stopping.
//
// A pass may take longer than the lease as long as it advances: the lock is also
// renewed between its steps. Otherwise a leader on a slow machine would begin its
// first pass again in each term and never finish it.
func (e *elector) runTerm(ctx context.Context, trusted time.Time, term int64) error {
	trust, end := context.WithCancelCause(ctx)
	expiry := time.AfterFunc(time.Until(trusted), func() { end(errTrustEnded) })
	var beside sync.WaitGroup
	beside.Go(func() { e.work.Beside(trust, term) })
	defer func() {
		expiry.Stop()
		end(nil)
		beside.Wait()
	}()
	tick := time.NewTicker(e.cfg.renewEvery())
	defer tick.Stop()
	renewed := time.Now()
	renew := func() (err error) {
		renewed = time.Now()
		trusted, err = e.renew(ctx, trusted)
		expiry.Reset(time.Until(trusted))
		return err
	}
	for woken := false; ; {
		for _, step := range e.work.Steps(term, woken) {
			if time.Since(renewed) >= e.cfg.renewEvery() {
				if err := renew(); err != nil {
					return err
				}
			}
			if err := e.step(trust, trusted, step); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			woken = false
		case <-e.wake:
			woken = true
		}
		if woken && time.Since(renewed) < e.cfg.renewEvery() {
			continue
		}
		if e.spread != nil && e.rests() && e.spread.GiveUp(time.Now(), e.peers()) {
			return errSpread
		}
		if err := renew(); err != nil {
			return err
		}
	}
}

// step runs a step. One that takes too long is cut off while the lock can still be renewed.
func (e *elector) step(ctx context.Context, trusted time.Time, do func(context.Context) error) error {
	if early := trusted.Add(-e.margin()); time.Now().Before(early) {
		return until(ctx, early, errCutOff, do)
	}
	return until(ctx, trusted, errTrustEnded, do)
}

// renew renews the lock and returns until when the leadership is trusted then. A
// renewal that fails is no error while it is trusted without.
func (e *elector) renew(ctx context.Context, trusted time.Time) (time.Time, error) {
	asked := time.Now()
	err := until(ctx, trusted, errTrustEnded, e.lock.renew)
	switch {
	case err == nil:
		e.metrics.renewals.WithLabelValues("ok").Inc()
		return asked.Add(e.cfg.LeaderTTL - e.margin()), nil
	case errors.Is(err, errLockHeld):
		e.metrics.renewals.WithLabelValues("lost").Inc()
		return trusted, err
	case ctx.Err() != nil:
		return trusted, ctx.Err()
	}
	e.metrics.renewals.WithLabelValues("error").Inc()
	if !time.Now().Before(trusted) {
		return trusted, err
	}
	return trusted, nil
}

// until runs f with a context that ends at a time, for a reason.
func until(ctx context.Context, end time.Time, reason error, f func(context.Context) error) error {
	ctx, cancel := context.WithDeadlineCause(ctx, end, reason)
	defer cancel()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return f(ctx)
}

// resignStep bounds each step of a resignation.
const resignStep = time.Second

// endTerm ends the last term in Postgres unless that has succeeded: an instance that starts on a Redis
// without members waits for a leader that Postgres names and that is alive.
func (e *elector) endTerm(ctx context.Context) error {
	if e.unended == nil {
		return nil
	}
	err := e.terms.Resign(ctx, *e.unended)
	if err == nil {
		e.unended = nil
	}
	return err
}

// resign ends the term immediately, so that a successor need not wait for the
// lock to expire. Each step is attempted independently, within a second.
func (e *elector) resign(ctx context.Context, term int64, why error) {
	stopping := ctx.Err() != nil
	switch {
	case stopping:
		e.log.Info("stepping down: shutting down", "term", term)
	case errors.Is(why, errSpread):
		e.log.Info("stepping down: others lead fewer streams", "term", term)
	default:
		if f, ok := errors.AsType[*protocol.Failure](why); ok && f.Kind == protocol.Fenced {
			rare.Reached(rare.TermRefused)
		}
		e.log.Warn("stepping down", "term", term, "err", why)
	}
	last := context.WithoutCancel(ctx)
	step := func(what string, f func(context.Context) error) {
		ctx, cancel := context.WithTimeoutCause(last, resignStep, errors.New(what+" took longer than a second"))
		defer cancel()
		if err := f(ctx); err != nil {
			e.log.Warn("stepping down: operation failed", "what", what, "err", err)
		}
	}
	if stopping && term != 0 {
		step("assign own shards away", func(ctx context.Context) error { return e.work.ReassignOwnShards(ctx, term) })
	}
	step("end the term", e.endTerm)
	step("release the lock", e.lock.release)
	if stopping || errors.Is(why, errSpread) {
		step("call for a successor", e.notifier.NotifyLeadership)
	}
	if stopping {
		return
	}
	// Let another member campaign first.
	_ = pause(ctx, e.cfg.renewEvery()/2)
}
