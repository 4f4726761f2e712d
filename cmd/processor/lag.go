package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// askTimeout bounds commands that only ask.
const askTimeout = 10 * time.Second

func newLagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lag",
		Short: "Say how much of the stream is not done yet",
		Long: `Asks Redis how many entries are not dealt yet (lag), how many are dealt and not
done (pending), and how old the oldest of them is; and Postgres, where POSTGRES_URL
is set, how many are to be tried again later (deferred) and how many are in the
ledger of losses. What nobody can tell is shown as unknown, never as 0.`,
		Example: `  processor lag
  processor lag --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadRedis(os.Environ())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			l, err := askLag(ctx, cfg)
			if err != nil {
				return err
			}
			if err := l.askPostgres(ctx, os.Environ()); err != nil {
				say(cmd.ErrOrStderr(), "processor: deferred and lost are unknown: %v", err)
			}
			out := outputOf(cmd)
			return out.result(l, func() error { return out.table(l.table()) })
		},
	}
}

// lagJSON is the answer of processor lag; null means unknown.
type lagJSON struct {
	Stream           string   `json:"stream"`
	Group            string   `json:"group"`
	StreamExists     bool     `json:"stream_exists"`
	GroupExists      bool     `json:"group_exists"`
	Length           int64    `json:"length"`
	Lag              *int64   `json:"lag"`
	Pending          int64    `json:"pending"`
	Deferred         *int64   `json:"deferred"`
	Undone           *int64   `json:"undone"` // the sum of the three above
	Lost             *int64   `json:"lost"`   // entries in the ledger
	OldestKnown      bool     `json:"oldest_known"`
	OldestEntry      *string  `json:"oldest_entry"` // null when nothing is undone, or it is not known
	OldestAgeSeconds *float64 `json:"oldest_age_seconds"`
	// LossForecast is how long until trimming reaches the oldest entry, if that
	// one stays and the stream is trimmed as fast as it was filled.
	LossForecast *float64 `json:"loss_forecast_seconds"`
}

func askLag(ctx context.Context, cfg config.Redis) (lagJSON, error) {
	where := stream.Config{
		URL: cfg.URL.Reveal(), Stream: cfg.Stream, Group: cfg.Group, Shards: 1, Timeout: askTimeout, Name: "processor/lag",
	}
	client, err := stream.Connect(where)
	if err != nil {
		return lagJSON{}, exit(exitConfig, err)
	}
	defer client.Close() //nolint:errcheck // only read from
	group, err := stream.NewGroup(client, where)
	if err != nil {
		return lagJSON{}, exit(exitConfig, err)
	}
	info, err := group.Info(ctx)
	if err != nil {
		return lagJSON{}, err
	}
	l := lagJSON{
		Stream: cfg.Stream, Group: cfg.Group, StreamExists: info.Exists, GroupExists: info.GroupExists, Length: info.Length,
	}
	backlog, err := group.Backlog(ctx)
	if err != nil {
		return l, err
	}
	l.Pending = backlog.Pending
	if backlog.LagKnown {
		l.Lag = &backlog.Lag
	}
	l.OldestKnown = backlog.OldestKnown
	if backlog.OldestKnown && !backlog.Oldest.IsZero() {
		text := backlog.Oldest.String()
		age := max(0, time.Since(backlog.Oldest.Time()).Seconds())
		l.OldestEntry, l.OldestAgeSeconds = &text, &age
		if margin, known := info.Horizon().Margin(backlog.Oldest); known {
			left := margin.Seconds()
			l.LossForecast = &left
		}
	}
	return l, nil
}

// askPostgres adds what is known there. Without POSTGRES_URL that is nothing.
func (l *lagJSON) askPostgres(ctx context.Context, environ []string) error {
	cfg, err := config.LoadPostgres(environ)
	if err != nil {
		return err
	}
	pool, err := store.Open(ctx, store.Config{
		URL: cfg.URL.Reveal(), Member: "lag", MaxConns: 1, ConnectTimeout: cfg.ConnectTimeout,
		StatementTimeout: cfg.StatementTimeout, LockTimeout: cfg.LockTimeout,
	})
	if err != nil {
		return err
	}
	defer pool.Close()
	scope := store.Scope{Stream: l.Stream, Group: l.Group}
	deferred, err := store.NewDeferred(pool, scope, "", cfg.StatementTimeout).Count(ctx)
	if err != nil {
		return err
	}
	l.Deferred = &deferred
	if l.Lag != nil {
		undone := *l.Lag + l.Pending + deferred
		l.Undone = &undone
	}
	lost, unknown, err := store.NewLedger(pool, scope, "", cfg.StatementTimeout).Lost(ctx)
	if err == nil && !unknown {
		l.Lost = &lost
	}
	return err
}

func (l lagJSON) table() *table {
	t := newTable("WHAT", "VALUE")
	name := func(name string, exists bool) string {
		if !exists {
			return name + " (does not exist)"
		}
		return name
	}
	t.row("stream", name(l.Stream, l.StreamExists))
	t.row("group", name(l.Group, l.GroupExists))
	t.row("length", fmt.Sprint(l.Length))
	t.row("lag", orUnknown(l.Lag))
	t.row("pending", fmt.Sprint(l.Pending))
	t.row("deferred", orUnknown(l.Deferred))
	t.row("undone", orUnknown(l.Undone))
	t.row("lost", orUnknown(l.Lost))
	switch {
	case l.OldestAgeSeconds != nil:
		t.row("oldest", fmt.Sprintf("%s, %.1f s old", *l.OldestEntry, *l.OldestAgeSeconds))
	case l.OldestKnown:
		t.row("oldest", "none")
	default:
		t.row("oldest", orUnknown(nil))
	}
	switch {
	case l.LossForecast != nil:
		t.row("trimmed in", fmt.Sprintf("%.1f s, if the oldest entry stays", *l.LossForecast))
	case l.OldestAgeSeconds == nil && l.OldestKnown:
		t.row("trimmed in", "nothing to trim")
	default:
		t.row("trimmed in", orUnknown(nil))
	}
	return t
}

func orUnknown(n *int64) any {
	if n == nil {
		return cell{value: nil, color: yellow}
	}
	return fmt.Sprint(*n)
}
