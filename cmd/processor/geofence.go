package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/operator"
)

func newGeofenceCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "geofence",
		Short: "Import, export, list and check fences",
		Example: `  processor geofence check fences.geojson
  processor geofence import fences.geojson
  processor geofence list`,
	}, newGeofenceImportCommand(), newGeofenceListCommand(), newGeofenceCheckCommand(), newGeofenceExportCommand(), newGeofenceTryCommand(), newGeofenceConfirmCommand())
}

// openFences opens a file, or standard input for "-".
func openFences(cmd *cobra.Command, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read fences: %w", err)
	}
	return f, nil
}

// fencesResult prints an import or a check, and exits 1 if a fence is invalid.
func fencesResult(cmd *cobra.Command, r *operator.FenceImport, imported bool) error {
	err := printed(cmd, r, func(out *cli.Output, r *operator.FenceImport) error { return printFenceImport(out, r, imported) })
	if err == nil && len(r.Skipped) > 0 {
		err = fault.Exit(fault.Finding, nil)
	}
	return err
}

func printFenceImport(out *cli.Output, r *operator.FenceImport, imported bool) error {
	for _, text := range r.Skipped {
		if err := out.Line("%s %s", out.Paint(cli.Red, "skipped"), text); err != nil {
			return err
		}
	}
	if !imported {
		return out.Line("%d fences are valid, %d are not", r.Good, len(r.Skipped))
	}
	if err := out.Line("%d fences: %d versions added, %d closed, %d unchanged, %d skipped", r.Good, r.Added, r.Closed, r.Same, len(r.Skipped)); err != nil {
		return err
	}
	if r.Added+r.Closed == 0 {
		return nil
	}
	end := func(t *time.Time, open string) string {
		if t == nil {
			return open
		}
		return clock(*t)
	}
	return out.Line("crossings from %s to %s are recomputed; processor geofence list shows the progress", end(r.From, "the beginning"), end(r.To, "the end"))
}

func newGeofenceImportCommand() *cobra.Command {
	var replace bool
	var maxRemovals, allowed int
	var d geofence.Defaults
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import fences from GeoJSON, KML, GPX or WKT",
		Long: `Reads a FeatureCollection, or a single Feature, and activates its fences for their
spans of device time. Polygon and MultiPolygon are areas, a Point with radius_m is a
circle, a LineString with width_m a corridor, one of kind gate a gate that is passed
forward from its left to its right.
Properties: id, name, radius_m, width_m, valid_from, valid_to (RFC 3339), enabled, kind,
and, for borders that hold still, exit_margin_m and min_dwell_s of areas and circles
(to leave, be further away than this; to enter or leave, stay this long) and
min_interval_s of gates (sooner passages in one direction are marked as suppressed).

KML: a placemark has the properties of its extended data; its ID is the one there,
else its attribute, else its name behind those of its folders. GPX: tracks and routes
are corridors of --width, waypoints circles of --radius. WKT: geometries, or a table
(CSV) with a column of it; other columns are properties.

A fence that differs from the active one becomes a new version; outside its span the
old version stays. With --replace, fences that are not in the file are closed; more
than --max-removals of them need --allow-removals.
Crossings in the changed spans are recomputed. Invalid features are reported and
skipped; the command then exits 1. The file - is standard input.`,
		Example: `  processor geofence import fences.geojson
  processor geofence import fences.geojson --replace --json
  processor geofence import route.gpx --width 40 --radius 100`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
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
			limit := maxRemovals
			if cmd.Flags().Changed("allow-removals") {
				limit = allowed
			}
			r, err := f.ImportFences(cmd.Context(), in, args[0], d, replace, limit)
			if errors.Is(err, operator.ErrNotReplaced) {
				for _, text := range r.Skipped {
					say(cmd.ErrOrStderr(), "processor: error: %s", text)
				}
			}
			if err != nil {
				return err
			}
			return fencesResult(cmd, &r, true)
		},
	}
	addDefaults(cmd, &d)
	cmd.Flags().BoolVar(&replace, "replace", false, "close imported fences that are not in the file")
	cmd.Flags().IntVar(&maxRemovals, "max-removals", -1, "limit of --replace; -1 is a tenth, at least 5")
	cmd.Flags().IntVar(&allowed, "allow-removals", 0, "remove up to this many fences all the same")
	return cmd
}

