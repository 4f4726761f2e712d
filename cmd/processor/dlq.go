package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/modules"
)

func newDLQCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "dlq",
		Short: "Inspect, edit and replay dead letters",
		Long: `Dead letters are entries that could not be decoded, broke a rule, were rejected by
Postgres, or crashed the process. They are kept in a stream of their own. IDs are
those of the dead letters or of the original entries.

Uses the environment of the service. Every change is recorded in processor.audit.`,
		Example: `  processor dlq stats
  processor dlq list --class decode --device 356307042441013
  processor dlq retry --fingerprint decode/payload/truncated --dry-run`,
	}, newDLQListCommand(), newDLQShowCommand(), newDLQStatsCommand(), newDLQExportCommand(),
		newDLQEditCommand(), newDLQRetryCommand(), newDLQDropCommand())
}

// dlqClient is what the dlq commands work with.
type dlqClient struct {
	cfg     config.Config
	client  io.Closer
	group   *stream.Group
	dead    *stream.DeadLetters
	pool    *pgxpool.Pool
	archive *store.DeadLetters
	audit   *store.Audit
	decoder *telemetry.Decoder
}

func openDLQ(ctx context.Context) (*dlqClient, error) {
	cfg, err := config.Load(os.Environ())
	if err != nil {
		return nil, err
	}
	where := stream.Config{
		URL: cfg.Redis.URL.Reveal(), Stream: cfg.Redis.Stream, Group: cfg.Redis.Group,
		Shards: cfg.Coordination.Shards, Timeout: askTimeout, Name: "processor/dlq",
	}
	m := &dlqClient{cfg: cfg, decoder: telemetry.NewDecoder(telemetry.Limits{
		MaxPayloadBytes: cfg.Telemetry.MaxPayloadBytes, MaxDepth: cfg.Telemetry.MaxDepth, MaxAttributes: cfg.Telemetry.MaxAttributes,
	})}
	client, err := stream.Connect(where)
	if err != nil {
		return nil, exit(exitConfig, err)
	}
	m.client = client
	if m.group, err = stream.NewGroup(client, where); err == nil {
		m.dead, err = stream.NewDeadLetters(client, where, cfg.Redis.DLQStream)
	}
	if err == nil {
		m.pool, err = store.Open(ctx, store.Config{
			URL: cfg.Postgres.URL.Reveal(), Member: "dlq", MaxConns: 2,
			ConnectTimeout: cfg.Postgres.ConnectTimeout, StatementTimeout: cfg.Postgres.StatementTimeout, LockTimeout: cfg.Postgres.LockTimeout,
		})
	}
	if err != nil {
		_ = m.client.Close()
		return nil, exit(exitConfig, err)
	}
	m.archive = store.NewDeadLetters(m.pool, store.Scope{Stream: cfg.Redis.Stream, Group: cfg.Redis.Group}, cfg.Postgres.StatementTimeout)
	m.audit = store.NewAudit(m.pool, cfg.Postgres.StatementTimeout)
	return m, nil
}

func (m *dlqClient) close() {
	m.pool.Close()
	_ = m.client.Close() // nothing is under way
}

// withDLQ runs a command with a client and closes it.
func withDLQ(work func(cmd *cobra.Command, m *dlqClient, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		m, err := openDLQ(cmd.Context())
		if err != nil {
			return err
		}
		defer m.close()
		if err := redisAnswers(cmd.Context(), m.cfg.Redis, m.group); err != nil {
			return err
		}
		err = work(cmd, m, args)
		if errors.Is(err, context.DeadlineExceeded) {
			return err // of either server
		}
		return modules.PostgresError("POSTGRES_URL", m.cfg.Postgres.URL, err)
	}
}

// filter selects dead letters.
type filter struct {
	ids                              map[string]bool // whether a dead letter matched
	class, device, fingerprint, text string
	since, until                     string
	from, to                         time.Time
}

func (f *filter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.class, "class", "", "reason: decode, invalid, sink, crash or too_large")
	cmd.Flags().StringVar(&f.device, "device", "", "device ID")
	cmd.Flags().StringVar(&f.fingerprint, "fingerprint", "", "failure group, as dlq stats lists them")
	cmd.Flags().StringVar(&f.text, "text", "", "text that the error or a field contains")
	cmd.Flags().StringVar(&f.since, "since", "", "dead-lettered since: 2026-08-01T10:00:00Z, or 24h for the last day")
	cmd.Flags().StringVar(&f.until, "until", "", "dead-lettered until: as --since")
}

// set reads the arguments of the command line.
func (f *filter) set(cmd *cobra.Command, ids []string) (err error) {
	if f.from, err = moment(f.since); err == nil {
		f.to, err = moment(f.until)
	}
	if err == nil && f.class != "" && !slices.Contains(telemetry.Classes(), telemetry.Class(f.class)) {
		err = fmt.Errorf("class %q: want one of %v", f.class, telemetry.Classes())
	}
	f.ids = make(map[string]bool, len(ids))
	for _, text := range ids {
		id, parseErr := telemetry.ParseEntryID(text)
		err = cmp.Or(err, parseErr)
		f.ids[id.String()] = false
	}
	if err != nil {
		return usageError(cmd, err)
	}
	return nil
}

