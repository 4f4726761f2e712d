package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/loadtest/report"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

// runFlags are the flags of loadtest run.
type runFlags struct {
	cfg     scenarios.Config
	json    bool
	report  string
	keep    string
	verbose bool
}

func newRunCommand() *cobra.Command {
	f := runFlags{cfg: scenarios.Config{World: devenv.Plain}}
	cmd := &cobra.Command{
		Use:   "run SCENARIO",
		Short: "Run a scenario; exit 1 when one of its bounds is missed",
		Long: `Starts private servers and instances of the processor, runs the scenario and
judges it; "loadtest list" explains the scenarios, their bounds and their plans,
which the flags change.

Servers of your own are used when both are named. They get a stream and a group of
their own, the tables of the service must be empty or missing, and everything is
removed afterwards. Scenarios that kill, freeze or cut off instances need
--allow-faults.

Exits 0 when all bounds were kept, 1 when one was missed or there is no verdict,
3 when the command line is wrong. Of a world that this machine lacks there is none:
with --json the line is {"scenario":…,"skipped":…}. "--world turn" takes another.`,
		Example: `  loadtest run split --json
  loadtest run failover --report failover.html
  loadtest run soak --duration 1h --rate 2000
  loadtest run split --redis-url redis://staging:6379/5 --postgres-url postgres://me@staging/empty`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(1)(cmd, args); err != nil {
				return fmt.Errorf("%w; loadtest list explains the scenarios", err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := scenarios.ByName(args[0])
			if err != nil {
				return cli.Usage(cmd, fmt.Errorf("%w%s", err, cli.DidYouMean(args[0], "", scenarios.Names())))
			}
			if err := f.cfg.Check(s); err != nil {
				return cli.Usage(cmd, err)
			}
			return runScenario(cmd, s, f)
		},
	}
	flags := cmd.Flags()
	processorFlag(flags, &f.cfg.Processor)
	flags.StringVar(&f.cfg.Image, "image", "", "the image of containers (default: one is built from the sources here)")
	flags.StringArrayVar(&f.cfg.Env, "env", nil, "further `NAME=value` for the instances; may be repeated")
	flags.StringVar(&f.cfg.RedisURL, "redis-url", "", "use this Redis")
	flags.StringVar(&f.cfg.PostgresURL, "postgres-url", "", "use this Postgres; the tables of the service hold no rows")
	flags.Var(&f.cfg.World, "world", "what the private servers are like: "+aboutWorlds())
	flags.BoolVar(&f.cfg.AllowFaults, "allow-faults", false, "kill, freeze and cut off also on servers that were named")
	flags.IntVar(&f.cfg.Plan.Instances, "instances", 0, "instances at the start")
	flags.IntVar(&f.cfg.Plan.Streams, "streams", 0, "streams that share devices and rate (chaos and cluster)")
	flags.IntVar(&f.cfg.Plan.Devices, "devices", 0, "devices of the fleet")
	flags.Float64Var(&f.cfg.Plan.Rate, "rate", 0, "entries a second")
	flags.DurationVar(&f.cfg.Plan.Duration, "duration", 0, "how long to send")
	flags.IntVar(&f.cfg.Plan.Entries, "entries", 0, "how many entries to send in all (of each round, for backlog)")
	flags.IntVar(&f.cfg.Plan.Rounds, "rounds", 0, "how often to repeat what the scenario repeats")
	flags.StringVar(&f.cfg.Plan.Profile, "fleet", "", "steady, incidents, polluted or hot")
	flags.Uint64Var(&f.cfg.Seed, "seed", 0, "of the fleet and the faults (default: the day's, as in 20261231)")
	flags.Float64Var(&f.cfg.Slack, "slack", 1, "allow this multiple of the slack in bounds on time, for busy machines")
	flags.StringVar(&f.cfg.Rare, "rare", "", "count the rare branches that the instances reach in this `folder`, and judge the history of epochs and leases; wants a --processor built with -tags mutant")
	flags.BoolVar(&f.json, "json", false, "print the verdict as one last line of JSON")
	flags.StringVar(&f.report, "report", "", "write a report with charts to this `file`")
	flags.StringVar(&f.keep, "keep", "", "keep the logs of the instances and the send log in this `folder`")
	flags.BoolVar(&f.verbose, "verbose", false, "show what happens in the log")
	return cmd
}

func aboutWorlds() string {
	var about []string
	for _, w := range devenv.Worlds() {
		about = append(about, fmt.Sprintf("%s (%s)", w, w.About()))
	}
	return strings.Join(about, ", ") + "; or turn, one of them by the seed"
}

func runScenario(cmd *cobra.Command, s scenarios.Scenario, f runFlags) (err error) {
	ctx, notes := cmd.Context(), cmd.ErrOrStderr()
	if f.cfg.Seed == 0 {
		f.cfg.Seed = seedOfTheDay(time.Now())
	}
	f.cfg.World = f.cfg.World.By(f.cfg.Seed)
	if err := f.cfg.World.Missing(); err != nil {
		err = fmt.Errorf("the world %s: %w", f.cfg.World, err)
		if f.json {
			return errors.Join(err, printJSON(cmd.OutOrStdout(), skipped{s.Name, err.Error()}))
		}
		return err
	}
	var written *os.File // nil without a report
	if f.report != "" {
		if written, err = os.Create(f.report); err != nil {
			return fmt.Errorf("make the report: %w", err)
		}
		defer func() { err = errors.Join(err, written.Close()) }()
	}
	if f.keep == "" {
		var done func(error) error
		if f.cfg.Dir, done, err = logFolder(notes); err != nil {
			return err
		}
		defer func() { err = done(err) }()
	} else {
		if f.cfg.Dir, err = filepath.Abs(f.keep); err != nil {
			return fmt.Errorf("find the folder: %w", err)
		}
		if err := os.MkdirAll(f.cfg.Dir, 0o755); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
	}
	if f.cfg.Processor, err = findProcessor(cmd, f.cfg.Processor, f.cfg.Dir); err != nil {
		return err
	}
	if f.cfg.Rare != "" {
		if f.cfg.Rare, err = filepath.Abs(f.cfg.Rare); err != nil {
			return fmt.Errorf("find the folder: %w", err)
		}
		if err := os.MkdirAll(f.cfg.Rare, 0o755); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
	}
	if f.cfg.Rare != "" && f.report != "" {
		f.cfg.Picture = strings.TrimSuffix(f.report, ".html") + ".history.html"
		_, _ = fmt.Fprintf(notes, "history of epochs and leases: %s\n", f.cfg.Picture)
	}
	level := slog.LevelWarn
	if s.Breaks {
		level = slog.LevelError // what breaks on purpose is no news
	}
	if f.verbose {
		level = slog.LevelInfo
	}
	f.cfg.Log = slog.New(slog.NewTextHandler(notes, &slog.HandlerOptions{Level: level}))
	stream.LogDriver(f.cfg.Log)
	view := newView(notes, s.Name)
	f.cfg.Show = view.show
	_, _ = fmt.Fprintf(notes, "%s, seed %d, world %s: %s\n", s.Name, f.cfg.Seed, f.cfg.World, s.About)
	result, err := scenarios.Run(ctx, s, f.cfg)
	if result == nil && ctx.Err() != nil {
		return errors.New("interrupted, there is no verdict")
	}
	if err != nil {
		err = fmt.Errorf("%s, seed %d: %w", s.Name, f.cfg.Seed, err)
	}
	if result == nil {
		return err
	}
	result.Repeat = repeat(cmd.Flags(), result)
	return errors.Join(f.publish(cmd.OutOrStdout(), notes, s, result, written), err)
}

// publish prints the verdict and writes the report, if there is to be one.
func (f runFlags) publish(out, notes io.Writer, s scenarios.Scenario, result *scenarios.Result, written io.Writer) error {
	verdict := printResult(out, notes, result, f)
	if f.report == "" {
		return verdict
	}
	if err := report.Write(written, s, result); err != nil {
		return errors.Join(verdict, err)
	}
	_, _ = fmt.Fprintf(notes, "report: %s\n", f.report)
	return verdict
}

// repeat returns the command that runs the same again: with the seed and the world that were
// drawn, and without what only says where to write.
func repeat(flags *pflag.FlagSet, r *scenarios.Result) string {
	line := fmt.Sprintf("loadtest run %s --seed %d", r.Scenario, r.Seed)
	flags.Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		switch f.Name {
		case "seed", "json", "report", "keep", "verbose":
			return
		case "world":
			values = []string{string(r.World)}
		case "redis-url", "postgres-url": // which may hold a password
			values = []string{"URL"}
		case "env":
			values = f.Value.(pflag.SliceValue).GetSlice()
		default:
		}
		for _, v := range values {
			if strings.ContainsAny(v, " \t\n'\"$\\*;&|<>()`") {
				v = "'" + strings.ReplaceAll(v, "'", `'\''`) + "'"
			}
			line += " --" + f.Name + "=" + v
		}
	})
	return line
}

