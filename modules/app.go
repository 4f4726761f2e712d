package modules

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/httpserver"
)

// Build describes this build of the program.
type Build struct {
	Version  string
	Revision string
}

// invokes is the start order; its reverse is the stop order. See the package
// comment.
func invokes() fx.Option {
	return fx.Invoke(
		mountConsole,
		startHTTPServer,
		startRedis,
		startPostgres,
		announce,
		startMembership,
		startPipeline,
		startWatchdog,
		startElection,
		startReadiness,
	)
}

// graph returns everything the service consists of.
func graph(cfg config.Config, log *slog.Logger, b Build) fx.Option {
	return fx.Options(
		fx.Supply(cfg, log, b),
		fx.Provide(newSupervisor, newStarter),
		registryModule,
		httpServerModule,
		postgresModule,
		streamModules(cfg),
		invokes(),
		withLogger(),
		// A backstop only: each hook has a bound of its own, but for migrations, which take as
		// long as an index of the largest table.
		fx.StartTimeout(30*24*time.Hour),
		fx.StopTimeout(cfg.Instance.ShutdownTimeout),
	)
}

// Service is one instance.
type Service struct {
	app     *fx.App
	cfg     config.Config
	log     *slog.Logger
	starter *starter
	http    *httpserver.Server
	metrics *prometheus.Registry
	release func(ctx context.Context) // closes what constructors opened
	exposed exposed
}

// New wires an instance. Nothing is contacted yet.
func New(cfg config.Config, log *slog.Logger, b Build) (*Service, error) {
	s := &Service{cfg: cfg, log: log}
	s.app = fx.New(graph(cfg, log, b), fx.Invoke(s.capture, s.exportForDump))
	if err := s.app.Err(); err != nil {
		return nil, fault.Coded(fault.Unexpected, err)
	}
	return s, nil
}

// capture stores the parts that Service itself needs.
func (s *Service) capture(st *starter, server *httpserver.Server, reg *prometheus.Registry, pool *pgxpool.Pool, parts parts) {
	s.starter, s.http, s.metrics = st, server, reg
	s.release = func(ctx context.Context) {
		if err := closePool(ctx, pool); err != nil {
			s.log.Warn("closing what was opened failed", "component", "service", "err", err)
		}
		for _, p := range parts {
			_ = p.Client.Close() // the only error is that it is closed already
		}
	}
}

// Start starts the parts in order and returns when all of them run. Cancelling
// the context ends a start that waits for a server. After an error, everything
// that was started has been stopped, or SHUTDOWN_TIMEOUT is over.
func (s *Service) Start(ctx context.Context) error {
	// fx skips stop hooks if its context is cancelled, so this one is not.
	starting, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.app.StartTimeout())
	defer cancel()
	bound := sync.OnceFunc(func() { time.AfterFunc(s.app.StopTimeout(), cancel) })
	reason := make(chan error, 1)
	s.starter.failed = func(err error) {
		reason <- err
		bound()
	}
	unwatch := context.AfterFunc(ctx, func() {
		bound()
		s.starter.abort()
	})
	defer unwatch()
	err := s.app.Start(starting)
	if err == nil {
		return nil
	}
	if starting.Err() != nil { // which fx returns instead
		select {
		case err = <-reason:
			s.log.Error("rolling the start back took longer than SHUTDOWN_TIMEOUT; ending without it", "component", "service", "duration", s.app.StopTimeout())
		default:
			err = errAborted
			s.log.Error("a part did not end its start within SHUTDOWN_TIMEOUT; ending without it", "component", "service", "duration", s.app.StopTimeout())
		}
	}
	s.release(starting) // fx stops only what was started before the failure
	return fault.Coded(fault.Unexpected, err)
}

// Stop stops the parts in reverse order, within SHUTDOWN_TIMEOUT.
func (s *Service) Stop() error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), s.app.StopTimeout())
	defer cancel()
	err := fault.Coded(fault.Finding, s.app.Stop(ctx))
	s.log.Info("stopped", "component", "service", "duration", time.Since(began), "clean", err == nil)
	return err
}

// Wait returns nil when the context ends, or an error when a component ended
// unexpectedly. Call Stop then.
func (s *Service) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case signal := <-s.app.Wait():
		if signal.ExitCode == 0 {
			return nil // a signal: fx listens to it too
		}
		return fault.Exitf(signal.ExitCode, "a component ended unexpectedly; the log names it and the cause")
	}
}

// Run is the whole life of an instance: start, work until the context or a
// component ends, stop. The exit code of the process is the error's ExitCode, or 0.
func (s *Service) Run(ctx context.Context) error {
	if err := s.Start(ctx); err != nil {
		if errors.Is(err, errAborted) {
			return nil // nothing was in flight
		}
		return err
	}
	ended := s.Wait(ctx)
	stopped := s.Stop()
	if ended != nil {
		if stopped != nil {
			s.log.Error("shutdown incomplete", "component", "service", "err", stopped)
		}
		return ended
	}
	return stopped
}

// Addr returns the address of the endpoint, once the service has started.
func (s *Service) Addr() string { return s.http.Addr() }

// Metrics returns the service's metrics.
func (s *Service) Metrics() prometheus.Gatherer { return s.metrics }
