package coordination

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// resizeStore is the Postgres side of the number of shards.
type resizeStore interface {
	List(ctx context.Context) ([]protocol.Shard, error)
	Pinned(ctx context.Context) (int, error)
	Requested(ctx context.Context) (int, error)
	Resize(ctx context.Context, from, to int, delivered telemetry.EntryID, who string, resized func(ctx context.Context) error) error
}

// resizeStream is the Redis side of it.
type resizeStream interface {
	ForceAcquireDispatchLease(ctx context.Context, token string, ttl time.Duration) error
	AcquireDispatchLease(ctx context.Context, before, token string, ttl time.Duration) (protocol.DispatchLease, error)
	ReleaseDispatchLease(ctx context.Context, token string) error
	Queues(ctx context.Context) (map[int]protocol.QueueState, error)
	PinnedShards(ctx context.Context) (int, error)
	PinShards(ctx context.Context, shards int) error
	ForgetMarks(ctx context.Context) error
}

// resizeTTL is how long dispatching stays paused after a resize that died.
const resizeTTL = 15 * time.Second

// Resize changes the number of shards. It holds the dispatch lease, which stops
// dispatching, waits until the members have drained the queues and the last of
// them has left, and then changes the number in Redis and in Postgres. If
// interrupted before that, nothing is changed and dispatching resumes when the
// lease expires; after that, calling it again completes it.
type Resize struct {
	Store  resizeStore
	Stream resizeStream
	// Members returns the live members.
	Members func(ctx context.Context) ([]Member, error)
	// End ends the database sessions of an owner that did not release.
	End func(ctx context.Context, member string) (protocol.EndedSessions, error)
	// OnProgress is called with what Resize waits for, whenever that changes.
	OnProgress func(waiting string)
	Operator   string
	// Together is of the streams that the same instances serve, and Name this one's; nil
	// for one alone.
	Together *ResizeTogether
	Name     string
}

// ResizeTogether has several streams resized at the same time: none is changed before all
// are drained and without a member. An instance counts the same number for each of them, so
// one that is still needed to drain a stream could not start once another is changed.
type ResizeTogether struct {
	// OnProgress is called with what one of them waits for, whenever that changes.
	OnProgress func(waiting string)

	mu      sync.Mutex
	waiting map[string]wait // by stream
	ready   bool            // all were ready at the same time
	failed  bool            // before that, one ended
	said    string
}

// Add makes all wait for a stream. Each is added before the first runs.
func (t *ResizeTogether) Add(name string) {
	if t.waiting == nil {
		t.waiting = make(map[string]wait)
	}
	t.waiting[name] = wait{order: waitsForOthers, text: "it is looked at"}
}

// Done says that a stream is changed, or was before: the others do not wait for it.
func (t *ResizeTogether) Done(name string) { t.goOn(name, wait{}) }

// Fail says that one of the streams is not changed. It reports whether nothing of the others is changed
// either, and never will be: they are to be stopped.
func (t *ResizeTogether) Fail() (all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = t.failed || !t.ready
	return t.failed
}

// goOn reports whether the stream may be changed, given what it waits for itself.
func (t *ResizeTogether) goOn(name string, w wait) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[name] = w
	var first string
	for other, theirs := range t.waiting {
		if mine := t.waiting[first]; theirs.order > 0 && (first == "" || theirs.order > mine.order || theirs.order == mine.order && other < first) {
			first = other
		}
	}
	if t.failed {
		return false
	}
	if first == "" {
		t.ready = true
	}
	if t.ready {
		return w.order == 0
	}
	text := t.waiting[first].text
	if t.waiting[first].order > waitsForStop {
		text = "stream " + first + ": " + text
	}
	if text != t.said && t.waiting[first].order != waitsForOthers && t.OnProgress != nil {
		t.said = text
		t.OnProgress(text)
	}
	return false
}

// wait is what a resize waits for. Of several the one of the highest order is told.
type wait struct {
	order int // 0 for nothing
	text  string
}

const (
	waitsForStop = iota + 1
	waitsForOthers
	waitsForQueues
	waitsForStart
)

// errDispatchLeaseLost says that another member dispatches.
var errDispatchLeaseLost = errors.New("the dispatch lease was lost, nothing was changed; run it again")

