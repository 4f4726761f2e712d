package modules

import (
	"io"
	"log/slog"

	"github.com/redis/go-redis/v9/logging"
	"go.uber.org/fx"
	"go.uber.org/fx/fxevent"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
)

// timeFormat is RFC 3339 with a fixed number of digits, in UTC, so that lines
// sort as text.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// NewLogger returns the service's logger: JSON, or text on a terminal, with
// the base fields service and instance_id.
func NewLogger(cfg config.Log, instanceID string, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Level, ReplaceAttr: readable}
	var h slog.Handler
	if cfg.Format == "text" || cfg.Format == "auto" && cli.IsTerminal(w) {
		h = slog.NewTextHandler(w, opts)
	} else {
		h = slog.NewJSONHandler(w, opts)
	}
	return slog.New(h).With("service", "processor", "instance_id", instanceID)
}

// withLogger sends fx's own events, errors included, to log at debug level:
// Service returns or logs each error once.
func withLogger() fx.Option {
	return fx.WithLogger(func(log *slog.Logger, st *starter) fxevent.Logger {
		l := &fxevent.SlogLogger{Logger: log.With("component", "fx")}
		l.UseLogLevel(slog.LevelDebug)
		l.UseErrorLevel(slog.LevelDebug)
		return startEvents{l, st}
	})
}

// startEvents tells the starter that the start failed: fx rolls back under the context of the
// start, and says so nowhere else.
type startEvents struct {
	fxevent.Logger
	starter *starter
}

func (e startEvents) LogEvent(event fxevent.Event) {
	e.Logger.LogEvent(event)
	if failed, ok := event.(*fxevent.RollingBack); ok {
		e.starter.failed(failed.StartErr)
	}
}

// readable writes times in one format, and durations with their unit.
func readable(groups []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindTime:
		if a.Key == slog.TimeKey && len(groups) == 0 {
			a.Value = slog.StringValue(a.Value.Time().UTC().Format(timeFormat))
		}
	case slog.KindDuration:
		a.Value = slog.StringValue(a.Value.Duration().String())
	default:
	}
	return a
}

// QuietDrivers stops the Redis driver from writing to standard error: every
// failure is also returned as an error, which is logged or counted where it is
// handled. The driver's logger is global, so the command sets it.
func QuietDrivers() { logging.Disable() }
