package modules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/fault"
)

// errStopping is the cause of a component's ended context when the service
// stops.
var errStopping = errors.New("the service is stopping")

// runner is a long-lived component: Run blocks until ctx is cancelled and
// everything it started has ended.
type runner interface {
	Run(ctx context.Context) error
}

// supervisor turns components into lifecycle hooks.
type supervisor struct {
	lc       fx.Lifecycle
	shutdown fx.Shutdowner
	log      *slog.Logger
	panicked func(value any) // called with a panic's value before it ends the process; set before the start
}

func newSupervisor(lc fx.Lifecycle, shutdown fx.Shutdowner, log *slog.Logger) *supervisor {
	return &supervisor{lc: lc, shutdown: shutdown, log: log, panicked: func(any) {}}
}

// run adds the hooks of one component. Start launches Run on a context of its
// own, because the hook's context ends with the start. If Run returns before
// Stop, with an error or without, the whole service ends with the error's
// ExitCode, or 2. Stop cancels the context and waits for the return, at most
// until the hook's deadline. A panic is reported and ends the process.
func (s *supervisor) run(name string, r runner) {
	ctx, cancel := context.WithCancelCause(context.Background())
	var stopping atomic.Bool
	var result error // written before done is closed, read after
	done := make(chan struct{})

	s.lc.Append(fx.Hook{
		OnStart: func(context.Context) error {
			go func() {
				defer close(done)
				defer s.reportPanic()
				result = r.Run(ctx)
				if !stopping.Load() {
					s.onUnexpectedReturn(name, result)
					result = nil // reported; the stop hook has nothing to add
				}
			}()
			return nil
		},
		OnStop: func(stopCtx context.Context) error {
			stopping.Store(true)
			cancel(errStopping)
			select {
			case <-done:
			case <-stopCtx.Done():
				return fmt.Errorf("stop %s: still running: %w", name, context.Cause(stopCtx))
			}
			if result == nil || errors.Is(result, context.Canceled) || errors.Is(result, errStopping) {
				return nil
			}
			return fmt.Errorf("stop %s: %w", name, result)
		},
	})
}

// reportPanic reports a panic and lets it propagate.
func (s *supervisor) reportPanic() {
	if value := recover(); value != nil {
		s.panicked(value)
		panic(value)
	}
}

// onUnexpectedReturn logs a return before the stop and shuts the service down.
func (s *supervisor) onUnexpectedReturn(name string, err error) {
	code := fault.Unexpected
	if err != nil {
		code = fault.ExitCode(fault.Coded(code, err))
	}
	if err == nil {
		err = errors.New("it returned before it was stopped")
	}
	s.log.Error("component ended; shutting down", "component", name, "exit_code", code, "err", err)
	// The only error is that an earlier shutdown request has not been read yet;
	// that one then decides the exit code.
	_ = s.shutdown.Shutdown(fx.ExitCode(code))
}
