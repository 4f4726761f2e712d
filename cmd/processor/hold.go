package main

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
)

func newPauseCommand() *cobra.Command {
	return holdCommand("pause", "Stop dispatching, or the work on one shard",
		`Without --shard no entry is dispatched until processor resume: the stream keeps them,
as long as it is not trimmed. With --shard no member owns the shard; what is dispatched
waits on its queue. Of several streams all are paused, or the one that --stream names; a
shard is one of a stream that is named. Recorded in processor.audit.`, (*operator.Fleet).Pause)
}

func newResumeCommand() *cobra.Command {
	return holdCommand("resume", "End a pause", `Ends processor pause, of the fleet or of one shard. Recorded in processor.audit.`, (*operator.Fleet).Resume)
}

func holdCommand(verb, short, long string, do func(f *operator.Fleet, ctx context.Context, shard *int, reason string) (operator.Held, error)) *cobra.Command {
	var shard int
	var reason string
	cmd := &cobra.Command{
		Use: verb, Short: short, Long: long,
		Example: "  processor " + verb + " --reason 'migration of the platform'\n  processor " + verb + " --shard 17",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			var which *int
			if cmd.Flags().Changed("shard") {
				which = &shard
				name, err := cmd.Flags().GetString("stream")
				if err != nil {
					return err
				}
				if cfg, err = cfg.ForStream(name); err != nil {
					return err
				}
			}
			return ofEachStream(cmd, cfg, func(f *operator.Fleet) (*operator.Held, error) {
				return held(cfg, f)(do(f, cmd.Context(), which, reason))
			}, printHeld)
		},
	}
	cmd.Flags().IntVar(&shard, "shard", -1, "one shard instead of the fleet")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit and for those who see it")
	return cmd
}

func newDrainCommand() *cobra.Command {
	return drainCommand("drain", "Take the shards of an instance and keep them away",
		`The instance releases its shards as in a hand-over and gets none until processor undrain,
also after a restart, of all streams, or the one that --stream names. The last one that may
own shards is refused.`, (*operator.Fleet).Drain, operator.CheckDrain)
}

func newUndrainCommand() *cobra.Command {
	return drainCommand("undrain", "Let an instance own shards again", `Ends processor drain.`, (*operator.Fleet).Undrain, nil)
}

// held returns an outcome that names its stream, if there are several.
func held(cfg config.Config, f *operator.Fleet) func(h operator.Held, err error) (*operator.Held, error) {
	return func(h operator.Held, err error) (*operator.Held, error) {
		if err != nil {
			return nil, err
		}
		if len(cfg.Redis.Streams()) > 1 {
			h.Stream = f.Stream()
		}
		return &h, nil
	}
}

func drainCommand(verb, short, long string, do func(f *operator.Fleet, ctx context.Context, instance, reason string) (operator.Held, error), check func(ctx context.Context, fleets []*operator.Fleet, instance string) error) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: verb + " INSTANCE", Short: short, Long: long,
		Example: "  processor " + verb + " pod-3\n  processor " + verb + " pod-3 --reason 'its node is replaced'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fleets, err := openFleets(cmd)
			if err != nil {
				return err
			}
			for _, f := range fleets {
				defer f.Close()
			}
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			if len(fleets) > 1 && check != nil {
				if err := check(cmd.Context(), fleets, args[0]); err != nil {
					return err
				}
				do = (*operator.Fleet).DrainOf
			}
			return ofEachStream(cmd, cfg, func(f *operator.Fleet) (*operator.Held, error) {
				return held(cfg, f)(do(f, cmd.Context(), args[0], reason))
			}, printHeld)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit and for those who see it")
	return cmd
}

func printHeld(out *cli.Output, h *operator.Held) error {
	if !h.Changed {
		if err := out.Line("it was so before"); err != nil {
			return err
		}
	}
	if len(h.Holds) == 0 {
		return out.Line("nothing is held back")
	}
	for _, x := range h.Holds {
		if err := out.Line("%s", operator.HoldText(x)); err != nil {
			return err
		}
	}
	return nil
}

func newReplayCommand() *cobra.Command {
	var o operator.Replay
	var since, until string
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Read again what the stream still holds",
		Long: `Puts entries that were dispatched and that the stream still holds on the queues of
their shards again. Their owners add what is missing and change nothing else. It pauses
while many entries are pending. Recorded in processor.audit.`,
		Example: `  processor replay --since 2h --dry-run
  processor replay --since 2026-08-01T10:00:00Z --until 2026-08-01T10:30:00Z
  processor replay --since 24h --device 356307042441013`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Since, err = moment(since); err == nil {
				o.Until, err = moment(until)
			}
			if err != nil {
				return usageError(cmd, err)
			}
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			last := time.Now()
			o.Progress = func(done int, upTo time.Time) {
				if time.Since(last) > 2*time.Second {
					last = time.Now()
					say(cmd.ErrOrStderr(), "%s so far, up to %s", cli.Count(done, "entry"), upTo.UTC().Format(time.RFC3339))
				}
			}
			r, err := f.ReplayEntries(cmd.Context(), o)
			if err != nil && r.Entries == 0 {
				return err
			}
			if shown := printed(cmd, r, printReplayed); shown != nil {
				return shown
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "stream time of the first: 2026-08-01T10:00:00Z, or 2h for the last two hours")
	f.StringVar(&until, "until", "", "stream time of the last: as --since; now by default")
	f.StringVar(&o.Device, "device", "", "only entries of this device")
	f.BoolVar(&o.DryRun, "dry-run", false, "only count them")
	f.Int64Var(&o.PauseAt, "pause-at", 0, "pause while so many entries are pending (default 50,000)")
	_ = cmd.MarkFlagRequired("since") // the flag is there
	return cmd
}

func printReplayed(out *cli.Output, r operator.Replayed) error {
	verb := "put on their queues again"
	if r.DryRun {
		verb = "would be read again"
	}
	text := []string{cli.Count(r.Entries, "entry") + " of " + cli.Count(r.Devices, "device"), verb}
	if r.First != nil {
		text = append(text, "from", *r.First, "to", *r.Last)
	}
	if err := out.Line("%s", strings.Join(text, " ")); err != nil || !r.Incomplete {
		return err
	}
	return out.Line("%s: the stream was trimmed, its oldest entry is of %s", out.Paint(cli.Yellow, "incomplete"), r.OldestKept.UTC().Format(time.RFC3339))
}
