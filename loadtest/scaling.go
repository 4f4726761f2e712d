package loadtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/trmtracking/processor/internal/devenv"
)

// CurvesConfig says which curves to measure, and how. Of Bench the program, its
// variables, Entries, Seed, Profile, Dir, Notes and Log count.
type CurvesConfig struct {
	Bench    BenchConfig
	Postgres CurvesPostgres
	Names    []string // of curves; none means those that are measured by default
	Points   []int    // of each curve; none means all
	Full     bool     // the largest points, too
	Rounds   int      // over the points of a curve; medians count
	Out      string   // folder for a CSV and an SVG for each curve; must exist
}

// CurvesPostgres is what a curve needs of Postgres besides its ceilings.
type CurvesPostgres interface {
	BenchPostgres
	// Number is the one number that a query yields.
	Number(ctx context.Context, url, sql string) (float64, error)
}

// ScalingCurve tells how the cost of a record grows with one thing.
type ScalingCurve struct {
	Name   string       `json:"name"`
	About  string       `json:"about"`
	Axis   string       `json:"axis"`
	Load   string       `json:"load_average"` // of the machine, before and after
	Points []CurvePoint `json:"points"`
}

// CurvePoint is one backlog, drained by the service between its first fifth
// and its last tenth. Costs are microseconds of CPU a record.
type CurvePoint struct {
	At       string `json:"at"`
	Devices  int    `json:"devices"`
	Entries  int    `json:"entries"`
	Measured `json:"measured"`
}

// Measured is what a point yields.
type Measured struct {
	Rate       float64 `json:"records_per_s"`
	Service    float64 `json:"service_us"`
	Redis      float64 `json:"redis_us"`
	Postgres   float64 `json:"postgres_us"`
	Total      float64 `json:"total_us"`
	PeakMB     float64 `json:"peak_mb"` // of the largest instance
	PerCommit  float64 `json:"records_per_commit"`
	Crossings  float64 `json:"crossings_per_record"`
	RedisAdd   float64 `json:"redis_append_us"`       // of the publisher, many entries in one round trip
	RedisBytes float64 `json:"redis_bytes_per_entry"` // of memory, before anything is dispatched
	RowBytes   float64 `json:"table_bytes_per_row"`   // without indexes
	IndexBytes float64 `json:"index_bytes_per_row"`
	WALBytes   float64 `json:"wal_bytes_per_record"`
	Copy       float64 `json:"copy_us"` // of Postgres a row of the same rows; 0 where it is not taken
	CopyRate   float64 `json:"copy_rows_per_s"`
	ToBase     float64 `json:"total_to_base"` // to the point that stands for the defaults
	CopyToBase float64 `json:"copy_to_base"`  // likewise
	Relative   float64 `json:"relative"`      // the one to the other
	Load       float64 `json:"load_average"`  // of the machine, at the end of the point
}

// measuredColumns are the names of fields, in their order.
var measuredColumns = []string{
	"records_per_s", "service_us", "redis_us", "postgres_us", "total_us", "peak_mb", "records_per_commit",
	"crossings_per_record", "redis_append_us", "redis_bytes_per_entry", "table_bytes_per_row", "index_bytes_per_row", "wal_bytes_per_record",
	"copy_us", "copy_rows_per_s", "total_to_base", "copy_to_base", "relative", "load_average",
}

func (m *Measured) fields() []*float64 {
	return []*float64{
		&m.Rate, &m.Service, &m.Redis, &m.Postgres, &m.Total, &m.PeakMB, &m.PerCommit,
		&m.Crossings, &m.RedisAdd, &m.RedisBytes, &m.RowBytes, &m.IndexBytes, &m.WALBytes,
		&m.Copy, &m.CopyRate, &m.ToBase, &m.CopyToBase, &m.Relative, &m.Load,
	}
}

// median returns that of each field.
func median(rounds []Measured) (m Measured) {
	into := m.fields()
	for i := range into {
		var all []float64
		for _, r := range rounds {
			all = append(all, *r.fields()[i])
		}
		slices.Sort(all)
		*into[i] = (all[(len(all)-1)/2] + all[len(all)/2]) / 2
	}
	return m
}

// normalize fills in what follows from a point and the base.
func normalize(points []CurvePoint, base int) {
	b := points[base].Measured
	for i := range points {
		m := &points[i].Measured
		m.ToBase = m.Total / b.Total
		if m.Copy > 0 && b.Copy > 0 {
			m.CopyToBase = m.Copy / b.Copy
			m.Relative = m.ToBase / m.CopyToBase
		}
	}
}

