package modules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxevent"

	"github.com/trmtracking/processor/internal/config"
)

// stallLimit bounds every wait of these tests; none is expected to use it.
const stallLimit = 10 * time.Second

type runFunc func(ctx context.Context) error

func (f runFunc) Run(ctx context.Context) error { return f(ctx) }

type codedError struct{ code int }

func (e codedError) Error() string { return "coded" }
func (e codedError) ExitCode() int { return e.code }

// component is one named Run of a test's service.
type component struct {
	name string
	run  runFunc
}

// service wires the components in order, as modules do.
func service(t *testing.T, log io.Writer, components ...component) *fx.App {
	t.Helper()
	app := fx.New(
		fx.WithLogger(func() fxevent.Logger { return fxevent.NopLogger }),
		fx.Supply(slog.New(slog.NewTextHandler(log, nil))),
		fx.Provide(newSupervisor),
		fx.StartTimeout(stallLimit), fx.StopTimeout(stallLimit),
		fx.Invoke(func(s *supervisor) {
			for _, c := range components {
				s.run(c.name, c.run)
			}
		}),
	)
	require.NoError(t, app.Err())
	return app
}

func start(t *testing.T, app *fx.App) <-chan fx.ShutdownSignal {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stallLimit)
	defer cancel()
	require.NoError(t, app.Start(ctx))
	return app.Wait()
}

func stop(t *testing.T, app *fx.App) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stallLimit)
	defer cancel()
	return app.Stop(ctx)
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(stallLimit):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

// untilStopped is a component that runs until it is stopped and records its end.
func untilStopped(ended *[]string, name string) component {
	return component{name, func(ctx context.Context) error {
		<-ctx.Done()
		*ended = append(*ended, name) // stop hooks run one after the other
		return context.Cause(ctx)
	}}
}

func TestUnexpectedReturnEndsTheServiceWithItsCode(t *testing.T) {
	tests := []struct {
		give error
		want int
	}{
		{errors.New("broken"), 2},
		{nil, 2},
		{context.Canceled, 2}, // no stop was requested
		{codedError{6}, 6},
		{fmt.Errorf("take shard 3: %w", codedError{5}), 5},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.give), func(t *testing.T) {
			var ended []string
			var log bytes.Buffer
			fail := make(chan struct{})
			app := service(t, &log,
				untilStopped(&ended, "first"),
				component{"broken", func(context.Context) error { <-fail; return tt.give }},
				untilStopped(&ended, "last"),
			)
			signal := start(t, app)
			close(fail)
			require.Equal(t, tt.want, receive(t, signal).ExitCode)
			require.NoError(t, stop(t, app), "the failure was reported already")
			require.Equal(t, []string{"last", "first"}, ended, "the others stop in reverse order")
			require.Contains(t, log.String(), "component=broken")
		})
	}
}

func TestReturnBeforeTheStartIsOverEndsTheService(t *testing.T) {
	returned := make(chan struct{})
	app := service(t, io.Discard,
		component{"hasty", func(context.Context) error { defer close(returned); return codedError{4} }},
	)
	signal := start(t, app)
	receive(t, returned)
	require.Equal(t, 4, receive(t, signal).ExitCode)
	require.NoError(t, stop(t, app))
}

func TestStopWaitsForTheReturn(t *testing.T) {
	asked, allow := make(chan error, 1), make(chan struct{})
	app := service(t, io.Discard, component{"slow", func(ctx context.Context) error {
		<-ctx.Done()
		asked <- context.Cause(ctx)
		<-allow
		return nil
	}})
	signal := start(t, app)
	stopped := make(chan error, 1)
	go func() { stopped <- stop(t, app) }()
	require.ErrorIs(t, receive(t, asked), errStopping, "the cause says why")
	select {
	case <-stopped: //nolint:errcheck // its error means nothing here
		require.FailNow(t, "stop returned before the component did")
	case <-signal:
		require.FailNow(t, "an asked-for end is no failure")
	default:
	}
	close(allow)
	require.NoError(t, receive(t, stopped))
	select {
	case <-signal:
		require.FailNow(t, "an asked-for end is no failure")
	default:
	}
}

