package modules

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/console"
)

var consoleModule = fx.Module("console", fx.Provide(newConsole))

// checkTimeout is how long one check of readiness may take: less than the
// probes of the usual orchestrators wait.
const checkTimeout = 2 * time.Second

// The checks of readiness.
const (
	checkRedis    = "redis"
	checkPostgres = "postgres"
	checkShards   = "shards"
)

func newConsole(cfg config.Config, reg *prometheus.Registry, log *slog.Logger) (*console.Server, error) {
	server, err := console.New(console.Config{
		Host: cfg.Console.Host, Port: cfg.Console.Port, Pprof: cfg.Console.Pprof,
		Checks: []string{checkRedis, checkPostgres, checkShards}, CheckTimeout: checkTimeout,
	}, reg, log)
	return server, coded(codeConfig, err)
}

// startConsole makes a taken port an error of the start.
func startConsole(s *supervisor, lc fx.Lifecycle, server *console.Server) {
	lc.Append(fx.StartHook(func(ctx context.Context) error {
		return coded(codeConfig, server.Listen(ctx))
	}))
	s.run("console", server)
}