// Check returns the problems that no retry can fix. The program to run may still be missing.
func (c CurvesConfig) Check() error {
	if c.Rounds < 1 {
		return fmt.Errorf("rounds %d: want at least 1", c.Rounds)
	}
	check := c.Bench
	check.Rounds, check.Window, check.Devices = 1, benchWindow, 1
	if err := check.Check(); err != nil {
		return err
	}
	plans, err := c.plans()
	for _, p := range plans {
		if _, wrong := c.setups(p); wrong != nil {
			err = errors.Join(err, fmt.Errorf("curve %s: %w", p.name, wrong))
		}
	}
	return err
}

// plans returns the curves asked for, in the order of the list.
func (c CurvesConfig) plans() ([]curvePlan, error) {
	all := curvePlans()
	var names []string
	for _, p := range all {
		names = append(names, p.name)
	}
	for _, n := range c.Names {
		if !slices.Contains(names, n) {
			return nil, fmt.Errorf("curve %q: want one of %s", n, strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(all, func(p curvePlan) bool {
		if len(c.Names) == 0 {
			return !p.usual && !c.Full
		}
		return !slices.Contains(c.Names, p.name)
	}), nil
}

// setups returns the points asked for.
func (c CurvesConfig) setups(p curvePlan) ([]setup, error) {
	all := p.points(c.Bench.Entries, c.Full)
	if len(c.Points) == 0 {
		return all, nil
	}
	var some []setup
	for _, n := range c.Points {
		i := slices.IndexFunc(all, func(s setup) bool { return s.at == grouped(n) })
		if i < 0 {
			return nil, fmt.Errorf("it has no point at %s", grouped(n))
		}
		some = append(some, all[i])
	}
	return some, nil
}

// Curves measures curves one after the other, each on servers of its own, and
// writes each as soon as it is done.
func Curves(ctx context.Context, cfg CurvesConfig) ([]ScalingCurve, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	plans, err := cfg.plans()
	if err != nil {
		return nil, err
	}
	var done []ScalingCurve
	for _, p := range plans {
		c, err := measureCurve(ctx, cfg, p)
		if err != nil {
			return done, fmt.Errorf("curve %s: %w", p.name, err)
		}
		if err := c.write(cfg.Out); err != nil {
			return done, err
		}
		done = append(done, c)
	}
	return done, nil
}

func measureCurve(ctx context.Context, cfg CurvesConfig, p curvePlan) (c ScalingCurve, err error) {
	c = ScalingCurve{Name: p.name, About: p.about, Axis: p.axis, Load: loadAverage()}
	m := &measuring{cfg: cfg, bench: bench{cfg: cfg.Bench}}
	m.bench.env, err = devenv.Start(ctx, devenv.Options{
		Redis: true, Postgres: true, PostgresArgs: p.postgres,
		// A rewrite of the file would be in one point and not in another.
		RedisArgs: []string{"--auto-aof-rewrite-percentage", "0"},
	})
	if err != nil {
		return c, fmt.Errorf("start servers: %w", err)
	}
	defer func() { err = errors.Join(err, m.bench.env.Close()) }()
	if err := m.bench.create(ctx, dbTemplate, ""); err != nil {
		return c, err
	}
	setups, err := cfg.setups(p)
	if err != nil {
		return c, err
	}
	rounds := make([][]Measured, len(setups))
	for range cfg.Rounds {
		for i, s := range setups {
			got, err := m.point(ctx, p.name, s)
			if err != nil {
				return c, fmt.Errorf("%s %s: %w", p.axis, s.at, err)
			}
			rounds[i] = append(rounds[i], got)
		}
	}
	base := 0
	for i, s := range setups {
		c.Points = append(c.Points, CurvePoint{At: s.at, Devices: s.devices, Entries: s.entries, Measured: median(rounds[i])})
		if s.base {
			base = i
		}
	}
	normalize(c.Points, base)
	c.Load += ", then " + loadAverage()
	return c, nil
}

func (c ScalingCurve) write(dir string) error {
	for _, f := range []struct{ end, text string }{{".csv", c.CSV()}, {".svg", c.SVG()}} {
		if err := os.WriteFile(filepath.Join(dir, c.Name+f.end), []byte(f.text), 0o644); err != nil {
			return fmt.Errorf("write a curve: %w", err)
		}
	}
	return nil
}

// Targets returns those that the curve has a point for.
func (c ScalingCurve) Targets() (targets []Target) {
	for _, p := range c.Points {
		switch {
		case c.Name == "devices" && p.Devices == 1_000_000 && p.CopyToBase > 0 && c.Points[0].Devices <= 1000:
			targets = append(targets, Target{"cost a record with 1,000,000 devices to 1,000, relative to COPY", p.Relative, 1.2, 1.4, false})
		case c.Name == "memory" && p.Devices == 200_000:
			targets = append(targets, Target{"peak memory with 200,000 devices and 1,000,000 entries, MB", p.PeakMB, 200, 300, false})
		}
	}
	return targets
}
