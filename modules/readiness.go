package modules

import (
	"context"
	"log/slog"

	"go.uber.org/fx"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/httpserver"
)

// startReadiness makes the service ready last and not ready first: on stop it
// announces the departure and hands shards over while the pipeline still works.
func startReadiness(lc fx.Lifecycle, server *httpserver.Server, fleet *coordination.Fleet, d *drainer, log *slog.Logger) {
	lc.Append(fx.Hook{
		OnStart: func(context.Context) error {
			server.Ready(checkShards, fleetReady(fleet))
			return nil
		},
		OnStop: func(ctx context.Context) error {
			server.SetDraining()
			ctx, cancel := d.leaving(ctx)
			defer cancel()
			held := fleet.Owned()
			err := fleet.Leave(ctx)
			log.Info("leaving fleet", "component", "drain", "held", held, "handed_over", held-fleet.Owned(), "in_flight", d.pipeline.InFlight())
			if err != nil {
				log.Warn("could not announce departure; peers will notice by heartbeat", "component", "drain", "err", err)
			}
			return nil
		},
	})
}
