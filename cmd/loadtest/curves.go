package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/loadtest"
)

// curvesFlags are the flags of loadtest curves.
type curvesFlags struct {
	cfg  loadtest.CurvesConfig
	list bool
	json bool
}

func newCurvesCommand() *cobra.Command {
	var f curvesFlags
	cmd := &cobra.Command{
		Use:   "curves [NAME...]",
		Short: "Measure how the cost of a record grows with devices, shards, table size and more",
		Long: `Has the service drain one backlog for each point of a curve, on private
servers, and writes a CSV and an SVG for each curve. CPU a record is the figure
to compare: rates say more about who else uses the machine.`,
		Example: `  loadtest curves --list
  loadtest curves devices table --full
  loadtest curves memory --profile profiles`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.cfg.Names = args
			if f.list {
				return listCurves(cmd.OutOrStdout())
			}
			return runCurves(cmd, f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.list, "list", false, "explain the curves and measure nothing")
	flags.BoolVar(&f.cfg.Full, "full", false, "the largest points and all curves, too: 1,000,000 devices, 10,000,000 rows")
	flags.IntSliceVar(&f.cfg.Points, "points", nil, "only these `points` of each curve named, without separators: 1000,1000000")
	flags.IntVar(&f.cfg.Rounds, "rounds", 1, "how often to go over the points of a curve; medians count")
	flags.IntVar(&f.cfg.Bench.Entries, "entries", 100_000, "entries of a point after those that make its devices known")
	flags.StringVar(&f.cfg.Out, "out", "docs/performance", "`folder` for a CSV and an SVG for each curve")
	measureFlags(flags, &f.cfg.Bench)
	flags.StringVar(&f.cfg.Bench.Profile, "profile", "", "keep a heap profile of each point in this `folder`")
	flags.BoolVar(&f.json, "json", false, "print everything as one last line of JSON")
	return cmd
}

func listCurves(out io.Writer) error {
	var b strings.Builder
	names, abouts, usual := loadtest.CurveNames()
	for i, name := range names {
		b.WriteString(name + "\n" + wrap(abouts[i], "  "))
		if !usual[i] {
			b.WriteString("  Only when named or with --full.\n")
		}
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return fmt.Errorf("print the list: %w", err)
	}
	return nil
}

func runCurves(cmd *cobra.Command, f curvesFlags) (err error) {
	notes, bench := cmd.ErrOrStderr(), &f.cfg.Bench
	if err := f.cfg.Check(); err != nil {
		return cli.Usage(cmd, err)
	}
	for _, dir := range []string{f.cfg.Out, bench.Profile} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
	}
	var done func(error) error
	if bench.Dir, done, err = logFolder(notes); err != nil {
		return err
	}
	defer func() { err = done(err) }()
	if bench.Processor, err = findProcessor(cmd, bench.Processor, bench.Dir); err != nil {
		return err
	}
	bench.Log = slog.New(slog.NewTextHandler(notes, &slog.HandlerOptions{Level: slog.LevelWarn}))
	stream.LogDriver(bench.Log)
	bench.Notes, bench.Postgres, f.cfg.Postgres = notes, rawPostgres{}, curvesPostgres{}
	curves, err := loadtest.Curves(cmd.Context(), f.cfg)
	out := cmd.OutOrStdout()
	if f.json {
		out = notes
	}
	printCurves(out, curves) // those that were done before an error, too
	if err != nil {
		return err
	}
	if f.json {
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(curves); err != nil {
			return fmt.Errorf("print the result: %w", err)
		}
	}
	return nil
}

func printCurves(out io.Writer, curves []loadtest.ScalingCurve) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\t\n", args...) }
	for _, c := range curves {
		_ = t.Flush()
		_, _ = fmt.Fprintf(out, "\n%s: %s\nload average %s\n", c.Name, c.About, c.Load)
		line("%s\trecords/s\tus: service\tRedis\tPostgres\ttotal\tpeak MB\ta commit\tto base\tCOPY us\tCOPY to base\trelative", c.Axis)
		for _, p := range c.Points {
			beside := "\t\t"
			if p.Copy > 0 {
				beside = fmt.Sprintf("%.1f\t%.2f\t%.2f", p.Copy, p.CopyToBase, p.Relative)
			}
			line("%s\t%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.2f\t%s",
				p.At, cli.Thousands(int64(p.Rate)), p.Service, p.Redis, p.Postgres, p.Total, p.PeakMB, p.PerCommit, p.ToBase, beside)
		}
	}
	_ = t.Flush()
	for _, c := range curves {
		for _, g := range c.Targets() {
			_, _ = fmt.Fprintf(out, "target: %s: %.2f, aim %g, bound %g: %s\n", g.What, g.Value, g.Aim, g.Bound, g.Verdict())
		}
	}
}

// curvesPostgres implements loadtest.CurvesPostgres.
type curvesPostgres struct{ rawPostgres }

func (curvesPostgres) Number(ctx context.Context, url, sql string) (n float64, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if err := conn.QueryRow(ctx, sql).Scan(&n); err != nil {
		return 0, fmt.Errorf("%s: %w", sql, err)
	}
	return n, nil
}