func TestStopReportsWhatWentWrongWhileStopping(t *testing.T) {
	app := service(t, io.Discard, component{"pipeline", func(ctx context.Context) error {
		<-ctx.Done()
		return codedError{1}
	}})
	start(t, app)
	err := stop(t, app)
	require.ErrorIs(t, err, codedError{1})
	require.ErrorContains(t, err, "stop pipeline: coded")
}

func TestStopGivesUpAtItsDeadline(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	app := service(t, io.Discard, component{"stuck", func(context.Context) error { <-release; return nil }})
	start(t, app)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := app.Stop(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// A part that does not end must not keep a process that cannot start.
func TestAStartThatFailsOrIsAbortedEndsWithinTheShutdownTimeout(t *testing.T) {
	for name, hook := range map[string]func(abort func(), release <-chan struct{}) error{
		"fails":               func(func(), <-chan struct{}) error { return codedError{4} },
		"is aborted, hanging": func(abort func(), release <-chan struct{}) error { abort(); <-release; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, abort := context.WithCancel(t.Context())
			end := make(chan struct{})
			t.Cleanup(func() { close(end) })
			var lines bytes.Buffer
			log := slog.New(slog.NewTextHandler(&lines, nil))
			released := false
			s := &Service{log: log, starter: newStarter(config.Config{}, log), release: func(context.Context) { released = true }}
			s.app = fx.New(
				fx.Supply(log, s.starter), fx.Provide(newSupervisor), withLogger(),
				fx.StartTimeout(24*time.Hour), fx.StopTimeout(20*time.Millisecond),
				fx.Invoke(func(run *supervisor, lc fx.Lifecycle) {
					run.run("stuck", runFunc(func(context.Context) error { <-end; return nil }))
					lc.Append(fx.StartHook(func() error { return hook(abort, end) }))
				}),
			)
			done := make(chan error, 1)
			go func() { done <- s.Start(ctx) }()
			err := receive(t, done)
			require.True(t, released)
			if ctx.Err() != nil {
				require.ErrorIs(t, err, errAborted)
				require.Contains(t, lines.String(), "a part did not end its start", "nothing was rolled back yet")
			} else {
				require.ErrorIs(t, err, codedError{4})
				require.Contains(t, lines.String(), "rolling the start back took longer")
			}
		})
	}
}

func TestStartContextEndingLeavesTheComponentRunning(t *testing.T) {
	running, probe := make(chan context.Context, 1), make(chan struct{})
	app := service(t, io.Discard, component{"steady", func(ctx context.Context) error {
		running <- ctx
		<-ctx.Done()
		close(probe)
		return nil
	}})
	ctx, cancel := context.WithTimeout(t.Context(), stallLimit)
	require.NoError(t, app.Start(ctx))
	own := receive(t, running)
	cancel()
	<-ctx.Done()
	require.NoError(t, own.Err())
	require.NoError(t, stop(t, app))
	receive(t, probe)
}

// A panic must reach the runtime: the test runs itself as a process that
// panics, because nothing in this process may catch it either.
func TestPanicEndsTheProcess(t *testing.T) {
	if os.Getenv("LIFECYCLE_TEST_PANIC") == "1" {
		app := service(t, io.Discard, component{"panicking", func(context.Context) error { panic("out of order") }})
		receive(t, start(t, app))
		os.Exit(0) // not reached unless the panic was swallowed
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPanicEndsTheProcess$")
	cmd.Env = append(os.Environ(), "LIFECYCLE_TEST_PANIC=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 2, exit.ExitCode(), "%s", out)
	require.Contains(t, string(out), "panic: out of order")
}
