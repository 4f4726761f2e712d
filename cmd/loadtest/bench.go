package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/loadtest"
)

// benchFlags are the flags of loadtest bench.
type benchFlags struct {
	cfg   loadtest.BenchConfig
	json  bool
	short bool
}

func newBenchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure rate, latency, CPU and memory against what the servers can do alone",
		Long: `Starts private servers, measures what they can do with the same rows (COPY,
INSERT, group read and ack), then what the service does, alternately, and prints the
medians beside the targets. A target that is missed is no error: it says more
about the machine than about a commit, unless both are compared.`,
		Example: `  loadtest bench --json
  loadtest bench --short
  loadtest bench --rounds 1 --profile profiles`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBench(cmd, f) },
	}
	flags := cmd.Flags()
	measureFlags(flags, &f.cfg)
	flags.IntVar(&f.cfg.Entries, "entries", 300_000, "entries of a backlog, and rows that are there before")
	flags.IntVar(&f.cfg.Devices, "devices", 1000, "devices of the fleet")
	flags.IntVar(&f.cfg.Rounds, "rounds", 3, "how often to take ceilings and backlogs alternately")
	flags.DurationVar(&f.cfg.Window, "window", 10*time.Second, "how long to measure each steady load")
	flags.BoolVar(&f.short, "short", false, "one round with fewer entries and shorter loads, unless told otherwise")
	flags.StringVar(&f.cfg.Profile, "profile", "", "keep CPU and allocation profiles of the backlogs in this `folder` (they cost a little)")
	flags.BoolVar(&f.json, "json", false, "print everything as one last line of JSON")
	return cmd
}

func runBench(cmd *cobra.Command, f benchFlags) (err error) {
	notes := cmd.ErrOrStderr()
	f.cfg.Rates, f.cfg.WarmUp = []float64{1000, 5000, 20_000}, 2*time.Second
	if f.short {
		for _, s := range []struct{ flag, value string }{{"entries", "100000"}, {"rounds", "1"}, {"window", "4s"}} {
			if !cmd.Flags().Changed(s.flag) {
				if err := cmd.Flags().Set(s.flag, s.value); err != nil {
					return err
				}
			}
		}
		f.cfg.Entries, _ = cmd.Flags().GetInt("entries")
		f.cfg.Rounds, _ = cmd.Flags().GetInt("rounds")
		f.cfg.Window, _ = cmd.Flags().GetDuration("window")
	}
	if err := f.cfg.Check(); err != nil {
		return cli.Usage(cmd, err)
	}
	if f.cfg.Profile != "" {
		if err := os.MkdirAll(f.cfg.Profile, 0o755); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
	}
	var done func(error) error
	if f.cfg.Dir, done, err = logFolder(notes); err != nil {
		return err
	}
	defer func() { err = done(err) }()
	if f.cfg.Processor, err = findProcessor(cmd, f.cfg.Processor, f.cfg.Dir); err != nil {
		return err
	}
	f.cfg.Log = slog.New(slog.NewTextHandler(notes, &slog.HandlerOptions{Level: slog.LevelWarn}))
	stream.LogDriver(f.cfg.Log)
	f.cfg.Notes, f.cfg.Postgres = notes, rawPostgres{}
	r, err := loadtest.Bench(cmd.Context(), f.cfg)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	if !f.json {
		printBench(cmd.OutOrStdout(), r)
		return nil
	}
	printBench(notes, r)
	if err := json.NewEncoder(cmd.OutOrStdout()).Encode(r); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

func printBench(out io.Writer, r *loadtest.BenchResult) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) }
	line("%s entries, %s devices, seed %d, %d cores, load average %s, %.0f s\n",
		cli.Thousands(int64(r.Entries)), cli.Thousands(int64(r.Devices)), r.Seed, r.Cores, r.Load, r.Seconds)
	line("what\tmedian\tspread\tto COPY\trounds")
	for _, s := range []struct {
		what   string
		series loadtest.Series
		rate   bool
	}{
		{"COPY, rows/s", r.Copy, true},
		{"INSERT, rows/s", r.Insert, true},
		{"group read and ack, entries/s", r.ReadAck, true},
		{"decode on one core, records/s", r.Decode, true},
		{"backlog, one instance, records/s", r.One, true},
		{"backlog, two instances, records/s", r.Two, true},
		{"newest first, one instance, records/s", r.OneNewest, true},
		{"newest first, two instances, records/s", r.TwoNewest, true},
		{"CPU of Postgres in COPY, s a million rows", r.CopyCPU, false},
		{"CPU of the service, s a million records", r.OwnCPU, false},
		{"CPU of Redis, s a million records", r.RedisCPU, false},
		{"CPU of Postgres, s a million records", r.PostgresCPU, false},
		{"records a commit", r.PerCommit, false},
		{"allocations a record", r.Allocs, false},
		{"peak memory, MB", r.Peak, false},
		{"start to first commit, s", r.FirstCommit, false},
	} {
		if s.rate {
			line("%s\t%s\t%.0f%%\t%.2f\t%s", s.what, cli.Thousands(int64(s.series.Median)), 100*s.series.Spread, s.series.Median/r.CopyCeiling, rates(s.series.Values))
		} else {
			line("%s\t%.2f\t%.0f%%\t\t%.2f", s.what, s.series.Median, 100*s.series.Spread, s.series.Values)
		}
	}
	line("\nsteady load, records/s\tp50 ms\tp99 ms\tp99.9 ms\tservice, Redis, Postgres us a record")
	for _, s := range r.Steady {
		line("%s\t%.1f\t%.1f\t%.1f\t%.1f, %.1f, %.1f", cli.Thousands(int64(s.Rate)), s.P50, s.P99, s.P999, s.CPU, s.Redis, s.Postgres)
	}
	line("\ntarget\tmeasured\taim\tbound\treached")
	for _, g := range r.Targets() {
		line("%s\t%.2f\t%g\t%g\t%s", g.What, g.Value, g.Aim, g.Bound, g.Verdict())
	}
	_ = t.Flush()
}

