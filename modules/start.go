package modules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/lograte"
)

// probeTimeout bounds one query to a server that may be down.
const probeTimeout = 5 * time.Second

// errAborted ends the start because the service was stopped during it.
var errAborted = errors.New("stopped while starting")

// starter bounds the start: all waits together get START_TIMEOUT, and a signal
// ends the wait.
type starter struct {
	timeout time.Duration
	log     *slog.Logger

	begin sync.Once
	end   time.Time          // set by the first wait
	abort context.CancelFunc // ends the start
	// failed is called when the start has failed and is rolled back; set before the start.
	failed func(err error)
	// onAbort has f called when the start is aborted, unless stop is called before.
	onAbort func(f func()) (stop func() bool)
}

func newStarter(cfg config.Config, log *slog.Logger) *starter {
	s := &starter{timeout: cfg.Instance.StartTimeout, log: log.With("component", "start"), failed: func(error) {}}
	running, abort := context.WithCancel(context.Background())
	s.abort = abort
	s.onAbort = func(f func()) func() bool { return context.AfterFunc(running, f) }
	return s
}

// detach returns a context that only an abort of the start ends.
func (s *starter) detach(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := s.onAbort(cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// extend adds what took time that was no wait for a dependency.
func (s *starter) extend(by time.Duration) { s.end = s.end.Add(by) }

// permanent marks an error that waiting does not fix.
func permanent(err error) error { return backoff.Permanent(err) }

// wait calls probe until it succeeds. It gives up after START_TIMEOUT, when the
// start is aborted, and immediately after a permanent error. Hooks call it one
// after the other.
func (s *starter) wait(ctx context.Context, name string, probe func(ctx context.Context) error) error {
	s.begin.Do(func() { s.end = time.Now().Add(s.timeout) })
	ctx, cancel := context.WithDeadlineCause(ctx, s.end, errLate)
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	stop := s.onAbort(func() { abort(errAborted) })
	defer stop()

	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, 2*time.Second
	var last, forGood error
	var quiet lograte.Limit
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := probe(ctx)
		var final *backoff.PermanentError
		if errors.As(err, &final) {
			forGood = err
		}
		// What the end of the start cut short says nothing of the server; a dial may end before ctx does.
		if err != nil && context.Cause(ctx) == nil && time.Now().Before(s.end) && !errors.As(err, &final) {
			last = err
			if quiet.Pass() {
				s.log.Warn("waiting for a dependency", "dependency", name, "err", err)
			}
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(0))
	switch cause := context.Cause(ctx); {
	case err == nil:
		return nil
	case errors.Is(cause, errAborted):
		return errAborted
	case forGood != nil: // whenever that turned out
	case errors.Is(cause, errLate):
		return fault.Exitf(fault.Dependency, "%s was not available within START_TIMEOUT=%v: %w", name, s.timeout, latest(last, err))
	}
	return fault.Coded(fault.Dependency, fmt.Errorf("%s: %w", name, err))
}

var errLate = errors.New("the start exceeded START_TIMEOUT")

func latest(last, err error) error {
	if last != nil {
		return last
	}
	return err
}
