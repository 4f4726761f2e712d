package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/fencefile"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
)

// maxFenceFile bounds the size of a file.
const maxFenceFile = 1 << 30

// FenceImport is the outcome of an import or a check.
type FenceImport struct {
	File    string     `json:"file"`
	Good    int        `json:"good"`
	Added   int        `json:"added"`
	Closed  int        `json:"closed"`
	Same    int        `json:"same"`
	From    *time.Time `json:"recompute_from"` // null is open, or nothing to do
	To      *time.Time `json:"recompute_to"`
	Skipped []string   `json:"skipped"`
}

// readFences reads GeoJSON, KML, GPX or WKT; name is that of the file. The second result reports
// invalid features.
func readFences(in io.Reader, name string, d geofence.Defaults) ([]geofence.Fence, []*geofence.FenceError, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxFenceFile))
	if err != nil {
		return nil, nil, fmt.Errorf("read fences: %w", err)
	}
	if text, err = fencefile.GeoJSON(text, name); err != nil {
		return nil, nil, fmt.Errorf("read fences from %s: %w", name, err)
	}
	fences, bad, err := geofence.ParseFeatures(text, d)
	if err != nil {
		return nil, nil, fmt.Errorf("read fences from %s: %w", name, err)
	}
	// Fences that are valid alone may still conflict with each other.
	_, clash := geofence.NewSet(fences)
	drop := make(map[int]bool)
	numbers := numbersOf(fences, bad)
	for _, c := range clash {
		drop[c.Index] = true
		c.Number = numbers[c.Index]
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

// numbersOf returns the numbers in their file of the fences that were not refused.
func numbersOf(fences []geofence.Fence, refused []*geofence.FenceError) []int {
	numbers := make([]int, 0, len(fences))
	for n := 1; len(numbers) < len(fences); n++ {
		if len(refused) > 0 && refused[0].Number == n {
			refused = refused[1:]
			continue
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// ErrNotReplaced rejects an import that would close fences because features of the
// file are invalid.
var ErrNotReplaced = errors.New("with --replace every feature must be valid, or fences would be closed; nothing was changed")

// ImportFences puts the fences of GeoJSON in force for their spans of device time
// and has crossings in the changed spans recomputed. With replace, imported fences
// that are not in the file are closed, at most as many as allowed (negative: a
// tenth, at least 5). It needs Postgres.
func (f *Fleet) ImportFences(ctx context.Context, in io.Reader, name string, d geofence.Defaults, replace bool, allowed int) (FenceImport, error) {
	r, fences, err := checkFences(in, name, d)
	if err != nil {
		return r, err
	}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return r, err
	}
	if replace && len(r.Skipped) > 0 {
		return r, ErrNotReplaced
	}
	editor := store.NewFenceEditor(f.pool, f.scope, pinned.Shards, f.by)
	var edited store.Edited
	if replace {
		edited, err = editor.Replace(ctx, fences, "import", allowed)
	} else {
		edited, err = editor.Import(ctx, fences, "import", false)
	}
	if tooMany, ok := errors.AsType[*store.RemovalsError](err); ok {
		return r, fmt.Errorf("%w; if that is meant, add --allow-removals %d", tooMany, tooMany.Removed)
	}
	if err != nil {
		return r, f.explained(err)
	}
	for _, err := range edited.Refused {
		r.Skipped = append(r.Skipped, err.Error())
		r.Good--
	}
	r.Added, r.Closed, r.Same, r.From, r.To = edited.Added, edited.Closed, edited.Same, edited.From, edited.To
	return r, nil
}

// ConfirmFences lets GEOFENCE_QUERY leave this many fences, once. It needs
// Postgres.
func (f *Fleet) ConfirmFences(ctx context.Context, fences int) error {
	pinned, err := f.postgres(ctx)
	if err != nil {
		return err
	}
	return f.explained(store.NewFenceEditor(f.pool, f.scope, pinned.Shards, f.by).Confirm(ctx, fences))
}

// CheckFences reports the invalid features of GeoJSON.
func CheckFences(in io.Reader, name string, d geofence.Defaults) (FenceImport, error) {
	r, _, err := checkFences(in, name, d)
	return r, err
}

func checkFences(in io.Reader, name string, d geofence.Defaults) (FenceImport, []geofence.Fence, error) {
	r := FenceImport{File: name, Skipped: []string{}}
	fences, bad, err := readFences(in, name, d)
	r.Good = len(fences)
	for _, b := range bad {
		r.Skipped = append(r.Skipped, b.Error())
	}
	return r, fences, err
}

// CheckStoredFences reports the invalid ones of the fences in force.
func (f *Fleet) CheckStoredFences(ctx context.Context) (FenceImport, error) {
	r := FenceImport{Skipped: []string{}}
	if _, err := f.postgres(ctx); err != nil {
		return r, err
	}
	set, bad, err := store.NewFences(f.pool, askTimeout).Load(ctx)
	if err != nil {
		return r, f.explained(err)
	}
	r.Good = set.Len()
	for _, b := range bad {
		r.Skipped = append(r.Skipped, b.Error())
	}
	return r, nil
}

// Fences is the fences that are in force.
type Fences struct {
	Version    int64         `json:"version"` // of the set
	Fences     []Fence       `json:"fences"`
	Recomputes store.Backlog `json:"recomputes"`
}

// Fence is one of them.
type Fence struct {
	ID      string   `json:"id"`
	Version int      `json:"version"`
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`
	RadiusM *float64 `json:"radius_m"`
	WidthM  *float64 `json:"width_m"`

	ExitMarginM  *float64 `json:"exit_margin_m"` // null is none, as of the next two
	MinDwellS    *float64 `json:"min_dwell_s"`
	MinIntervalS *float64 `json:"min_interval_s"`

	ValidFrom *time.Time `json:"valid_from"` // null is open
	ValidTo   *time.Time `json:"valid_to"`
	Enabled   bool       `json:"enabled"`
	Problem   *string    `json:"problem"` // why it is skipped; null if it is active
}

// Fences lists the fences in force and the progress of recomputes. It needs
// Postgres.
func (f *Fleet) Fences(ctx context.Context) (l Fences, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	l.Fences = []Fence{}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return l, err
	}
	version, rows, err := store.NewFences(f.pool, askTimeout).Rows(ctx)
	if err != nil {
		return l, f.explained(err)
	}
	l.Version = version
	if l.Recomputes, err = f.devices(pinned).Recomputes(ctx); err != nil {
		return l, f.explained(err)
	}
	for i := range rows {
		l.Fences = append(l.Fences, listed(&rows[i]))
	}
	return l, nil
}

// TryFences compares what the fences of a file would have recorded over stored
// positions with what is recorded, and changes nothing. It needs Postgres.
func (f *Fleet) TryFences(ctx context.Context, in io.Reader, name string, d geofence.Defaults, w store.TrialWindow, progress func(int64, time.Time)) (FenceTrial, error) {
	r := FenceTrial{File: name, Skipped: []string{}}
	fences, bad, err := readFences(in, name, d)
	if err != nil {
		return r, err
	}
	for _, b := range bad {
		r.Skipped = append(r.Skipped, b.Error())
	}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return r, err
	}
	r.FenceTrial, err = f.devices(pinned).TryFences(ctx, fences, w, progress)
	return r, f.explained(err)
}

// FenceTrial is the outcome of a trial of the fences of a file.
type FenceTrial struct {
	File    string   `json:"file"`
	Skipped []string `json:"skipped"`
	store.FenceTrial
}

// ExportFences writes the fences in force as GeoJSON, as import reads them. It
// needs Postgres.
func (f *Fleet) ExportFences(ctx context.Context, w io.Writer) error {
	if _, err := f.postgres(ctx); err != nil {
		return err
	}
	_, rows, err := store.NewFences(f.pool, askTimeout).Rows(ctx)
	if err != nil {
		return f.explained(err)
	}
	fences := make([]geofence.Fence, len(rows))
	for i := range rows {
		fences[i] = rows[i].Fence
	}
	return geofence.WriteFeatures(w, fences)
}

// Border says in words what holds the fence's border still; "" is nothing.
func (f *Fence) Border() string { return Border(f.ExitMarginM, f.MinDwellS, f.MinIntervalS) }

// Border says in words what holds the border of a fence still; nil is nothing.
func Border(exitMarginM, minDwellS, minIntervalS *float64) string {
	var list []string
	for _, p := range []struct {
		format string
		value  *float64
	}{{"exit margin %v m", exitMarginM}, {"dwell %v s", minDwellS}, {"interval %v s", minIntervalS}} {
		if p.value != nil {
			list = append(list, fmt.Sprintf(p.format, *p.value))
		}
	}
	return strings.Join(list, ", ")
}

// finite reports whether JSON has a number for it. A row written by SQL may have NaN.
func finite(v float64) bool { return v-v == 0 }

func listed(v *store.FenceVersion) Fence {
	f := Fence{ID: v.ID, Version: v.Version, Name: v.Name, Kind: string(v.Kind), Enabled: v.Enabled}
	if v.Kind == geofence.Circle && finite(v.RadiusM) {
		f.RadiusM = &v.RadiusM
	}
	for of, value := range map[**float64]float64{
		&f.WidthM: v.WidthM, &f.ExitMarginM: v.ExitMarginM, &f.MinDwellS: v.MinDwellS, &f.MinIntervalS: v.MinIntervalS,
	} {
		if value != 0 && finite(value) {
			*of = &value
		}
	}
	if v.Valid.FromUS != math.MinInt64 {
		f.ValidFrom = new(store.Shown(v.Valid.FromUS))
	}
	if v.Valid.ToUS != math.MaxInt64 {
		f.ValidTo = new(store.Shown(v.Valid.ToUS))
	}
	if err := v.Check(); err != nil {
		text := err.Error()
		f.Problem = &text
	}
	return f
}