// rates shows some on one line.
func rates(values []float64) string {
	var all []string
	for _, v := range values {
		all = append(all, cli.Thousands(int64(v)))
	}
	return strings.Join(all, " ")
}

// rawPostgres implements loadtest.BenchPostgres.
type rawPostgres struct{}

const columns = `device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes`

func (rawPostgres) Exec(ctx context.Context, url, sql string) (err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

func (rawPostgres) Export(ctx context.Context, url string, from, before time.Time, size int) (_ [][]byte, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	var all bytes.Buffer
	_, err = conn.PgConn().CopyTo(ctx, &all, fmt.Sprintf(
		"copy (select %s from public.positions where ts >= '%s' and ts < '%s' order by ts, device_id) to stdout (format binary)",
		columns, from.UTC().Format(time.RFC3339Nano), before.UTC().Format(time.RFC3339Nano)))
	if err != nil {
		return nil, fmt.Errorf("read stored rows: %w", err)
	}
	return splitCopy(all.Bytes(), size)
}

// splitCopy cuts a binary COPY stream into whole ones of at most size rows.
func splitCopy(all []byte, size int) ([][]byte, error) {
	const head = 19 // without extensions, which no version of Postgres writes
	if len(all) < head+2 {
		return nil, errors.New("split stored rows: the stream is too short")
	}
	var out [][]byte
	start, rows := head, 0
	cut := func(end int) {
		if rows > 0 {
			out = append(out, bytes.Join([][]byte{all[:head], all[start:end], {0xff, 0xff}}, nil))
		}
		start, rows = end, 0
	}
	for at := head; at+2 <= len(all); {
		fields := int16(binary.BigEndian.Uint16(all[at:]))
		if fields < 0 {
			cut(at)
			return out, nil
		}
		if rows == size {
			cut(at)
		}
		rows++
		at += 2
		for range fields {
			if at+4 > len(all) {
				break
			}
			at += 4 + max(0, int(int32(binary.BigEndian.Uint32(all[at:]))))
		}
	}
	return nil, errors.New("split stored rows: the stream has no end")
}

// spread has tasks done over some connections and reports how long that took.
func spread(ctx context.Context, url string, tasks, connections int, do func(context.Context, *pgx.Conn, int) error) (took time.Duration, err error) {
	conns := make([]*pgx.Conn, connections)
	for i := range conns {
		if conns[i], err = pgx.Connect(ctx, url); err != nil {
			return 0, fmt.Errorf("connect to Postgres: %w", err)
		}
		defer func() { err = errors.Join(err, conns[i].Close(context.WithoutCancel(ctx))) }()
	}
	var next atomic.Int64
	began := time.Now()
	work, ctx := errgroup.WithContext(ctx)
	for _, conn := range conns {
		work.Go(func() error {
			for {
				n := int(next.Add(1)) - 1
				if n >= tasks {
					return nil
				}
				if err := do(ctx, conn, n); err != nil {
					return err
				}
			}
		})
	}
	err = work.Wait()
	return time.Since(began), err
}

func (rawPostgres) Copy(ctx context.Context, url string, streams [][]byte, connections int) (time.Duration, error) {
	return spread(ctx, url, len(streams), connections, func(ctx context.Context, conn *pgx.Conn, n int) error {
		tag, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(streams[n]), "copy public.positions ("+columns+") from stdin (format binary)")
		if err == nil && tag.RowsAffected() == 0 {
			err = errors.New("nothing was copied")
		}
		return err
	})
}

