package modules

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
)

// otherStreamPrefix is the prefix of the platform's telemetry streams.
const otherStreamPrefix = "telemetry:"

// announceDeps is what the announcement reads.
type announceDeps struct {
	fx.In

	Build  Build
	Member Member
	Parts  parts
	Pool   *pgxpool.Pool
}

// announce logs in one line what this instance reads and where it writes: no
// server would report a wrong stream name as an error.
func announce(lc fx.Lifecycle, d announceDeps) {
	for _, p := range d.Parts {
		lc.Append(fx.StartHook(func(ctx context.Context) error { return d.announce(ctx, p) }))
	}
}

func (d announceDeps) announce(ctx context.Context, p *part) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	log := p.Log
	if len(d.Parts) == 1 { // with others each of its lines names the stream
		log = log.With("stream", p.Service.Redis.Stream)
	}
	pg := d.Pool.Config().ConnConfig
	attrs := []any{
		"version", d.Build.Version,
		"member", string(d.Member),
		"group", p.Service.Redis.Group,
		"redis", p.Service.Redis.URL,
		"postgres", net.JoinHostPort(pg.Host, strconv.Itoa(int(pg.Port))) + "/" + pg.Database,
	}
	info, err := p.Group.Info(ctx)
	length, lag, pending := any("unknown"), any("unknown"), any("unknown") // unknown is not 0
	if err == nil {
		length = info.Length
	}
	if backlog, err := p.Group.Backlog(ctx); err == nil {
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
	log.Info("starting to process", attrs...)
	if err == nil && info.Length == 0 {
		warnOfOtherStreams(ctx, p, info, log)
	}
	return nil
}

// warnOfOtherStreams warns if the stream is empty while others are not.
func warnOfOtherStreams(ctx context.Context, p *part, info stream.Info, log *slog.Logger) {
	otherStreams, err := p.Group.OtherStreams(ctx, otherStreamPrefix)
	if err != nil {
		log.Warn("stream is empty; listing other streams failed", "err", err)
		return
	}
	var names []string
	for _, s := range otherStreams {
		if s.Name != p.Service.Redis.DLQStream && !strings.HasSuffix(s.Name, ":dlq") {
			names = append(names, s.Name+" ("+strconv.FormatInt(s.Length, 10)+")")
		}
	}
	if len(names) == 0 {
		return
	}
	log.Warn("stream is empty but other streams are not; check REDIS_TELEMETRY_STREAM",
		"exists", info.Exists, "others", strings.Join(names, ", "))
}