// empty reports whether the filter selects all dead letters.
func (f *filter) empty() bool {
	return len(f.ids) == 0 && f.class+f.device+f.fingerprint+f.text+f.since+f.until == ""
}

// String returns the filter for the audit.
func (f *filter) String() string {
	var parts []string
	for _, p := range [][2]string{
		{"class", f.class}, {"device", f.device}, {"fingerprint", f.fingerprint}, {"text", f.text}, {"since", f.since}, {"until", f.until},
	} {
		if p[1] != "" {
			parts = append(parts, p[0]+"="+p[1])
		}
	}
	for id := range f.ids {
		parts = append(parts, id)
	}
	if parts == nil {
		return "all"
	}
	slices.Sort(parts)
	text := strings.Join(parts, " ")
	return text[:min(len(text), 1000)]
}

// matched reports an empty selection: with a filter it is an error, since that is
// seldom intended. IDs without a dead letter are reported.
func (f *filter) matched(cmd *cobra.Command, n int) error {
	switch {
	case n > 0:
		for _, id := range slices.Sorted(maps.Keys(f.ids)) {
			if !f.ids[id] {
				say(cmd.ErrOrStderr(), "no dead letter has the ID %s, nor was it the entry %s", id, id)
			}
		}
		return nil
	case f.empty():
		say(cmd.ErrOrStderr(), "there are no dead letters")
		return nil
	}
	return exit(exitFinding, fmt.Errorf("no dead letter matches %s; processor dlq stats lists the existing ones", f))
}

func moment(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("time %q: want 2026-08-01T10:00:00Z or a duration such as 24h", text)
	}
	return at, nil
}

// named reports whether a dead letter has one of the IDs, if any are given.
func (f *filter) named(l *protocol.DLQEntry) bool {
	if len(f.ids) == 0 {
		return true
	}
	named := false
	for _, id := range []string{l.ID.String(), l.Entry.ID.String()} {
		if _, ok := f.ids[id]; ok {
			f.ids[id], named = true, true
		}
	}
	return named
}

func (f *filter) match(l *protocol.DLQEntry) bool {
	at := l.ID.Time()
	return f.named(l) &&
		(f.class == "" || string(l.Class) == f.class) &&
		(f.device == "" || l.Entry.DeviceID() == f.device) &&
		(f.fingerprint == "" || l.Fingerprint == f.fingerprint) &&
		(f.from.IsZero() || !at.Before(f.from)) && (f.to.IsZero() || at.Before(f.to)) &&
		(f.text == "" || strings.Contains(l.Error, f.text) ||
			slices.ContainsFunc(l.Entry.Fields, func(s string) bool { return strings.Contains(s, f.text) }))
}

// each calls see for the selected dead letters, oldest first, until it returns
// false.
func (m *dlqClient) each(ctx context.Context, f *filter, see func(l *protocol.DLQEntry) bool) error {
	const page = 200
	after := telemetry.EntryID{}
	for {
		letters, err := m.dead.List(ctx, after, page)
		if err != nil {
			return err
		}
		for i := range letters {
			if f.match(&letters[i]) && !see(&letters[i]) {
				return nil
			}
		}
		if len(letters) < page {
			return nil
		}
		after = letters[len(letters)-1].ID
	}
}

// ref identifies a dead letter and its original entry, without its content.
type ref struct{ id, source telemetry.EntryID }

// chosen returns the selected dead letters, in the order of their entries. An
// empty filter is an error without all.
func (m *dlqClient) chosen(cmd *cobra.Command, f *filter, all bool) ([]ref, error) {
	if f.empty() && !all {
		return nil, usageError(cmd, fmt.Errorf("specify IDs, a filter or --all"))
	}
	var list []ref
	err := m.each(cmd.Context(), f, func(l *protocol.DLQEntry) bool {
		if l.Err == nil {
			list = append(list, ref{l.ID, l.Entry.ID})
		}
		return true
	})
	slices.SortFunc(list, func(a, b ref) int { return a.source.Compare(b.source) })
	return list, err
}

// deadLetterBatch is the number of dead letters in memory at a time.
const deadLetterBatch = 100

// letters calls do with batches of a list's dead letters, in order, and with the
// ones that were removed since the list was made.
func (m *dlqClient) letters(ctx context.Context, list []ref, do func(some []protocol.DLQEntry, gone []ref) error) error {
	for part := range slices.Chunk(list, deadLetterBatch) {
		ids := make([]telemetry.EntryID, len(part))
		for i, r := range part {
			ids[i] = r.id
		}
		some, err := m.dead.Get(ctx, ids)
		if err != nil {
			return err
		}
		var gone []ref
		for _, r := range part {
			if !slices.ContainsFunc(some, func(l protocol.DLQEntry) bool { return l.ID == r.id }) {
				gone = append(gone, r)
			}
		}
		if err := do(some, gone); err != nil {
			return err
		}
	}
	return nil
}
