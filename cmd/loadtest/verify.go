package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/loadtest"
	"github.com/trmtracking/processor/loadtest/demo"
)

func newVerifyCommand() *cobra.Command {
	var cfg loadtest.VerifyConfig
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the tables of a running system with a recorded send log; changes nothing",
		Long: `Judges what a system made of entries that loadtest send, or loadtest run --keep,
has recorded: every row of positions and of timing_records, every dead letter, every
entry. Rows of other devices are passed over. Exit 1 when something differs.`,
		Example: `  loadtest send --redis-url redis://staging:6379 --log sent.log --rate 200 --duration 10m
  loadtest verify --redis-url redis://staging:6379 --postgres-url postgres://me@staging/trm --log sent.log`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Check(); err != nil {
				return cli.Usage(cmd, err)
			}
			report, err := loadtest.Verify(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			a := report.Account
			notes := cmd.ErrOrStderr()
			for _, f := range report.Examples {
				_, _ = fmt.Fprintln(notes, "finding:", f)
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Entries      int64 `json:"entries"`
					Stored       int64 `json:"stored"`
					Duplicates   int64 `json:"duplicates"`
					DeadLettered int64 `json:"dead_lettered"`
					Pending      int64 `json:"pending"`
					Lost         int64 `json:"lost"`
					Dropped      int64 `json:"dropped"`
					Mismatches   int64 `json:"mismatches"`
					Crossings    int64 `json:"crossings"`
					Good         bool  `json:"good"`
				}{a.Entries, a.Stored, a.Duplicates, a.DeadLettered, a.Pending, a.Lost, a.Dropped, a.Mismatches, report.Crossings, report.Good()})
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s entries: %s stored, %s duplicates, %s dead letters, %s pending, %s lost; %s mismatches; %s crossings as they must be\n",
					cli.Thousands(a.Entries), cli.Thousands(a.Stored), cli.Thousands(a.Duplicates), cli.Thousands(a.DeadLettered),
					cli.Thousands(a.Pending), cli.Thousands(a.Lost), cli.Thousands(a.Mismatches), cli.Thousands(report.Crossings))
			}
			if err != nil {
				return fmt.Errorf("print the verdict: %w", err)
			}
			if !report.Good() {
				return errMissed
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.RedisURL, "redis-url", "", "Redis of the system")
	flags.StringVar(&cfg.PostgresURL, "postgres-url", "", "Postgres of the system")
	flags.StringVar(&cfg.Stream, "stream", "telemetry:teltonika", "stream that was sent to")
	flags.StringVar(&cfg.Group, "group", "processor", "consumer group of the system")
	flags.StringVar(&cfg.DLQStream, "dlq-stream", "", "stream of dead letters (default: the stream's name and :dlq)")
	flags.StringVar(&cfg.SendLog, "log", "", "recorded send log, a `file`")
	flags.DurationVar(&cfg.MaxFutureSkew, "max-future-skew", 5*time.Minute, "MAX_FUTURE_SKEW of the system")
	flags.DurationVar(&cfg.MaxPast, "max-past", 0, "MAX_PAST of the system")
	flags.IntVar(&cfg.MinSatellites, "min-satellites", 1, "MIN_SATELLITES of the system")
	flags.IntVar(&cfg.MaxSpeed, "max-speed", 0, "MAX_SPEED of the system")
	flags.DurationVar(&cfg.MaxCrossingGap, "max-crossing-gap", 10*time.Minute, "MAX_CROSSING_GAP of the system")
	flags.TimeVar(&cfg.DroppedBefore, "dropped-before", time.Time{}, []string{time.RFC3339}, "retention dropped positions with device times before this; their crossings stay")
	flags.StringVar(&cfg.DroppedAt, "dropped-at", "", "the first `entry` that was not done when retention dropped them, such as 1780000000000-0")
	flags.BoolVar(&asJSON, "json", false, "print the account as one line of JSON")
	required(cmd, "redis-url", "postgres-url", "log")
	return cmd
}

func newSendCommand() *cobra.Command {
	var cfg loadtest.SendConfig
	cmd := &cobra.Command{
		Use:   "send",
		Short: "Send a fleet to a running system and record it for verify",
		Long: `Sends a simulated fleet with device times of now to a stream that a system reads,
until --duration is over or Ctrl-C. What was sent is recorded in a send log.

When Redis does not answer at the start, nothing is sent. Later outages are waited
for and made up for, until 10 s after --duration: exit 1 when something is not sent
by then.`,
		Example: `  loadtest send --redis-url redis://staging:6379 --log sent.log --devices 1000 --rate 200 --duration 10m`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Seed == 0 {
				cfg.Seed = seedOfTheDay(time.Now())
			}
			if err := cfg.Check(); err != nil {
				return cli.Usage(cmd, err)
			}
			cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			stream.LogDriver(cfg.Log)
			sent, err := loadtest.Send(cmd.Context(), cfg)
			if err == nil || sent.Sent > 0 {
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s entries sent, at most %s behind the plan; recorded in %s\n",
					cli.Thousands(sent.Sent), demo.Milliseconds(sent.Worst), cfg.SendLog)
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.RedisURL, "redis-url", "", "Redis of the system")
	flags.StringVar(&cfg.Stream, "stream", "telemetry:teltonika", "stream to send to")
	flags.Int64Var(&cfg.MaxLen, "max-len", 0, "trim the stream to about this many entries, as the ingest does; 0 never")
	flags.StringVar(&cfg.SendLog, "log", "", "`file` for the send log, which does not exist yet")
	flags.IntVar(&cfg.Plan.Devices, "devices", 500, "devices of the fleet")
	flags.Float64Var(&cfg.Plan.Rate, "rate", 500, "entries a second")
	flags.DurationVar(&cfg.Plan.Duration, "duration", time.Minute, "how long to send")
	flags.StringVar(&cfg.Plan.Profile, "fleet", "incidents", "steady, incidents, polluted or hot")
	flags.Uint64Var(&cfg.Seed, "seed", 0, "of the fleet (default: the day's)")
	required(cmd, "redis-url", "log")
	return cmd
}

// required marks flags without which there is nothing to do.
func required(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		cobra.CheckErr(cmd.MarkFlagRequired(name))
	}
}
