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
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
)

// otherStreamPrefix is the prefix of the platform's telemetry streams.
const otherStreamPrefix = "telemetry:"

// announceDeps is what the announcement reads.
type announceDeps struct {
	fx.In

	Config config.Config
	Build  Build
	Member Member
	Group  *stream.Group
	Pool   *pgxpool.Pool
	Log    *slog.Logger
}

// announce logs in one line what this instance reads and where it writes: no
// server would report a wrong stream name as an error.
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
		length, lag, pending := any("unknown"), any("unknown"), any("unknown") // unknown is not 0
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
		if version, err := schema.Version(ctx, d.Pool); err != nil {
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

// warnOfOtherStreams warns if the stream is empty while others are not.
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
	d.Log.Warn("stream is empty but other streams are not; check REDIS_TELEMETRY_STREAM",
		"stream", d.Config.Redis.Stream, "exists", info.Exists, "others", strings.Join(names, ", "))
}
