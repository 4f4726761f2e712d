package modules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/protocol"
)

var httpServerModule = fx.Module("httpserver", fx.Provide(newHTTPServer))

// checkTimeout bounds one readiness check; the probes of common orchestrators
// wait longer.
const checkTimeout = 2 * time.Second

// The checks of readiness.
const (
	checkRedis    = "redis"
	checkPostgres = "postgres"
	checkShards   = "shards"
)

func newHTTPServer(cfg config.Config, reg *prometheus.Registry, log *slog.Logger) (*httpserver.Server, error) {
	server, err := httpserver.New(httpserver.Config{
		Host: cfg.Console.Host, Port: cfg.Console.Port, Pprof: cfg.Console.Pprof,
		Checks: []string{checkRedis, checkPostgres, checkShards}, CheckTimeout: checkTimeout,
	}, reg, log)
	return server, fault.Coded(fault.Config, err)
}

// startHTTPServer listens on the port; a port in use fails the start.
func startHTTPServer(s *supervisor, lc fx.Lifecycle, server *httpserver.Server) {
	lc.Append(fx.StartHook(func(ctx context.Context) error {
		return fault.Coded(fault.Config, server.Listen(ctx))
	}))
	s.run("httpserver", server)
}

// discreet is a check of a server that names neither its address nor user and
// database, since every client may read what is not ready. The log has all of it,
// when the result changes.
func discreet(log *slog.Logger, name string, check func(ctx context.Context) error) func(ctx context.Context) error {
	failing := false // checks do not run concurrently
	return func(ctx context.Context) error {
		err := check(ctx)
		if (err != nil) != failing && ctx.Err() == nil {
			failing = err != nil
			if failing {
				log.Warn("readiness check fails", "check", name, "err", err)
			} else {
				log.Info("readiness check passes again", "check", name)
			}
		}
		return publicText(err)
	}
}

// publicText keeps of an error what names nothing: the server's code, and the
// cause in the words of the operating system.
func publicText(err error) error {
	var failure *protocol.Failure
	var errno syscall.Errno
	var resolving *net.DNSError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &failure) && failure.Code != "":
		return fmt.Errorf("refused with %s; the log says more", failure.Code)
	case errors.As(err, &errno):
		return fmt.Errorf("no connection: %s", errno.Error())
	case errors.As(err, &resolving):
		return fmt.Errorf("no connection: %s", resolving.Err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("no answer in time")
	}
	return errors.New("failing; the log says why")
}
