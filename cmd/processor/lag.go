package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/modules"
)

// askTimeout bounds commands that only query.
const askTimeout = 10 * time.Second

func newLagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lag",
		Short: "Show consumer lag and backlog",
		Long: `Shows how many entries are not dispatched yet (lag), dispatched and not acknowledged
(pending), and the age of the oldest; and from Postgres, if POSTGRES_URL is set, how
many wait for a retry (deferred) and how many are in the ledger of losses. Then the
ledger of the last 24 hours: losses with range and suspected cause, and incidents,
open ones first. Unknown figures are shown as unknown, never as 0.`,
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
				say(cmd.ErrOrStderr(), "processor: warning: deferred and lost are unknown\n  %v", err)
			}
			out := outputOf(cmd)
			return out.Result(l, func() error { return l.print(out) })
		},
	}
}

// lagJSON is the output of processor lag; null means unknown.
type lagJSON struct {
	Stream           string   `json:"stream"`
	Group            string   `json:"group"`
	StreamExists     bool     `json:"stream_exists"`
	GroupExists      bool     `json:"group_exists"`
	Length           int64    `json:"length"`
	Lag              *int64   `json:"lag"`
	Pending          int64    `json:"pending"`
	Deferred         *int64   `json:"deferred"`
	Backlog          *int64   `json:"backlog"` // the sum of the three above
	Lost             *int64   `json:"lost"`    // entries in the ledger
	OldestKnown      bool     `json:"oldest_known"`
	OldestEntry      *string  `json:"oldest_entry"` // null if there is none, or it is unknown
	OldestAgeSeconds *float64 `json:"oldest_age_seconds"`
	// LossForecast is the time until trimming reaches the oldest entry, if that
	// entry stays and the stream is trimmed as fast as it was filled.
	LossForecast *float64 `json:"loss_forecast_seconds"`

	Losses    []lagLoss     `json:"losses"`    // of the last 24 hours, newest first; null when unknown
	Incidents []lagIncident `json:"incidents"` // of the last 24 hours, open ones first
}

type lagLoss struct {
	Cause    string    `json:"cause"`
	First    *string   `json:"first"`
	Last     *string   `json:"last"`
	Entries  *int64    `json:"entries"`
	Shard    *int      `json:"shard"` // null for several
	Detected time.Time `json:"detected"`
}

type lagIncident struct {
	Kind    string          `json:"kind"`
	Subject string          `json:"subject"`
	Opened  time.Time       `json:"opened"`
	Closed  *time.Time      `json:"closed"` // null while it is open
	Detail  json.RawMessage `json:"detail"`
}

// How much of the ledger is shown.
const (
	recentTime = 24 * time.Hour
	recentRows = 10
	shortTime  = "01-02 15:04:05Z"
)

func askLag(ctx context.Context, cfg config.Redis) (lagJSON, error) {
	where := stream.Config{
		URL: cfg.URL.Reveal(), Stream: cfg.Stream, Group: cfg.Group, Shards: 1, Timeout: askTimeout, Name: "processor/lag",
	}
	client, err := stream.Connect(where)
	if err != nil {
		return lagJSON{}, exit(exitConfig, err)
	}
	defer client.Close() //nolint:errcheck // only reads
	group, err := stream.NewGroup(client, where)
	if err != nil {
		return lagJSON{}, exit(exitConfig, err)
	}
	if err := redisAnswers(ctx, cfg, group); err != nil {
		return lagJSON{}, err
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
		if margin, known := info.TrimPoint().Margin(backlog.Oldest); known {
			left := margin.Seconds()
			l.LossForecast = &left
		}
	}
	return l, nil
}

