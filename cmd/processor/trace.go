package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/modules"
)

func newTraceCommand() *cobra.Command {
	var last int
	cmd := &cobra.Command{
		Use:   "trace IMEI",
		Short: "Trace the last entries of a device",
		Long: `Finds the last entries of a device among the newest 200,000 of the stream and shows
the state of each: in the stream and not dispatched, pending on the queue of its
shard, deferred, stored, dead letter, lost; and the shard and owner of the device.
"done, no row" is an entry that was acknowledged without a row of its own: its rows
were erased, or it was acknowledged by hand. Trimmed entries are not in the stream:
losses of the last 24 hours that may concern the device are listed below.`,
		Example: `  processor trace 352093081452251
  processor trace 352093081452251 --last 50 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.Load(os.Environ())
			if err != nil {
				return err
			}
			if last < 1 || last > 1000 {
				return exit(exitConfig, fmt.Errorf("--last is %d, want 1 to 1000", last))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*askTimeout)
			defer cancel()
			tr, err := traceDevice(ctx, cfg, args[0], last)
			if err != nil {
				return err
			}
			out := outputOf(cmd)
			return out.Result(tr, func() error { return tr.print(out) })
		},
	}
	cmd.Flags().IntVar(&last, "last", 10, "number of entries to search for")
	return cmd
}

// traceJSON is the output of processor trace.
type traceJSON struct {
	Device     string       `json:"device"`
	Shard      int          `json:"shard"`
	Shards     int          `json:"shards"`
	Owner      *string      `json:"owner"` // null while the shard has no owner
	Epoch      int64        `json:"epoch"`
	Assigned   *string      `json:"assigned"`
	Stream     string       `json:"stream"`
	Exists     bool         `json:"stream_exists"`
	Applied    *string      `json:"applied"`     // progress mark of the shard, a hint
	LastStored *time.Time   `json:"last_stored"` // newest device time in positions
	Entries    []traceEntry `json:"entries"`     // newest first
	Complete   bool         `json:"complete"`    // the search reached the stream's beginning
	Losses     []lagLoss    `json:"losses"`      // of its shard, and those of unknown shard
}

type traceEntry struct {
	ID     string     `json:"id"`
	Added  time.Time  `json:"added"`
	Time   *time.Time `json:"time"` // device time; null if it does not decode
	State  string     `json:"state"`
	Detail string     `json:"detail"`
}

func traceDevice(ctx context.Context, cfg config.Config, device string, last int) (*traceJSON, error) {
	pool, err := store.Open(ctx, store.Config{
		URL: cfg.Postgres.URL.Reveal(), Member: "trace", MaxConns: 1, ConnectTimeout: cfg.Postgres.ConnectTimeout,
		StatementTimeout: cfg.Postgres.StatementTimeout, LockTimeout: cfg.Postgres.LockTimeout,
	})
	if err != nil {
		return nil, exit(exitConfig, err)
	}
	defer pool.Close()
	scope := store.Scope{Stream: cfg.Redis.Stream, Group: cfg.Redis.Group}
	stand, err := store.ReadFleetStatus(ctx, pool, scope)
	if err != nil {
		return nil, modules.FirstPostgresError(cfg.Postgres.URL, err)
	}
	shards := cfg.Coordination.Shards
	if n, err := strconv.Atoi(stand.Pinned["SHARDS"]); err == nil && n > 0 {
		shards = n
	}
	where := stream.Config{
		URL: cfg.Redis.URL.Reveal(), Stream: cfg.Redis.Stream, Group: cfg.Redis.Group, Shards: shards,
		Timeout: askTimeout, Name: "processor/trace",
	}
	client, err := stream.Connect(where)
	if err != nil {
		return nil, exit(exitConfig, err)
	}
	defer client.Close() //nolint:errcheck // only reads
	group, err := stream.NewGroup(client, where)
	if err != nil {
		return nil, exit(exitConfig, err)
	}
	if err := redisAnswers(ctx, cfg.Redis, group); err != nil {
		return nil, err
	}
	info, err := group.Info(ctx)
	if err != nil {
		return nil, err
	}
	// The stream first: entries that are committed after that are found in the tables.
	found, reached, err := group.Trace(ctx, device, last)
	if err != nil {
		return nil, err
	}
	decoder := telemetry.NewDecoder(telemetry.Limits{
		MaxPayloadBytes: cfg.Telemetry.MaxPayloadBytes, MaxDepth: cfg.Telemetry.MaxDepth, MaxAttributes: cfg.Telemetry.MaxAttributes,
	})
	sought, problems := make([]store.TraceQuery, len(found)), make([]error, len(found))
	for i, s := range found {
		var r telemetry.Record
		problems[i] = decoder.Decode(&s.Entry, &r)
		sought[i] = store.TraceQuery{ID: s.ID, TimeUS: r.TimeUS, Known: problems[i] == nil}
	}
	tr := &traceJSON{
		Device: device, Shard: telemetry.ShardOf(device, shards), Shards: shards, Stream: cfg.Redis.Stream, Exists: info.Exists,
		Entries: []traceEntry{}, Complete: reached.IsZero(),
	}
	rows, err := store.TraceDevice(ctx, pool, scope, device, tr.Shard, sought)
	if err != nil {
		return nil, err
	}
	losses, _, err := store.NewLedger(pool, scope, "", cfg.Postgres.StatementTimeout).Recent(ctx, recentTime, recentRows)
	if err != nil {
		return nil, err
	}
	for _, l := range losses {
		if l.Shard == nil || *l.Shard == tr.Shard {
			tr.Losses = append(tr.Losses, lagLoss(l))
		}
	}
	tr.Owner, tr.Assigned, tr.Applied = unlessEmpty(rows.Owner), unlessEmpty(rows.Assigned), unlessEmpty(rows.Applied)
	tr.Epoch, tr.LastStored = rows.Epoch, rows.Last
	for i, s := range found {
		e := traceEntry{ID: s.ID.String(), Added: s.ID.Time()}
		if sought[i].Known {
			t := time.UnixMicro(sought[i].TimeUS).UTC()
			e.Time = &t
		}
		e.State, e.Detail = whereIs(&found[i], problems[i], &rows)
		tr.Entries = append(tr.Entries, e)
	}
	return tr, nil
}

func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// whereIs returns the state of an entry. Certain states are tested first.
func whereIs(s *stream.TracedEntry, problem error, rows *store.Trace) (state, detail string) {
	later, deferred := rows.Deferred[s.ID]
	archived, deadLetter := rows.Letters[s.ID]
	cause, lost := rows.Lost[s.ID]
	switch {
	case !s.Dispatched:
		return "in the stream", "not dispatched yet"
	case s.Pending && rows.Stored[s.ID]:
		return "stored", "not acknowledged yet, or redelivered to the queue of " + s.On
	case s.Pending:
		return "pending", "on the queue of " + s.On
	case s.DLQEntry != "":
		return "dead letter", s.DLQEntry
	case deferred:
		return "deferred", fmt.Sprintf("%s, attempt %d, retry at %s: %s", later.Class, later.Attempts, later.Next.UTC().Format(time.RFC3339), later.Error)
	case rows.Stored[s.ID]:
		return "stored", ""
	case deadLetter:
		return "dead letter", "archived, " + archived
	case lost:
		return "lost", cause
	case problem != nil:
		return "done, no row", problem.Error()
	}
	return "done, no row", ""
}

func (tr *traceJSON) print(out *cli.Output) error {
	owner := any(nil)
	if tr.Owner != nil {
		owner = *tr.Owner
	}
	head := cli.NewTable("WHAT", "VALUE")
	head.Row("device", tr.Device)
	head.Row("shard", fmt.Sprintf("%d of %d, %s", tr.Shard, tr.Shards, stream.Consumer(tr.Shard)))
	if owner == nil {
		head.Row("owner", cli.Colored("none", cli.Yellow))
	} else {
		head.Row("owner", owner)
	}
	if tr.Assigned != nil && (tr.Owner == nil || *tr.Assigned != *tr.Owner) {
		head.Row("assigned", cli.Colored(*tr.Assigned, cli.Yellow))
	}
	if tr.LastStored == nil {
		head.Row("last row", "none")
	} else {
		head.Row("last row", tr.LastStored.UTC().Format(time.RFC3339))
	}
	if err := out.Table(head); err != nil {
		return err
	}
	if err := out.Line(""); err != nil {
		return err
	}
	if !tr.Exists {
		text := fmt.Sprintf("stream %s does not exist: set REDIS_TELEMETRY_STREAM to the one that tcp-ingestion writes", tr.Stream)
		return errors.Join(out.Line("%s", text), printLosses(out, tr.Losses))
	}
	if len(tr.Entries) == 0 {
		where := "of the whole stream"
		if !tr.Complete {
			where = "among the newest of the stream"
		}
		return errors.Join(out.Line("no entries %s", where), printLosses(out, tr.Losses))
	}
	colors := map[string]cli.Color{"stored": cli.Green, "dead letter": cli.Red, "lost": cli.Red, "done, no row": cli.Red}
	t := cli.NewTable("ENTRY", "DEVICE TIME", "STATE", "DETAIL")
	for _, e := range tr.Entries {
		at := any("unreadable")
		if e.Time != nil {
			at = e.Time.Format("2006-01-02 15:04:05")
		}
		t.Row(e.ID, at, cli.Colored(e.State, colors[e.State]), e.Detail)
	}
	return errors.Join(out.Table(t), printLosses(out, tr.Losses))
}
