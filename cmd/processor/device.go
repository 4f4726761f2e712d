package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

func newDeviceCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "device",
		Short: "Inspect and repair one device",
		Long: `Shows and checks what is stored of one device, and asks the owner of its shard to
reload its state, recompute its crossings or erase it. Requests are audited rows of
processor.requests; they wait while the shard has no owner.`,
		Example: `  processor device show 356307042441013
  processor device verify 356307042441013
  processor device rehydrate 356307042441013`,
	}, newDeviceListCommand(), newDeviceShowCommand(), newDeviceVerifyCommand(), newDeviceExplainCommand(), newDeviceRehydrateCommand(), newDeviceRecomputeCommand(), newDeviceFaultyCommand(), newDeviceEraseCommand())
}

func newDeviceShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show IMEI",
		Short: "Show the stored data and the owner of a device",
		Long: `Shows what is stored of a device, what of it waits in Redis, and the owner of its
shard. Exits 1 for an unknown device.`,
		Example: `  processor device show 356307042441013
  processor device show 356307042441013 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			d, err := f.Device(cmd.Context(), args[0])
			if d.Unanswered != nil {
				say(cmd.ErrOrStderr(), "processor: warning: pending entries are unknown: %v", d.Unanswered)
			}
			if err != nil && d.Device.Device == "" {
				return err
			}
			show := printDevice
			if err != nil { // nothing is known of it
				show = func(*cli.Output, *operator.Device) error { return nil }
			}
			return errors.Join(printed(cmd, &d, show), err)
		},
	}
}

// counted returns a count as far as it is known.
func counted(d *operator.Device, n *int64) any {
	if n != nil && d.AtLeast {
		return cli.Number(*n).String() + " or more"
	}
	return cli.OrUnknown(n)
}

func printDevice(out *cli.Output, d *operator.Device) error {
	t := cli.NewTable("WHAT", "VALUE")
	t.Row("device", d.Device.Device)
	t.Row("shard", fmt.Sprint(d.Shard))
	owner := any(cli.Colored("nobody", cli.Yellow))
	if d.Owner != nil {
		owner = *d.Owner
	}
	t.Row("owner", owner)
	t.Row("epoch", fmt.Sprint(d.Epoch))
	if d.Last == nil {
		t.Row("last position", "none eligible")
	} else {
		t.Row("last position", fmt.Sprintf("%s at %v, %v", clock(d.Last.Time), d.Last.Latitude, d.Last.Longitude))
	}
	for _, f := range d.Fences {
		t.Row("fence "+f.Fence, fmt.Sprintf("%s at %s", f.Kind, clock(f.At)))
	}
	t.Row("not dispatched yet", counted(d, d.Undispatched))
	t.Row("pending", counted(d, d.Pending))
	t.Row("deferred", cli.Number(d.Deferred))
	t.Row("dead letters", cli.OrUnknown(d.DeadLetters))
	t.Row("dead letters archived", cli.Number(d.Archived))
	t.Row("conflicts", cli.Number(d.Conflicts))
	if err := out.Table(t); err != nil {
		return err
	}
	if len(d.Recent) > 0 {
		t := cli.NewTable("DEVICE TIME", "STREAM TIME", "LATITUDE", "LONGITUDE", "SPEED", "REMARK")
		for _, p := range d.Recent {
			remark := ""
			switch {
			case p.Faulty:
				remark = "faulty"
			case p.Excluded != telemetry.Eligible:
				remark = strings.ReplaceAll(string(p.Excluded), "_", " ")
			}
			if p.Conflict {
				remark = strings.TrimPrefix(remark+", conflict", ", ")
			}
			t.Row(clock(p.Time), clock(p.Ingested), p.Latitude, p.Longitude, p.Speed, remark)
		}
		if err := errors.Join(out.Line(""), out.Table(t)); err != nil {
			return err
		}
	}
	if len(d.Requests) > 0 {
		t := cli.NewTable("REQUEST", "KIND", "STATE", "ASKED", "BY")
		for _, r := range d.Requests {
			t.Row(r.ID, r.Kind, r.State, clock(r.At), r.By)
		}
		return errors.Join(out.Line(""), out.Table(t))
	}
	return nil
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func newDeviceVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify IMEI",
		Short: "Recompute a device's crossings and print differences",
		Long: `Recomputes the crossings of a device from its stored positions and the current
fences, and compares them with the recorded ones. Changes nothing. Exits 1 if they
differ; processor device recompute fixes that. If they still differ then, it is a fault
of the service: verify shares no code with what records crossings, please report it.

The positions are not checked: they may be wrong or incomplete. Without fences there
is nothing to verify. A fence that cannot be verified is named, and nothing recorded of
it is compared. At most 10 million positions are verified at once. Also exits 1 for an
unknown device.`,
		Example: `  processor device verify 356307042441013
  processor device verify 356307042441013 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			v, err := f.Verify(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return verified(outputOf(cmd), &v)
		},
	}
}

// verified prints a verification, and exits 1 if it found something or is partial.
func verified(out *cli.Output, v *store.Verification) error {
	err := out.Result(v, func() error { return printVerification(out, v) })
	if err == nil && (!v.Good() || len(v.Skipped) > 0) {
		err = fault.Exit(fault.Finding, nil)
	}
	return err
}

func printVerification(out *cli.Output, v *store.Verification) error {
	for _, f := range v.BadFences {
		if err := out.Line("%s %s", out.Paint(cli.Yellow, "skipped"), f); err != nil {
			return err
		}
	}
	for _, f := range v.Skipped {
		if err := out.Line("%s %s: not verified, %s recorded of this fence not compared", out.Paint(cli.Yellow, "skipped"), f.Reason, cli.Count(f.Recorded, "crossing")); err != nil {
			return err
		}
	}
	if !v.Good() {
		t := cli.NewTable("DIFFERENCE", "FENCE", "KIND", "LATER FIX", "ORDINAL", "EXPECTED", "ACTUAL")
		for _, kind := range []struct {
			name string
			list []store.Difference
		}{{"missing", v.Missing}, {"different", v.Different}, {"unexpected", v.Extra}} {
			for _, d := range kind.list {
				t.Row(cli.Colored(kind.name, cli.Red), d.Fence, d.Kind, clock(d.Later), d.Ordinal, orNone(d.Want), orNone(d.Got))
			}
		}
		if err := out.Table(t); err != nil {
			return err
		}
	}
	if v.Open > 0 {
		if err := out.Line("%s: %s that concern this device, not run yet", out.Paint(cli.Yellow, "note"), cli.Count(v.Open, "recompute request")); err != nil {
			return err
		}
	}
	state := out.Paint(cli.Green, "ok")
	switch {
	case !v.Good():
		state = out.Paint(cli.Red, "differs")
	case len(v.Skipped) > 0:
		state = out.Paint(cli.Yellow, "partial")
	}
	if v.Fences == 0 && v.Good() {
		return out.Line("no fences: nothing to verify; the stored positions (%s) are not checked", cli.Number(v.Positions))
	}
	if err := out.Line("%s: %s, %s correct, %d missing, %d different, %d unexpected",
		state, cli.Count(v.Positions, "position"), cli.Count(v.Crossings, "crossing"), len(v.Missing), len(v.Different), len(v.Extra)); err != nil {
		return err
	}
	return out.Line("positions are not checked")
}

func orNone(t *time.Time) string {
	if t == nil {
		return "none"
	}
	return clock(*t)
}