// logFolder makes a folder for logs. What it returns removes it at the end,
// unless there is an error and something in it.
func logFolder(notes io.Writer) (dir string, done func(error) error, err error) {
	dir, err = os.MkdirTemp("", "processor-loadtest-")
	if err != nil {
		return "", nil, fmt.Errorf("make a folder: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", nil, fmt.Errorf("find the folder: %w", err)
	}
	return dir, func(err error) error {
		if err == nil {
			return os.RemoveAll(dir)
		}
		if os.Remove(dir) != nil {
			_, _ = fmt.Fprintf(notes, "logs are kept in %s\n", dir)
		}
		return err
	}, nil
}

// seedOfTheDay returns the same for everybody for a day, so that what fails by chance
// is seen and can be repeated.
func seedOfTheDay(now time.Time) uint64 {
	y, m, d := now.UTC().Date()
	return uint64(y*10000 + int(m)*100 + d)
}

// findProcessor returns the program to run: the one named, the one beside this
// program, or one built from the source around us.
func findProcessor(cmd *cobra.Command, named, dir string) (string, error) {
	if named != "" {
		path, err := exec.LookPath(named)
		if err != nil {
			return "", fmt.Errorf("find the processor: %w", err)
		}
		return filepath.Abs(path)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "processor")
		if info, err := os.Stat(beside); err == nil && !info.IsDir() {
			return beside, nil
		}
	}
	built := filepath.Join(dir, "processor")
	build := exec.CommandContext(cmd.Context(), "go", "build", "-o", built, "github.com/trmtracking/processor/cmd/processor")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the processor: %w\n%sname the program with --processor", err, out)
	}
	return built, nil
}

// onTerminal reports whether a person watches what is written to w.
func onTerminal(w io.Writer) bool {
	return cli.IsTerminal(w) && os.Getenv("CI") == "" && os.Getenv("TERM") != "dumb"
}
