package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/loadtest/demo"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/modules"
)

// demoStallLimit is how long the service may make no progress.
const demoStallLimit = time.Minute

// demoFlags are the flags of loadtest demo.
type demoFlags struct {
	tracks []string
	order  string
	speed  string
	seed   uint64
	once   bool
	json   bool
}

func newDemoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the service at work on servers of its own",
		Long: `Starts a private Redis and a private Postgres, starts the service, feeds a fleet
into the stream and shows what becomes of it. At the end every entry that was sent
is accounted for, and every field of every row is compared with what was sent.

REDIS_URL and POSTGRES_URL are ignored. To use servers of your own, empty ones,
name them in DEMO_REDIS_URL and DEMO_POSTGRES_URL.

Without --once and --json two instances run as processes of their own: one is killed
after 15 s, its shards move, it comes back; a dead letter is fixed and replayed. The
address of the web console is printed first, and the fleet stays up until Ctrl-C.`,
		Example: `  loadtest demo
  loadtest demo --once --json
  loadtest demo --once --speed 0 --order file --tracks buses.csv.gz boats.csv`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 && len(f.tracks) == 0 {
				return fmt.Errorf("unknown argument %q; recorded files follow --tracks", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			defer cli.OnSecondSignal(func() { os.Exit(exitFinding) })()
			f.tracks = append(f.tracks, args...) // what the shell makes of --tracks *.csv
			in, err := f.input()
			if err != nil {
				return cli.Usage(cmd, err)
			}
			if f.once || f.json {
				return runDemo(cmd, in, f)
			}
			return runDrama(cmd, in, f)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.tracks, "tracks", nil, "recorded `file`s, CSV or GPX, also with .gz (default: a simulated rally)")
	flags.StringVar(&f.order, "order", string(fleet.OrderTime), "order of recorded tracks: time or file")
	flags.StringVar(&f.speed, "speed", "auto", "multiple of the recorded speed; 0: as fast as it goes")
	flags.Uint64Var(&f.seed, "seed", 1, "seed of the simulated fleet")
	flags.BoolVar(&f.once, "once", false, "end after the account; exit 0 only if it balances")
	flags.BoolVar(&f.json, "json", false, "print the account as JSON")
	return cmd
}

func (f demoFlags) input() (demo.Input, error) {
	order, err := fleet.ParseOrder(f.order)
	if err != nil {
		return demo.Input{}, err
	}
	in := demo.Input{Tracks: f.tracks, Order: order, Speed: demo.Auto, Seed: f.seed}
	if f.speed != "auto" {
		if in.Speed, err = strconv.ParseFloat(f.speed, 64); err != nil || !(in.Speed >= 0) {
			return in, fmt.Errorf("--speed %q: want auto, 0 or a multiple such as 10", f.speed)
		}
	}
	return in, nil
}

func runDemo(cmd *cobra.Command, in demo.Input, f demoFlags) (err error) {
	ctx, out, notes := cmd.Context(), cli.New(cmd.OutOrStdout(), f.json), cmd.ErrOrStderr()
	modules.QuietDrivers()
	load, err := in.Open()
	if err != nil {
		return err
	}
	feeding := fmt.Sprintf("feeding %s: %s of %s", load.Name, cli.Count(load.Entries, "entry"), cli.Count(load.Devices, "device"))
	cli.Say(notes, "%s", strings.Join(cli.Wrap(feeding, cli.Columns-2), "\n  "))
	servers, err := demo.StartServers(ctx, os.Getenv(demo.RedisVariable), os.Getenv(demo.PostgresVariable))
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, servers.Close()) }()

	cfg, err := config.Load(demoEnviron(os.Environ(), servers))
	if err != nil {
		return err
	}
	log := modules.NewLogger(cfg.Log, cfg.Instance.ID, notes)
	build := cli.ReadBuild()
	service, err := modules.New(cfg, log, modules.Build{Version: build.Version, Revision: build.Revision})
	if err != nil {
		return err
	}
	if err := service.Start(ctx); err != nil {
		return interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, service.Stop()) }()

	working, fail := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { fail(service.Wait(working)) })
	defer watching.Wait()
	defer fail(nil)
	result, err := demo.Run(working, demo.Config{
		RedisURL: servers.RedisURL, PostgresURL: servers.PostgresURL, Stream: cfg.Redis.Stream, Group: cfg.Redis.Group,
		Load: load, Metrics: service.Metrics(), StallLimit: demoStallLimit,
		Show: shower(notes, load.Entries), Every: showEvery(notes),
	}, log)
	if err != nil {
		return interrupted(ctx, err)
	}
	if err := account(out, notes, result); err != nil {
		return err
	}
	if !f.once {
		sayURLs(notes, servers, service.Addr())
		<-working.Done()
		if cause := context.Cause(working); !errors.Is(cause, context.Canceled) {
			return cause
		}
	}
	if !result.Good() {
		return errMissed
	}
	return nil
}