// addDefaults adds the flags for points and lines of a file that have no size.
func addDefaults(cmd *cobra.Command, d *geofence.Defaults) {
	cmd.Flags().Float64Var(&d.WidthM, "width", 0, "metres of lines that have no width and are no gates")
	cmd.Flags().Float64Var(&d.RadiusM, "radius", 0, "metres of points that have no radius")
}

func newGeofenceConfirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm COUNT",
		Short: "Let GEOFENCE_QUERY leave only COUNT fences",
		Long: `A query that suddenly yields none of the fences, or less than half, changes nothing
and opens an incident. If the platform means it, confirm the number of fences that
the incident names; the next poll then applies the change. It holds once.`,
		Example: `  processor geofence confirm 12
  processor geofence confirm 0 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			count, err := strconv.ParseUint(args[0], 10, 31)
			if err != nil {
				return fmt.Errorf("%q is not a number of fences: give the one that the incident names", args[0])
			}
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.ConfirmFences(cmd.Context(), int(count)); err != nil {
				return err
			}
			r := struct {
				Confirmed uint64 `json:"confirmed"`
			}{count}
			return printed(cmd, &r, func(out *cli.Output, _ *struct {
				Confirmed uint64 `json:"confirmed"`
			},
			) error {
				return out.Line("confirmed: the query may leave %d fences; the next poll applies it", count)
			})
		},
	}
}

func newGeofenceCheckCommand() *cobra.Command {
	var d geofence.Defaults
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check the fences of a file, or those in the database",
		Long: `Reads fences as import does and reports every invalid one, with the reason. Without
a file it checks the active fences in the database. Changes nothing. Exits 1 if one
is invalid.`,
		Example: `  processor geofence check fences.geojson
  processor geofence check --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				in, err := openFences(cmd, args[0])
				if err != nil {
					return err
				}
				defer in.Close() //nolint:errcheck // only reads
				r, err := operator.CheckFences(in, args[0], d)
				if err != nil {
					return err
				}
				return fencesResult(cmd, &r, false)
			}
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := f.CheckStoredFences(cmd.Context())
			if err != nil {
				return err
			}
			return fencesResult(cmd, &r, false)
		},
	}
	addDefaults(cmd, &d)
	return cmd
}

func newGeofenceExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Write the active fences as GeoJSON",
		Long: `Writes all active fences, with all their versions, as a FeatureCollection. Importing it
again changes nothing; importing it elsewhere makes the same fences.`,
		Example: `  processor geofence export > fences.geojson
  processor geofence export --json | jq '.features[].properties.id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.ExportFences(cmd.Context(), cmd.OutOrStdout())
		},
	}
}

func newGeofenceListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List active fences and recompute progress",
		Example: `  processor geofence list
  processor geofence list --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			l, err := f.Fences(cmd.Context())
			if err != nil {
				return err
			}
			return printed(cmd, &l, printFences)
		},
	}
}

func printFences(out *cli.Output, l *operator.Fences) error {
	t := cli.NewTable("ID", "VERSION", "KIND", "NAME", "BORDER", "FROM", "TO", "STATE")
	for _, f := range l.Fences {
		state := any("active")
		switch {
		case f.Problem != nil:
			state = cli.Colored("skipped: "+*f.Problem, cli.Red)
		case !f.Enabled:
			state = "off"
		}
		from, to := "-", "-"
		if f.ValidFrom != nil {
			from = clock(*f.ValidFrom)
		}
		if f.ValidTo != nil {
			to = clock(*f.ValidTo)
		}
		t.Row(f.ID, f.Version, f.Kind, f.Name, cmp.Or(f.Border(), "-"), from, to, state)
	}
	show := func() error { return out.Table(t) }
	if len(l.Fences) == 0 {
		show = func() error { return out.Line("no fences; see processor geofence import --help") }
	}
	if err := show(); err != nil {
		return err
	}
	if l.Recomputes.Open == 0 {
		return nil
	}
	return out.Line("\nopen recomputes: %s (%s running), %s and %s so far",
		cli.Number(l.Recomputes.Open), cli.Number(l.Recomputes.Running), cli.Count(l.Recomputes.Devices, "device"), cli.Count(l.Recomputes.Fixes, "position"))
}
