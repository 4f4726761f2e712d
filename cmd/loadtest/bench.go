package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/loadtest/bench"
)

// benchFlags are the flags of loadtest bench.
type benchFlags struct {
	cfg   bench.Config
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
medians beside the targets. With --streams it measures, by turns, what a record costs
with so many streams instead. A target that is missed is no error: it says more
about the machine than about a commit, unless both are compared.`,
		Example: `  loadtest bench --json
  loadtest bench --short
  loadtest bench --rounds 1 --profile profiles
  loadtest bench --streams 1,2,4,8 --instances 1,2,3
  loadtest bench --streams 3,6 --cluster`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBench(cmd, f) },
	}
	flags := cmd.Flags()
	measureFlags(flags, &f.cfg)
	flags.IntVar(&f.cfg.Entries, "entries", 300_000, "entries of a backlog, and rows that are there before")
	flags.IntVar(&f.cfg.Devices, "devices", 1000, "devices of the fleet")
	flags.IntVar(&f.cfg.Rounds, "rounds", 3, "how often to take ceilings and backlogs alternately")
	flags.DurationVar(&f.cfg.Window, "window", 10*time.Second, "how long to measure each steady load")
	flags.IntSliceVar(&f.cfg.Streams, "streams", nil, "numbers of streams, the first of which the others are compared with: only they are measured")
	flags.IntSliceVar(&f.cfg.Instances, "instances", nil, "with --streams: numbers of instances (default 1)")
	flags.BoolVar(&f.cfg.Cluster, "cluster", false, "with --streams: on a Redis Cluster of three masters, spread over them")
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
	f.cfg.Notes = notes
	r, err := bench.Run(cmd.Context(), f.cfg)
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

func printBench(out io.Writer, r *bench.Result) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) }
	line("%s entries, %s devices, seed %d, %d cores, load average %s, %.0f s\n",
		cli.Thousands(int64(r.Entries)), cli.Thousands(int64(r.Devices)), r.Seed, r.Cores, r.Load, r.Seconds)
	if len(r.Streams) > 0 {
		printStreamsBench(line, r)
		_ = t.Flush()
		return
	}
	line("what\tmedian\tspread\tto COPY\trounds")
	for _, s := range []struct {
		what   string
		series bench.Series
		rate   bool
	}{
		{"COPY, rows/s", r.Copy, true},
		{"INSERT, rows/s", r.Insert, true},
		{"group read and ack, entries/s", r.ReadAck, true},
		{"decode on one core, records/s", r.Decode, true},
		{"backlog, one instance, records/s", r.One, true},
		{"backlog, two instances, records/s", r.Two, true},
		{"two that start with the backlog, records/s", r.TwoJoining, true},
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
	printTargets(line, r)
	_ = t.Flush()
}

func printTargets(line func(format string, args ...any), r *bench.Result) {
	line("\ntarget\tmeasured\taim\tbound\treached")
	for _, g := range r.Targets() {
		line("%s\t%.2f\t%g\t%g\t%s", g.What, g.Value, g.Aim, g.Bound, g.Verdict())
	}
}

func printStreamsBench(line func(format string, args ...any), r *bench.Result) {
	line("instances\tstreams\trecords/s\tservice us\tto the first\tRedis us\tto the first\tbusiest node\tPostgres us\ta commit\tMB\trounds of the service")
	for _, s := range r.Streams {
		line("%d\t%d\t%s\t%.2f\t%.3f\t%.2f\t%.3f\t%.2f\t%.2f\t%.0f\t%.0f\t%.2f", s.Instances, s.Streams, cli.Thousands(int64(s.Rate.Median)),
			s.OwnCPU.Median, s.OwnRatio.Median, s.RedisCPU.Median, s.RedisRatio.Median, s.Busiest.Median, s.PostgresCPU.Median, s.PerCommit.Median, s.Peak.Median, s.OwnCPU.Values)
	}
	printTargets(line, r)
}

// rates shows some on one line.
func rates(values []float64) string {
	var all []string
	for _, v := range values {
		all = append(all, cli.Thousands(int64(v)))
	}
	return strings.Join(all, " ")
}
