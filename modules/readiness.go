package modules

import (
	"context"

	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/httpserver"
)

// startReadiness makes the service ready last and not ready first: on stop it
// announces the departure and hands shards over while the pipeline still works.
func startReadiness(lc fx.Lifecycle, server *httpserver.Server, parts parts) {
	lc.Append(fx.Hook{
		OnStart: func(context.Context) error {
			server.Ready(checkShards, fleetReady(parts))
			return nil
		},
		OnStop: func(ctx context.Context) error {
			server.SetDraining()
			return parts.check(func(ctx context.Context, p *part) error {
				p.leave(ctx)
				return nil
			})(ctx)
		},
	})
}

// leave announces the departure and hands shards over while the pipeline still works.
func (p *part) leave(ctx context.Context) {
	ctx, cancel := p.drainer.leaving(ctx)
	defer cancel()
	held := p.fleet.Owned()
	err := p.fleet.Leave(ctx)
	p.Log.Info("leaving fleet", "component", "drain", "held", held, "handed_over", held-p.fleet.Owned(), "in_flight", p.Pipeline.InFlight())
	if err != nil {
		p.Log.Warn("could not announce departure; peers will notice by heartbeat", "component", "drain", "err", err)
	}
}