// arrays are the columns of one INSERT as Postgres encodes arrays, so that nothing
// but Postgres is measured.
type arrays [12][]byte

const insertSQL = `insert into public.positions (` + columns + `)
select * from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::float8[], $5::float8[],
  $6::float4[], $7::float4[], $8::float4[], $9::int2[], $10::int2[], $11::text[], $12::jsonb[])
on conflict (device_id, ts) do nothing`

func (rawPostgres) Insert(ctx context.Context, url, from string, since time.Time, size, connections int) (time.Duration, int, error) {
	batches, rows, err := readArrays(ctx, from, since, size)
	if err != nil {
		return 0, 0, err
	}
	took, err := spread(ctx, url, len(batches), connections, func(ctx context.Context, conn *pgx.Conn, n int) error {
		tag, err := conn.PgConn().ExecParams(ctx, insertSQL, batches[n][:], nil, []int16{1}, nil).Close()
		if err == nil && tag.RowsAffected() != int64(size) && n < len(batches)-1 {
			// Rows that are there already would make it look fast.
			err = fmt.Errorf("%d of %d rows were inserted", tag.RowsAffected(), size)
		}
		return err
	})
	return took, rows, err
}

// readArrays has the server encode its rows as binary arrays.
func readArrays(ctx context.Context, url string, since time.Time, size int) (batches []*arrays, rows int, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, 0, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	// Rows of one batch, in the order of the stream.
	sql := fmt.Sprintf(`
select array_agg(device_id order by n), array_agg(ts order by n), array_agg(ingested_at order by n), array_agg(latitude order by n),
  array_agg(longitude order by n), array_agg(altitude order by n), array_agg(angle order by n), array_agg(speed order by n),
  array_agg(satellites order by n), array_agg(priority order by n), array_agg(codec order by n), array_agg(attributes order by n), count(*)
from (select *, row_number() over (order by ts, device_id) as n from public.positions where ts >= '%s') as r
group by (n - 1) / %d order by min(n)`, since.UTC().Format(time.RFC3339Nano), size)
	res := conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, []int16{1})
	for res.NextRow() {
		var a arrays
		values := res.Values()
		for i := range a {
			a[i] = bytes.Clone(values[i])
		}
		rows += int(binary.BigEndian.Uint64(values[12]))
		batches = append(batches, &a)
	}
	if _, err := res.Close(); err != nil {
		return nil, 0, fmt.Errorf("read stored rows: %w", err)
	}
	return batches, rows, nil
}
