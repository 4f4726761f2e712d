package modules

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// otherStreamPrefix is what the platform's telemetry streams are called.
const otherStreamPrefix = "telemetry:"

// announceDeps is what the announcement looks at.
type announceDeps struct {
	fx.In

	Config config.Config
	Build  Build
	Member Member
	Group  *stream.Group
	Pool   *pgxpool.Pool
	Log    *slog.Logger
}

// announce says in one line what this instance reads and where it writes. A
// wrong name of the stream is no error that any server would report.
func announce(lc fx.Lifecycle, d announceDeps) {
	lc.Append(fx.StartHook(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		pg := d.Pool.Config().ConnConfig
		attrs := []any{
			"version", d.Build.Version,
			"member", string(d.Member),
			"stream", d.Config.Redis.Stream,
			"group", d.Config.Redis.Group,
			"redis", d.Config.Redis.URL,
			"postgres", net.JoinHostPort(pg.Host, strconv.Itoa(int(pg.Port))) + "/" + pg.Database,
		}
		info, err := d.Group.Info(ctx)
		length, lag, pending := any("unknown"), any("unknown"), any("unknown") // never 0 for want of knowing
		if err == nil {
			length = info.Length
		}
		if backlog, err := d.Group.Backlog(ctx); err == nil {
			pending = backlog.Pending
			if backlog.LagKnown {
				lag = backlog.Lag
			}
		}
		attrs = append(attrs, "length", length, "lag", lag, "pending", pending)
		if version, err := store.SchemaVersion(ctx, d.Pool); err != nil {
			attrs = append(attrs, "schema", "unknown")
		} else {
			attrs = append(attrs, "schema", version)
		}
		d.Log.Info("starting to process", attrs...)
		if err == nil && info.Length == 0 {
			warnOfOtherStreams(ctx, d, info)
		}
		return nil
	}))
}

// warnOfOtherStreams says aloud that the stream is empty while others are not.
func warnOfOtherStreams(ctx context.Context, d announceDeps, info stream.Info) {
	otherStreams, err := d.Group.OtherStreams(ctx, otherStreamPrefix)
	if err != nil {
		d.Log.Warn("stream is empty; listing other streams failed", "stream", d.Config.Redis.Stream, "err", err)
		return
	}
	var names []string
	for _, s := range otherStreams {
		if s.Name != d.Config.Redis.DLQStream && !strings.HasSuffix(s.Name, ":dlq") {
			names = append(names, s.Name+" ("+strconv.FormatInt(s.Length, 10)+")")
		}
	}
	if len(names) == 0 {
		return
	}
	d.Log.Warn("the stream has no entries but others have: is REDIS_TELEMETRY_STREAM the right one?",
		"stream", d.Config.Redis.Stream, "exists", info.Exists, "others", strings.Join(names, ", "))
}
