package testbed

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// final is an error that waiting does not fix.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// GiveUp marks an error as final.
func GiveUp(err error) error { return final{err} }

// Until polls a condition until it returns nil, a final error
// or the context ends.
func Until(ctx context.Context, every time.Duration, condition func() error) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		if f := (final{}); errors.As(err, &f) {
			return f.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// Within is until with a limit of its own.
func Within(ctx context.Context, limit, every time.Duration, condition func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	return Until(ctx, every, condition)
}

// Pause waits, and reports whether the context is still live.
func Pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