// interrupted returns what an error means once Ctrl-C was pressed.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted, there is no account")
	}
	return err
}

// demoEnviron returns the environment of a demo's service: the caller's, so that
// settings can be tried, without anything that names servers or ports.
func demoEnviron(environ []string, s *demo.Servers) []string {
	ours := []string{
		"REDIS_URL=" + s.RedisURL,
		"POSTGRES_URL=" + s.PostgresURL,
		"MIGRATE=auto",
		"METRICS_HOST=127.0.0.1",
		"METRICS_PORT=0",
		"INSTANCE_ID=demo",
	}
	dropped := []string{
		"POSTGRES_MIGRATE_URL", "REDIS_TELEMETRY_STREAM", "REDIS_CONSUMER_GROUP", "REDIS_DLQ_STREAM", "RECOMPUTE_STREAM",
	}
	for _, v := range ours {
		name, _, _ := strings.Cut(v, "=")
		dropped = append(dropped, name)
	}
	var kept []string
	level := false
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		level = level || name == "LOG_LEVEL"
		if !slices.Contains(dropped, strings.TrimSuffix(name, "_FILE")) {
			kept = append(kept, v)
		}
	}
	if !level {
		kept = append(kept, "LOG_LEVEL=error") // progress and account are what one came for
	}
	return append(kept, ours...)
}

func shower(w io.Writer, entries int64) func(demo.Snapshot) {
	if cli.IsTerminal(w) {
		return demo.Bar(w, entries)
	}
	return demo.Lines(w)
}

func showEvery(w io.Writer) time.Duration {
	if cli.IsTerminal(w) {
		return redrawEvery
	}
	return lineEvery
}

// accountJSON is how a demo ended.
type accountJSON struct {
	oracle.Account
	Invalid  int64        `json:"invalid"` // of the entries, no valid record
	Balanced bool         `json:"balanced"`
	Latency  *latencyJSON `json:"latency_ms"` // from stream to commit; null where nothing was committed
}

type latencyJSON struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func accountOf(r *demo.Result) accountJSON {
	a := accountJSON{Account: r.Account, Invalid: r.Invalid, Balanced: r.Good()}
	a.Seconds, a.PerSecond = cli.Round(a.Seconds, 3), cli.Round(a.PerSecond, 1)
	if r.Timed {
		a.Latency = &latencyJSON{cli.Round(r.P50.Seconds()*1000, 1), cli.Round(r.P99.Seconds()*1000, 1)}
	}
	return a
}

// account prints how the demo ended; as JSON it is the last line.
func account(out *cli.Output, notes io.Writer, r *demo.Result) error {
	for _, finding := range r.Findings {
		cli.Say(notes, "%s", finding)
	}
	a := r.Account
	return out.Result(accountOf(r), func() error {
		t := cli.NewTable("ACCOUNT", "ENTRIES", "")
		t.Row("sent", cli.Thousands(a.Entries), "")
		t.Row("stored", cli.Thousands(a.Stored), "each field compared with what was sent")
		t.Row("duplicates", cli.Thousands(a.Duplicates), "of a device and time that is stored")
		note := ""
		if r.Invalid > 0 {
			note = fmt.Sprintf("%s of those sent are no valid record", cli.Thousands(r.Invalid))
		}
		t.Row("dead-lettered", cli.Thousands(a.DeadLettered), note)
		t.Row("pending", painted(a.Pending, a.Pending > 0, cli.Yellow), "")
		t.Row("lost", painted(a.Lost, a.Lost > 0, cli.Red), "")
		t.Row("mismatches", painted(a.Mismatches, a.Mismatches > 0, cli.Red), "")
		if err := out.Table(t); err != nil {
			return err
		}
		speed := fmt.Sprintf("%.1f s, %s entries/s", a.Seconds, cli.Thousands(int64(a.PerSecond)))
		if r.Timed {
			speed += fmt.Sprintf(", from stream to commit %s (median), %s (99 %%)", demo.Milliseconds(r.P50), demo.Milliseconds(r.P99))
		}
		if err := out.Line("%s", speed); err != nil {
			return err
		}
		if !r.Good() {
			return out.Line("%s", out.Paint(cli.Red, "not balanced"))
		}
		return out.Line("%s: sent = stored + duplicates + dead-lettered + pending + lost", out.Paint(cli.Green, "balanced"))
	})
}

func painted(n int64, on bool, c cli.Color) any {
	if on {
		return cli.Colored(cli.Thousands(n), c)
	}
	return cli.Thousands(n)
}

func sayURLs(w io.Writer, s *demo.Servers, addr string) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		port = addr
	}
	cli.Say(w, `
still running, Ctrl-C ends it:
  metrics    http://127.0.0.1:%[1]s/metrics
  readiness  http://127.0.0.1:%[1]s/readyz
  Redis      redis-cli -u '%[2]s'
  Postgres   psql '%[3]s'`, port, config.RedisURL(s.RedisURL), config.PostgresURL(s.PostgresURL))
}
