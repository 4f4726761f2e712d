package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// asking holds the flags of all requests.
type asking struct {
	reason  string
	noWait  bool
	timeout time.Duration
}

func (a *asking) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&a.reason, "reason", "", "reason, for the audit")
	cmd.Flags().BoolVar(&a.noWait, "no-wait", false, "do not wait for the result")
	cmd.Flags().DurationVar(&a.timeout, "timeout", time.Minute, "maximum wait for the result; the request continues")
	return cmd
}

func newDeviceRehydrateCommand() *cobra.Command {
	var a asking
	return a.flags(&cobra.Command{
		Use:   "rehydrate IMEI",
		Short: "Reload the state of a device from the tables",
		Long: `Makes the owner of the device's shard reload the device's state from the tables.
Prints the state before and after. No table changes. Exits 1 for an unknown device.`,
		Example: `  processor device rehydrate 356307042441013
  processor device rehydrate 356307042441013 --reason "row marked as faulty" --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd, operator.Request{Kind: protocol.RequestRehydrate, Device: args[0]})
		},
	})
}

func newDeviceRecomputeCommand() *cobra.Command {
	var a asking
	var from, to string
	cmd := a.flags(&cobra.Command{
		Use:   "recompute IMEI",
		Short: "Recompute the crossings of a device",
		Long: `Makes the owner of the device's shard recompute the crossings in a window of device
time from the stored positions. Correct crossings stay as they are. Without --from
or --to the window is open at that end. Exits 1 for an unknown device.`,
		Example: `  processor device recompute 356307042441013
  processor device recompute 356307042441013 --from 2026-05-01T00:00:00Z --to 2026-05-02T00:00:00Z`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			begin, end, err := windowFlags(from, to)
			if err != nil {
				return err
			}
			return a.ask(cmd, operator.Request{Kind: protocol.RequestRecompute, Device: args[0], From: begin, To: end})
		},
	})
	cmd.Flags().StringVar(&from, "from", "", "start of the window of device time, like 2026-05-01T00:00:00Z")
	cmd.Flags().StringVar(&to, "to", "", "end of the window")
	return cmd
}

func newDeviceFaultyCommand() *cobra.Command {
	var a asking
	var m store.Mark
	var from, to string
	cmd := a.flags(&cobra.Command{
		Use:   "faulty IMEI",
		Short: "Flag wrong positions of a device",
		Long: `Flags the positions of a span of device time as faulty: they stay, and nothing
evaluates them any more. The owner of the device's shard recomputes the crossings and
reloads the state. --take-back ends that. At most 100,000 positions at once. Needs the
right to update positions.faulty. Exits 1 for an unknown device.`,
		Example: `  processor device faulty IMEI --from 2026-05-01T10:00:00Z --to 2026-05-01T10:20:00Z --dry-run
  processor device faulty IMEI --from 2026-05-01T10:00:00Z --to 2026-05-01T10:20:00Z --reason jammed`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			begin, end, err := windowFlags(from, to)
			if err != nil {
				return err
			}
			if begin != nil {
				m.From = *begin
			}
			if end != nil {
				m.To = *end
			}
			m.Device, m.Reason = args[0], a.reason
			return a.mark(cmd, m)
		},
	})
	cmd.Flags().StringVar(&from, "from", "", "device time of the first, like 2026-05-01T00:00:00Z")
	cmd.Flags().StringVar(&to, "to", "", "device time of the last")
	cmd.Flags().BoolVar(&m.DryRun, "dry-run", false, "only count them")
	cmd.Flags().BoolVar(&m.TakeBack, "take-back", false, "they are faulty no more")
	return cmd
}

// windowFlags reads --from and --to; nil is an end that was not given.
func windowFlags(from, to string) (begin, end *time.Time, err error) {
	if begin, err = instantFlag("from", from); err == nil {
		end, err = instantFlag("to", to)
	}
	if err != nil {
		return nil, nil, fault.Exit(fault.Config, err)
	}
	return begin, end, nil
}

// mark flags positions, waits for the recompute and prints both.
func (a *asking) mark(cmd *cobra.Command, m store.Mark) error {
	f, err := openFleet(cmd)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	defer cancel()
	out, err := f.Mark(ctx, m)
	if err != nil {
		return err
	}
	if out.Request != nil && !a.noWait {
		status, err := f.Await(ctx, out.Request.ID)
		if err != nil && !errors.Is(err, operator.ErrNotDone) {
			return err
		}
		out.Request = &status
	}
	if err := printed(cmd, &out, printMarked); err != nil {
		return err
	}
	if out.Request != nil {
		return a.over(m.Device, *out.Request)
	}
	return nil
}

func printMarked(out *cli.Output, m *store.Marked) error {
	if err := out.Line("%s", operator.MarkedText(*m)); err != nil || m.Request == nil {
		return err
	}
	return printRequest(out, m.Request)
}

// over returns why a request that was waited for is not done.
func (a *asking) over(device string, status store.RequestStatus) error {
	if !a.noWait && !status.Over() {
		return fmt.Errorf("request %d is not done after %v and continues; see processor device show %s", status.ID, a.timeout, device)
	}
	return operator.CheckDone(status)
}

func instantFlag(name, text string) (*time.Time, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // an open end
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return nil, fmt.Errorf("--%s %q: want a time like 2026-05-01T00:00:00Z", name, text)
	}
	t = t.UTC().Truncate(time.Microsecond)
	return &t, nil
}

func newDeviceEraseCommand() *cobra.Command {
	var a asking
	var yes bool
	cmd := a.flags(&cobra.Command{
		Use:   "erase IMEI",
		Short: "Erase all stored data of a device",
		Long: `Removes positions, timing records, deferred entries and dead letters of a device from
Postgres, and its positions from the results of requests to reload it. Entries still in
Redis, in the stream or as dead letters, are not removed: stop the device first, or erase
it again later. This is irreversible, so it needs --yes. Exits 1 for an unknown device.`,
		Example: `  processor device erase 356307042441013 --yes --reason "request 4711 of the owner"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return fault.Exit(fault.Config, fmt.Errorf("this removes everything stored of device %s and cannot be reversed; confirm with --yes", args[0]))
			}
			return a.ask(cmd, operator.Request{Kind: protocol.RequestErase, Device: args[0]})
		},
	})
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm the removal")
	return cmd
}

