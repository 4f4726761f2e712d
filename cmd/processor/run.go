package main

import (
	"log/slog"
	"math"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/crash"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/logbuffer"
	"github.com/trmtracking/processor/modules"
)

// The log of a service whose reader stalls: what is kept, and how long an exit
// waits for it.
const (
	logBufferBytes  = 4 << 20
	logFlushTimeout = time.Second
)

func newRunCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run one instance of the service",
		Long: `Runs one instance until SIGTERM or SIGINT, then finishes what is in flight, hands
its shards over and exits. A second signal exits immediately; nothing is lost, the
next owner continues from the queues.

Exit codes: 0 clean, 1 the drain exceeded DRAIN_TIMEOUT or a second signal came,
2 a crash or a component that ended unexpectedly, 3 invalid configuration, 4 Redis or
Postgres was not available in time, 5 wrong schema or protocol, 6 another instance
has this identity.

Variables (and their defaults):

` + config.Help(cli.Columns),
		Example: `  REDIS_URL=redis://redis:6379 POSTGRES_URL=postgres://processor@db/trm processor run
  processor run --help`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			defer cli.OnSecondSignal(func() { os.Exit(fault.Finding) })()
			cfg, err := config.Load(os.Environ())
			if err != nil {
				return err
			}
			// A log reader that stalls or ends must not stall or end the service.
			signal.Ignore(syscall.SIGPIPE)
			out := logbuffer.New(cmd.OutOrStdout(), logBufferBytes)
			flush := func() { out.Flush(logFlushTimeout) }
			defer flush()
			format := cfg.Log
			if format.Format == "auto" && cli.IsTerminal(cmd.OutOrStdout()) {
				format.Format = "text"
			}
			log := modules.NewLogger(format, cfg.Instance.ID, out)
			limitMemory(log)
			for _, w := range config.LikelyTypos(os.Environ()) {
				log.Warn("likely misspelled variable", "reason", w)
			}
			dumps := modules.DumpConfig(cfg, buildOf())
			dumps.Flush = flush
			err = crash.Record(cmd.Context(), dumps, log, func(dump *crash.Recorder) error {
				service, err := modules.New(cfg, log, buildOf())
				if err != nil {
					return err
				}
				service.Expose(dump)
				service.CountDroppedLogLines(out.Dropped)
				return service.Run(cmd.Context())
			})
			if err != nil {
				// Also in the log, where operators look; the exit code alone says little.
				log.Error("ended", "exit_code", fault.ExitCode(err), "err", err)
				return fault.Exit(fault.ExitCode(err), nil)
			}
			return nil
		},
	}
}

// limitMemory sets the soft limit of the runtime (GOMEMLIMIT) to nine tenths of what
// the container or the unit may have, so that the collector works harder before the
// kernel ends the process. A GOMEMLIMIT in the environment wins.
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set()
	switch {
	case err != nil:
		log.Warn("memory limit unknown; GOMEMLIMIT stays as it is", "err", err)
	case limit < math.MaxInt64:
		log.Info("memory limited", "go_memory_limit_bytes", limit)
	}
}

// buildOf returns the build information that the service shows.
func buildOf() modules.Build {
	b := cli.ReadBuild()
	return modules.Build{Version: b.Version, Revision: b.Revision}
}