// askPostgres adds what Postgres knows; nothing without POSTGRES_URL.
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
		return modules.FirstPostgresError(cfg.URL, err)
	}
	l.Deferred = &deferred
	if l.Lag != nil {
		outstanding := *l.Lag + l.Pending + deferred
		l.Backlog = &outstanding
	}
	ledger := store.NewLedger(pool, scope, "", cfg.StatementTimeout)
	lost, unknown, err := ledger.TotalLost(ctx)
	if err != nil {
		return err
	}
	if !unknown {
		l.Lost = &lost
	}
	losses, incidents, err := ledger.Recent(ctx, recentTime, recentRows)
	if err != nil {
		return err
	}
	l.Losses, l.Incidents = []lagLoss{}, []lagIncident{}
	for _, r := range losses {
		l.Losses = append(l.Losses, lagLoss(r))
	}
	for _, r := range incidents {
		l.Incidents = append(l.Incidents, lagIncident(r))
	}
	return nil
}

func (l lagJSON) print(out *cli.Output) error {
	if err := out.Table(l.table()); err != nil {
		return err
	}
	if err := printLosses(out, l.Losses); err != nil {
		return err
	}
	if len(l.Incidents) == 0 {
		return nil
	}
	t := cli.NewTable("INCIDENT", "OPENED", "CLOSED", "DETAIL", "SUBJECT")
	for _, r := range l.Incidents {
		to := any(cli.Colored("open", cli.Red))
		if r.Closed != nil {
			to = r.Closed.UTC().Format(shortTime)
		}
		t.Row(r.Kind, r.Opened.UTC().Format(shortTime), to, detailText(r.Detail), r.Subject)
	}
	return errors.Join(out.Line(""), out.Table(t))
}

func printLosses(out *cli.Output, losses []lagLoss) error {
	if len(losses) == 0 {
		return nil
	}
	t := cli.NewTable("ENTRIES", "CAUSE", "FIRST", "LAST", "DETECTED")
	for _, r := range losses {
		t.Row(cli.OrUnknown(r.Entries), r.Cause, cli.OrUnknown(r.First), cli.OrUnknown(r.Last), r.Detected.UTC().Format(shortTime))
	}
	return errors.Join(out.Line(""), out.Table(t))
}

// detailText returns the details of an incident in one line, figures first.
func detailText(detail json.RawMessage) string {
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(detail, &parts); err != nil {
		return string(detail)
	}
	var figures, names []string
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		text := name + " " + strings.Trim(strings.ReplaceAll(string(parts[name]), `\n`, " "), `"`)
		if json.Unmarshal(parts[name], new(float64)) == nil {
			figures = append(figures, text)
		} else {
			names = append(names, text)
		}
	}
	return strings.Join(append(figures, names...), ", ")
}

func (l lagJSON) table() *cli.Table {
	t := cli.NewTable("WHAT", "VALUE")
	name := func(name string, exists bool) string {
		if !exists {
			return name + " (does not exist)"
		}
		return name
	}
	t.Row("stream", name(l.Stream, l.StreamExists))
	t.Row("group", name(l.Group, l.GroupExists))
	t.Row("length", cli.Number(l.Length))
	t.Row("lag", cli.OrUnknown(l.Lag))
	t.Row("pending", cli.Number(l.Pending))
	t.Row("deferred", cli.OrUnknown(l.Deferred))
	t.Row("backlog", cli.OrUnknown(l.Backlog))
	t.Row("lost", cli.OrUnknown(l.Lost))
	switch {
	case l.OldestAgeSeconds != nil:
		t.Row("oldest", fmt.Sprintf("%s, %.1f s old", *l.OldestEntry, *l.OldestAgeSeconds))
	case l.OldestKnown:
		t.Row("oldest", "none")
	default:
		t.Row("oldest", cli.OrUnknown[string](nil))
	}
	switch {
	case l.LossForecast != nil:
		t.Row("time to trim", fmt.Sprintf("%.1f s, if the oldest entry stays", *l.LossForecast))
	case l.OldestAgeSeconds == nil && l.OldestKnown:
		t.Row("time to trim", "nothing to trim")
	default:
		t.Row("time to trim", cli.OrUnknown[string](nil))
	}
	return t
}
