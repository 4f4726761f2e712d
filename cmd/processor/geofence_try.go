package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
)

func newGeofenceTryCommand() *cobra.Command {
	var d geofence.Defaults
	var since, until, device string
	cmd := &cobra.Command{
		Use:   "try FILE",
		Short: "Show what fences would have recorded",
		Long: `Derives the crossings of the fences of a file over the stored positions of a window of
device time, and compares them with what is recorded of fences with their IDs, as an
import without --replace would leave them. Changes nothing. Without --until the window
ends now. Progress is written to standard error. Exits 1 if a feature is invalid.`,
		Example: `  processor geofence try fences.geojson --since 2026-05-01T00:00:00Z
  processor geofence try route.gpx --width 40 --since 2026-05-01T00:00:00Z --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := trialWindow(since, until, device)
			if err != nil {
				return fault.Exit(fault.Config, err)
			}
			in, err := openFences(cmd, args[0])
			if err != nil {
				return err
			}
			defer in.Close() //nolint:errcheck // only reads
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := f.TryFences(cmd.Context(), in, args[0], d, w, func(positions int64, at time.Time) {
				say(cmd.ErrOrStderr(), "%s, at %s", cli.Count(positions, "position"), clock(at))
			})
			if err != nil {
				return err
			}
			if err := printed(cmd, &r, printFenceTrial); err != nil || len(r.Skipped) == 0 {
				return err
			}
			return fault.Exit(fault.Finding, nil)
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "start of the window, like 2026-05-01T00:00:00Z")
	cmd.Flags().StringVar(&until, "until", "", "end of the window, not included; now without it")
	cmd.Flags().StringVar(&device, "device", "", "this device only")
	addDefaults(cmd, &d)
	_ = cmd.MarkFlagRequired("since")
	return cmd
}

func trialWindow(since, until, device string) (store.TrialWindow, error) {
	w := store.TrialWindow{Until: time.Now().UTC(), Device: device}
	from, err := instantFlag("since", since)
	if err != nil {
		return w, err
	}
	to, err := instantFlag("until", until)
	if err != nil {
		return w, err
	}
	if from != nil {
		w.Since = *from
	}
	if to != nil {
		w.Until = *to
	}
	return w, w.Check()
}

func printFenceTrial(out *cli.Output, r *operator.FenceTrial) error {
	for _, text := range r.Skipped {
		if err := out.Line("%s %s", out.Paint(cli.Red, "skipped"), text); err != nil {
			return err
		}
	}
	if err := out.Line("%s of %s: %s recorded, %s by these fences: %s added, %s removed, %s changed",
		cli.Count(r.Positions, "position"), cli.Count(int64(r.Devices), "device"), cli.Number(r.Recorded), cli.Number(r.Would),
		cli.Number(r.Added), cli.Number(r.Removed), cli.Number(r.Changed)); err != nil {
		return err
	}
	if r.Kept > 0 {
		if err := out.Line("%s stay whatever the fences are: a position is not stored any more, or positions outside of the window decide", cli.Count(r.Kept, "recorded crossing")); err != nil {
			return err
		}
	}
	if len(r.Fences) == 0 {
		return nil
	}
	t := cli.NewTable("FENCE", "RECORDED", "WOULD", "ADDED", "REMOVED", "CHANGED")
	for _, f := range r.Fences {
		t.Row(f.Fence, f.Recorded, f.Would, f.Added, f.Removed, f.Changed)
	}
	if err := out.Table(t); err != nil {
		return err
	}
	t = cli.NewTable("DEVICE", "FENCE", "KIND", "LATER FIX", "RECORDED", "WOULD")
	at := func(v *time.Time) string {
		if v == nil {
			return "-"
		}
		return clock(*v)
	}
	for _, e := range r.Examples {
		t.Row(e.Device, e.Fence, e.Kind, clock(e.Later), at(e.Got), at(e.Want))
	}
	return out.Table(t)
}
