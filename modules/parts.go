package modules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"
	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/config"
)

// part is what an instance runs for one stream.
type part struct {
	fleetDeps
	fleet   *coordination.Fleet
	drainer *drainer
}

// parts are those of all streams, in the order of the list.
type parts []*part

// firstStream says of a part that it is the first of the list: its leader does what
// concerns the database as a whole.
type firstStream bool

// severalStreams says of a part that there are others.
type severalStreams bool

// streamModules makes a part of each stream. What one is made of is its own, under its
// part of the configuration; with several streams its metrics and log lines say which.
func streamModules(cfg config.Config) fx.Option {
	list := cfg.PerStream()
	var options []fx.Option
	for i, one := range list {
		module := []fx.Option{
			fx.Decorate(func(config.Config) config.Config { return one }),
			fx.Supply(firstStream(i == 0), severalStreams(len(list) > 1), fx.Private),
			redisParts(), postgresParts(), coordinationParts(), pipelineParts(), deadLettersParts(),
			fx.Provide(fx.Annotate(newPart, fx.ResultTags(`group:"parts"`))),
		}
		if len(list) > 1 {
			name := one.Redis.Stream
			module = append(module,
				fx.Decorate(func(log *slog.Logger) *slog.Logger { return log.With("stream", name) }),
				fx.Decorate(func(reg prometheus.Registerer) prometheus.Registerer {
					return prometheus.WrapRegistererWith(prometheus.Labels{"stream": name}, reg)
				}))
		}
		options = append(options, fx.Module(one.Redis.Stream, module...))
	}
	return fx.Options(append(options, fx.Provide(newParts))...)
}

func newPart(d fleetDeps, fleet *coordination.Fleet, dr *drainer) *part {
	return &part{fleetDeps: d, fleet: fleet, drainer: dr}
}

// partsIn are the parts in any order.
type partsIn struct {
	fx.In

	Config config.Config
	List   []*part `group:"parts"`
}

func newParts(in partsIn) parts {
	names := in.Config.Redis.Streams()
	slices.SortFunc(in.List, func(a, b *part) int {
		return slices.Index(names, a.Scope.Stream) - slices.Index(names, b.Scope.Stream)
	})
	return in.List
}

// run is one component that runs that of each part, and ends when all have. If one ends
// before that, it ends the others.
func (ps parts) run(of func(p *part) run) run {
	if len(ps) == 1 {
		return of(ps[0])
	}
	return func(ctx context.Context) error {
		g, running := errgroup.WithContext(ctx)
		for _, p := range ps {
			g.Go(func() error {
				err := of(p)(running)
				if err == nil && running.Err() == nil {
					err = errors.New("it returned before it was stopped")
				}
				if err != nil {
					err = fmt.Errorf("stream %s: %w", p.Scope.Stream, err)
				}
				return err
			})
		}
		return g.Wait()
	}
}

// check joins what a check finds in each part.
func (ps parts) check(of func(ctx context.Context, p *part) error) func(ctx context.Context) error {
	if len(ps) == 1 {
		return func(ctx context.Context) error { return of(ctx, ps[0]) }
	}
	return func(ctx context.Context) error {
		var g errgroup.Group
		errs := make([]error, len(ps))
		for i, p := range ps {
			g.Go(func() error {
				if err := of(ctx, p); err != nil {
					errs[i] = fmt.Errorf("stream %s: %w", p.Scope.Stream, err)
				}
				return nil
			})
		}
		_ = g.Wait() // each keeps its own
		return errors.Join(errs...)
	}
}
