package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
)

func newGeofenceCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "geofence",
		Short: "Import, list and check fences",
		Example: `  processor geofence check fences.geojson
  processor geofence import fences.geojson
  processor geofence list`,
	}, newGeofenceImportCommand(), newGeofenceListCommand(), newGeofenceCheckCommand())
}

// maxFenceFile bounds the size of a file.
const maxFenceFile = 1 << 30

// readFences reads a GeoJSON file, or standard input for "-". The second result
// reports invalid features.
func readFences(cmd *cobra.Command, name string) ([]geofence.Fence, []*geofence.FenceError, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, nil, fmt.Errorf("read fences: %w", err)
		}
		defer func() { _ = f.Close() }() // only reads
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxFenceFile))
	if err != nil {
		return nil, nil, fmt.Errorf("read fences: %w", err)
	}
	fences, bad, err := geofence.ParseFeatures(text)
	if err != nil {
		return nil, nil, fmt.Errorf("read fences from %s: %w", name, err)
	}
	// Fences that are valid alone may still conflict with each other.
	_, clash := geofence.NewSet(fences)
	drop := make(map[int]bool)
	for _, c := range clash {
		drop[c.Index] = true
		bad = append(bad, c)
	}
	good := fences[:0:0]
	for i, f := range fences {
		if !drop[i] {
			good = append(good, f)
		}
	}
	return good, bad, nil
}

// fencesImported is the output of geofence import and check.
type fencesImported struct {
	File    string     `json:"file"`
	Good    int        `json:"good"`
	Added   int        `json:"added"`
	Closed  int        `json:"closed"`
	Same    int        `json:"same"`
	From    *time.Time `json:"recompute_from"` // null is open, or nothing to do
	To      *time.Time `json:"recompute_to"`
	Skipped []string   `json:"skipped"`
}

func (r *fencesImported) print(out *cli.Output, imported bool) error {
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
	cmd := &cobra.Command{
		Use:   "import FILE.geojson",
		Short: "Import fences from a GeoJSON file",
		Long: `Reads a FeatureCollection, or a single Feature, and activates its fences for their
spans of device time. Polygon and MultiPolygon are areas, a Point with radius_m is a
circle, a LineString a gate that is passed forward from its left to its right.
Properties: id, name, radius_m, valid_from, valid_to (RFC 3339), enabled, kind.

A fence that differs from the active one becomes a new version; outside its span the
old version stays. With --replace, fences that are not in the file are closed.
Crossings in the changed spans are recomputed. Invalid features are reported and
skipped; the command then exits 1. The file - is standard input.`,
		Example: `  processor geofence import fences.geojson
  processor geofence import fences.geojson --replace --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fences, bad, err := readFences(cmd, args[0])
			if err != nil {
				return err
			}
			db, err := openFleetDB(cmd.Context())
			if err != nil {
				return err
			}
			defer db.pool.Close()
			r := fencesImported{File: args[0], Good: len(fences), Skipped: []string{}}
			for _, b := range bad {
				r.Skipped = append(r.Skipped, b.Error())
			}
			if replace && len(bad) > 0 {
				for _, text := range r.Skipped {
					fmt.Fprintln(cmd.ErrOrStderr(), "processor: error:", text)
				}
				return errors.New("with --replace every feature must be valid, or fences would be closed; nothing was changed")
			}
			edited, err := store.NewFenceEditor(db.pool, db.scope, db.pins.Shards, db.by).Import(cmd.Context(), fences, "import", replace)
			if err != nil {
				return err
			}
			for _, err := range edited.Refused {
				r.Skipped = append(r.Skipped, err.Error())
				r.Good--
			}
			r.Added, r.Closed, r.Same, r.From, r.To = edited.Added, edited.Closed, edited.Same, edited.From, edited.To
			out := outputOf(cmd)
			if err := out.Result(r, func() error { return r.print(out, true) }); err != nil {
				return err
			}
			if len(r.Skipped) > 0 {
				return exit(exitFinding, nil)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "close imported fences that are not in the file")
	return cmd
}

func newGeofenceCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE.geojson]",
		Short: "Check the fences of a file, or those in the database",
		Long: `Reads fences as import does and reports every invalid one, with the reason. Without
a file it checks the active fences in the database. Changes nothing. Exits 1 if one
is invalid.`,
		Example: `  processor geofence check fences.geojson
  processor geofence check --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := fencesImported{Skipped: []string{}}
			if len(args) == 1 {
				fences, bad, err := readFences(cmd, args[0])
				if err != nil {
					return err
				}
				r.File, r.Good = args[0], len(fences)
				for _, b := range bad {
					r.Skipped = append(r.Skipped, b.Error())
				}
			} else {
				db, err := openFleetDB(cmd.Context())
				if err != nil {
					return err
				}
				defer db.pool.Close()
				set, bad, err := store.NewFences(db.pool, askTimeout).Load(cmd.Context())
				if err != nil {
					return err
				}
				r.Good = set.Len()
				for _, b := range bad {
					r.Skipped = append(r.Skipped, b.Error())
				}
			}
			out := outputOf(cmd)
			if err := out.Result(r, func() error { return r.print(out, false) }); err != nil {
				return err
			}
			if len(r.Skipped) > 0 {
				return exit(exitFinding, nil)
			}
			return nil
		},
	}
}

