package coordination

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bsm/redislock"
)

// errLockHeld says that somebody else leads.
var errLockHeld = errors.New("the leader's lock is held by another member")

// lock is the leader's lock in Redis. Its random token keeps two holders apart
// in Redis; what keeps them apart where it counts is the term in Postgres.
type lock struct {
	client *redislock.Client
	key    string
	ttl    time.Duration
	held   *redislock.Lock
}

func newLock(client Client, key string, ttl time.Duration) *lock {
	return &lock{client: redislock.New(client), key: key, ttl: ttl}
}

func (l *lock) obtain(ctx context.Context) error {
	held, err := l.client.Obtain(ctx, l.key, l.ttl, nil)
	if errors.Is(err, redislock.ErrNotObtained) {
		return errLockHeld
	}
	if err != nil {
		return fmt.Errorf("obtain the leader's lock: %w", err)
	}
	l.held = held
	return nil
}

func (l *lock) renew(ctx context.Context) error {
	err := l.held.Refresh(ctx, l.ttl, nil)
	if errors.Is(err, redislock.ErrNotObtained) {
		return errLockHeld
	}
	if err != nil {
		return fmt.Errorf("renew the leader's lock: %w", err)
	}
	return nil
}

func (l *lock) release(ctx context.Context) error {
	if l.held == nil {
		return nil
	}
	err := l.held.Release(ctx)
	l.held = nil
	if err != nil && !errors.Is(err, redislock.ErrLockNotHeld) {
		return fmt.Errorf("release the leader's lock: %w", err)
	}
	return nil
}