// ask makes a request, waits for its end and prints the result.
func (a *asking) ask(cmd *cobra.Command, r operator.Request) error {
	f, err := openFleet(cmd)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	defer cancel()
	r.Reason = a.reason
	status, err := f.Ask(ctx, r)
	if err != nil {
		return err
	}
	if !a.noWait {
		if status, err = f.Await(ctx, status.ID); err != nil && !errors.Is(err, operator.ErrNotDone) {
			return err
		}
	}
	if printErr := printed(cmd, &status, printRequest); printErr != nil {
		return printErr
	}
	if r.Kind == protocol.RequestErase && status.State == "done" && status.Progress.Removed == 0 {
		return fault.Exitf(fault.Finding, "unknown device %s: nothing was stored of it; check the ID", r.Device)
	}
	return a.over(r.Device, status)
}

func printRequest(out *cli.Output, r *store.RequestStatus) error {
	t := cli.NewTable("WHAT", "VALUE")
	t.Row("request", fmt.Sprint(r.ID))
	t.Row("kind", r.Kind)
	state := any(r.State)
	switch r.State {
	case "done":
		state = cli.Colored(r.State, cli.Green)
	case "failed":
		state = cli.Colored(r.State, cli.Red)
	}
	t.Row("state", state)
	t.Row("shard", fmt.Sprint(r.Shard))
	if r.RunBy != nil {
		t.Row("run by", *r.RunBy)
	}
	var result map[string]json.RawMessage
	if len(r.Result) > 0 && json.Unmarshal(r.Result, &result) == nil {
		for _, name := range []string{"error", "before", "after", "devices", "fixes", "added", "changed", "removed"} {
			if v, ok := result[name]; ok {
				rowsOf(t, name, v)
			}
		}
	}
	return out.Table(t)
}

// rowsOf adds a row; for the state of a device, one row per member.
func rowsOf(t *cli.Table, name string, v json.RawMessage) {
	var parts map[string]json.RawMessage
	if json.Unmarshal(v, &parts) != nil || len(parts) == 0 {
		t.Row(name, string(v))
		return
	}
	for _, part := range slices.Sorted(maps.Keys(parts)) {
		t.Row(name+" "+part, string(parts[part]))
	}
}