// fencesListed is the output of geofence list.
type fencesListed struct {
	Version    int64         `json:"version"` // of the set
	Fences     []fenceListed `json:"fences"`
	Recomputes store.Backlog `json:"recomputes"`
}

type fenceListed struct {
	ID        string     `json:"id"`
	Version   int        `json:"version"`
	Name      string     `json:"name"`
	Kind      string     `json:"kind"`
	RadiusM   *float64   `json:"radius_m"`
	ValidFrom *time.Time `json:"valid_from"` // null is open
	ValidTo   *time.Time `json:"valid_to"`
	Enabled   bool       `json:"enabled"`
	Problem   *string    `json:"problem"` // why it is skipped; null if it is active
}

func newGeofenceListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List active fences and recompute progress",
		Example: `  processor geofence list
  processor geofence list --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			db, err := openFleetDB(cmd.Context())
			if err != nil {
				return err
			}
			defer db.pool.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			version, rows, err := store.NewFences(db.pool, askTimeout).Rows(ctx)
			if err != nil {
				return err
			}
			l := fencesListed{Version: version, Fences: []fenceListed{}}
			if l.Recomputes, err = db.devices().Recomputes(ctx); err != nil {
				return err
			}
			for i := range rows {
				l.Fences = append(l.Fences, listed(&rows[i]))
			}
			out := outputOf(cmd)
			return out.Result(l, func() error { return l.print(out) })
		},
	}
}

func listed(v *store.FenceVersion) fenceListed {
	f := fenceListed{ID: v.ID, Version: v.Version, Name: v.Name, Kind: string(v.Kind), Enabled: v.Enabled}
	if v.Kind == geofence.Circle {
		f.RadiusM = &v.RadiusM
	}
	if v.Valid.FromUS != math.MinInt64 {
		t := time.UnixMicro(v.Valid.FromUS).UTC()
		f.ValidFrom = &t
	}
	if v.Valid.ToUS != math.MaxInt64 {
		t := time.UnixMicro(v.Valid.ToUS).UTC()
		f.ValidTo = &t
	}
	if err := v.Check(); err != nil {
		text := err.Error()
		f.Problem = &text
	}
	return f
}

func (l *fencesListed) print(out *cli.Output) error {
	t := cli.NewTable("ID", "VERSION", "KIND", "NAME", "FROM", "TO", "STATE")
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
		t.Row(f.ID, f.Version, f.Kind, f.Name, from, to, state)
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
