package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
)

// known is what was read from the catalogue and is read again now and then. One
// caller reads; the others go on with what was read before, and wait only where
// nothing was, or what was is too old for them whatever its age.
type known[T any] struct {
	reading turn

	mu    sync.Mutex // never held while the server is asked
	value T
	at    time.Time // zero: nothing was read yet
}

func newKnown[T any]() *known[T] { return &known[T]{reading: newTurn()} }

// get is the value as of at most age ago, older only while another caller reads;
// for age 0 it is read after the call began.
func (k *known[T]) get(ctx context.Context, age time.Duration, read func() (T, error)) (T, error) {
	value, at := k.last()
	fresh := func() bool { return !at.IsZero() && time.Since(at) < age }
	if fresh() {
		return value, nil
	}
	if !k.reading.try() {
		if !at.IsZero() && age > 0 {
			return value, nil
		}
		if err := k.reading.take(ctx); err != nil {
			return value, err
		}
	}
	defer k.reading.give()
	if value, at = k.last(); fresh() {
		return value, nil // who had the turn before has read it
	}
	value, err := read()
	if err != nil {
		return value, lookUpFailed(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.value, k.at = value, time.Now()
	return value, nil
}

func (k *known[T]) last() (T, time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.value, k.at
}

// lookUpFailed is the failure of a look-up that a batch needs and that has nothing to
// do with its size: nothing was written, and a smaller batch would fare no better.
func lookUpFailed(err error) error {
	err = notBegun(failure("look into the catalogue", err))
	if f, ok := errors.AsType[*protocol.Failure](err); ok {
		f.TooMuch = false
	}
	return err
}

// turn is a lock for which a caller waits no longer than its context.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) try() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &protocol.Failure{Kind: protocol.Unavailable, Err: fmt.Errorf("wait for another look-up into the catalogue: %w", ctx.Err())}
	}
}

func (t turn) give() { <-t }
