package coordination

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// ResizeStore is what Postgres keeps of the number of shards.
type ResizeStore interface {
	List(ctx context.Context) ([]protocol.Shard, error)
	Pinned(ctx context.Context) (int, error)
	Requested(ctx context.Context) (int, error)
	Resize(ctx context.Context, from, to int, delivered telemetry.EntryID, who string) error
}

// ResizeStream is what Redis keeps of it.
type ResizeStream interface {
	SeizeTurn(ctx context.Context, token string, ttl time.Duration) error
	AcquireTurn(ctx context.Context, before, token string, ttl time.Duration) (protocol.Turn, error)
	ReleaseTurn(ctx context.Context, token string) error
	Queues(ctx context.Context) (map[int]protocol.QueueState, error)
	PinnedShards(ctx context.Context) (int, error)
	PinShards(ctx context.Context, shards int) error
	ForgetMarks(ctx context.Context) error
}

// resizeTTL is how long dealing stays paused after whoever resizes has died.
const resizeTTL = 15 * time.Second

// Resize changes the number of shards. It holds the turn, so that nobody deals,
// lets the members work off what is on the queues, waits until the last of them
// has left, and then changes the number in Redis and in Postgres. Until then
// nothing is changed, and dealing goes on by itself if it is broken off; after
// that calling it again finishes it.
type Resize struct {
	Store  ResizeStore
	Stream ResizeStream
	// Members is who is there.
	Members func(ctx context.Context) ([]Member, error)
	// End ends the database sessions of an owner that did not release.
	End func(ctx context.Context, member string) (int, error)
	// Say is called with what is waited for, whenever that changes.
	Say func(waiting string)
	Who string
}

// errTurnLost says that somebody else deals again.
var errTurnLost = errors.New("the turn was lost, nothing is changed; call it again")

// Run resizes to a number of shards. It returns false when that is the number already.
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
		// An earlier call was broken off between Redis and Postgres. All was done by
		// then, and nobody has dealt since.
		return true, r.undo(ctx, from, to)
	}
	token := rand.Text()
	if err := r.Stream.SeizeTurn(ctx, token, resizeTTL); err != nil {
		return false, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if releaseErr := r.Stream.ReleaseTurn(ctx, token); releaseErr != nil {
			err = errors.Join(err, releaseErr)
		}
	}()
	turn, err := r.awaitQuiet(ctx, token)
	if err != nil {
		return false, err
	}
	return true, r.change(ctx, from, to, turn.After)
}

// awaitQuiet waits until everything dealt is done and nobody is there any more.
func (r *Resize) awaitQuiet(ctx context.Context, token string) (protocol.Turn, error) {
	said := ""
	for {
		turn, err := r.Stream.AcquireTurn(ctx, token, token, resizeTTL)
		if err != nil {
			return turn, err
		}
		if !turn.Held {
			return turn, errTurnLost
		}
		waiting, err := r.waiting(ctx)
		if err != nil {
			return turn, err
		}
		if waiting == "" {
			return turn, nil
		}
		if waiting != said && r.Say != nil {
			said = waiting
			r.Say(waiting)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return turn, fmt.Errorf("nothing is changed, dealing goes on: %s", waiting)
		}
	}
}

// waiting is what is waited for, "" for nothing.
func (r *Resize) waiting(ctx context.Context) (string, error) {
	queues, err := r.Stream.Queues(ctx)
	if err != nil {
		return "", err
	}
	undone := int64(0)
	for _, q := range queues {
		undone += q.Pending
	}
	requests, err := r.Store.Requested(ctx)
	if err != nil {
		return "", err
	}
	members, err := r.Members(ctx)
	if err != nil {
		return "", err
	}
	switch {
	case (undone > 0 || requests > 0) && len(members) == 0:
		return fmt.Sprintf("%d entries are on the queues and %d requests are not finished, and no instance works on them: start one with the old number", undone, requests), nil
	case undone > 0 || requests > 0:
		return fmt.Sprintf("dealing is paused, %d entries are on the queues and %d requests are not finished", undone, requests), nil
	case len(members) > 0:
		return fmt.Sprintf("all queues are empty: stop the instances now; still there: %d", len(members)), nil
	}
	return "", nil
}

// change ends whoever did not release, and changes the number: first in Redis,
// so that nobody deals by the old one, whatever happens next.
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
	if err := r.Stream.PinShards(ctx, to); err != nil {
		return err
	}
	if err := r.Stream.ForgetMarks(ctx); err != nil {
		return err
	}
	if from == to {
		return nil
	}
	return r.Store.Resize(ctx, from, to, delivered, r.Who)
}

// undo brings Redis and Postgres together again after a change that was broken
// off in between: Redis takes the number that Postgres has, and a call with
// another number begins anew.
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
