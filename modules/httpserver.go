package modules

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/httpserver"
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
	return server, coded(codeConfig, err)
}

// startHTTPServer listens on the port; a port in use fails the start.
func startHTTPServer(s *supervisor, lc fx.Lifecycle, server *httpserver.Server) {
	lc.Append(fx.StartHook(func(ctx context.Context) error {
		return coded(codeConfig, server.Listen(ctx))
	}))
	s.run("httpserver", server)
}