// Run resizes to the number of shards given. It reports whether that was a
// change.
func (r *Resize) Run(ctx context.Context, to int) (changed bool, err error) {
	from, err := r.Store.Pinned(ctx)
	if err != nil {
		return false, err
	}
	if from == 0 {
		return false, errors.New("no instance has ever started: nothing to change, start the first with the number wanted")
	}
	counted, err := r.Stream.PinnedShards(ctx)
	if err != nil {
		return false, err
	}
	if from == to && (counted == 0 || counted == to) {
		return false, nil
	}
	if counted != 0 && counted != from {
		// An earlier call was interrupted between Redis and Postgres: the
		// queues were drained, and nothing has been dispatched since.
		return true, r.undo(ctx, from, to)
	}
	token := rand.Text()
	if err := r.Stream.ForceAcquireDispatchLease(ctx, token, resizeTTL); err != nil {
		return false, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if releaseErr := r.Stream.ReleaseDispatchLease(ctx, token); releaseErr != nil {
			err = errors.Join(err, releaseErr)
		}
	}()
	lease, err := r.awaitDrained(ctx, token)
	if err != nil {
		return false, err
	}
	rare.Reached(rare.Resized)
	return true, r.change(ctx, from, to, lease.After)
}

// awaitDrained waits until everything dispatched is finished and no member is
// left.
func (r *Resize) awaitDrained(ctx context.Context, token string) (protocol.DispatchLease, error) {
	said := ""
	for {
		lease, err := r.Stream.AcquireDispatchLease(ctx, token, token, resizeTTL)
		if err != nil {
			return lease, err
		}
		if !lease.Acquired {
			return lease, errDispatchLeaseLost
		}
		waiting, err := r.waiting(ctx)
		if err != nil {
			return lease, err
		}
		ready := waiting.order == 0
		if r.Together != nil {
			ready = r.Together.goOn(r.Name, waiting)
		}
		if ready {
			return lease, nil
		}
		if waiting.text != said && r.OnProgress != nil {
			said = waiting.text
			r.OnProgress(waiting.text)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			if waiting.order == 0 {
				return lease, errors.New("nothing was changed, dispatching continues: another stream was not ready")
			}
			return lease, fmt.Errorf("nothing was changed, dispatching continues: %s", waiting.text)
		}
	}
}

// waiting returns what the resize waits for.
func (r *Resize) waiting(ctx context.Context) (w wait, err error) {
	queues, err := r.Stream.Queues(ctx)
	if err != nil {
		return w, err
	}
	outstanding := int64(0)
	for _, q := range queues {
		outstanding += q.Pending
	}
	requests, err := r.Store.Requested(ctx)
	if err != nil {
		return w, err
	}
	members, err := r.Members(ctx)
	if err != nil {
		return w, err
	}
	switch {
	case (outstanding > 0 || requests > 0) && len(members) == 0:
		return wait{waitsForStart, fmt.Sprintf("%d entries are on the queues and %d requests are not finished, and no instance works on them: start one with the old number", outstanding, requests)}, nil
	case outstanding > 0 || requests > 0:
		return wait{waitsForQueues, fmt.Sprintf("dispatching is paused, %d entries are on the queues and %d requests are not finished", outstanding, requests)}, nil
	case len(members) > 0:
		return wait{waitsForStop, fmt.Sprintf("all queues are empty: stop the instances now; still there: %d", len(members))}, nil
	}
	return w, nil
}

// change ends owners that did not release, and changes the number: in Redis before
// Postgres commits it, so that no member dispatches by the old one whatever happens next.
func (r *Resize) change(ctx context.Context, from, to int, delivered telemetry.EntryID) error {
	list, err := r.Store.List(ctx)
	if err != nil {
		return err
	}
	ended := make(map[string]bool)
	for _, s := range list {
		if s.Owner != "" && !ended[s.Owner] {
			ended[s.Owner] = true
			if _, err := r.End(ctx, s.Owner); err != nil {
				return err
			}
		}
	}
	half := false
	inRedis := func(ctx context.Context) (err error) {
		half = true
		defer func() {
			if err == nil {
				return
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			back := r.Stream.PinShards(ctx, from) // Postgres keeps it
			half = back != nil
			err = errors.Join(err, back)
		}()
		if err := r.Stream.PinShards(ctx, to); err != nil {
			return err
		}
		// A replay that puts entries on the queues compares the number in the same step.
		queues, err := r.Stream.Queues(ctx)
		if err == nil && len(queues) > 0 {
			err = errors.New("entries were put on the queues meanwhile, nothing was changed: run it again")
		}
		if err != nil {
			return err
		}
		return r.Stream.ForgetMarks(ctx)
	}
	if from == to {
		return inRedis(ctx)
	}
	err = r.Store.Resize(ctx, from, to, delivered, r.Operator, inRedis)
	if err != nil && half {
		return fmt.Errorf("%w; Redis and Postgres may have different numbers of shards, and nothing is dispatched then: run it again", err)
	}
	return err
}

// undo reconciles Redis and Postgres after a change that was interrupted in
// between: Redis takes Postgres' number; a call with another number then starts
// over.
func (r *Resize) undo(ctx context.Context, from, to int) error {
	if err := r.Stream.PinShards(ctx, from); err != nil {
		return err
	}
	if from == to {
		return nil
	}
	_, err := r.Run(ctx, to)
	return err
}
