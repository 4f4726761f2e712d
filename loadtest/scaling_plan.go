package loadtest

import (
	"fmt"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/cli"
)

// benchWindow satisfies a check of what curves do not use.
const benchWindow = time.Second

const (
	curveDevices = 1000 // of a fleet unless a curve says otherwise
	tableDevices = 20_000
	memoryFull   = 1_000_000 // entries of the backlog that the target of memory names
)

// curvePlan is a curve to be measured.
type curvePlan struct {
	name, about, axis string
	usual             bool     // unless others are named
	postgres          []string // arguments of the server
	points            func(entries int, full bool) []setup
}

// setup is one point: first come records that make all devices known, then the
// entries that are measured.
type setup struct {
	at         string // on the axis
	base       bool   // the point to which others are compared
	devices    int
	first      int // records, at least one of each device
	entries    int // measured
	instances  int
	rows       int // there before, of the same devices
	fences     int
	attributes int  // a record; those of the fleet if negative
	copied     bool // COPY of the same rows beside it
	env        []string
}

// usual returns the service with its defaults.
func usual(at string, entries int) setup {
	return setup{at: at, devices: curveDevices, first: curveDevices, entries: entries, instances: 1, attributes: -1}
}

// each makes a point for each value.
func each(entries int, values []int, base int, put func(s *setup, v int)) (points []setup) {
	for _, v := range values {
		s := usual(grouped(v), entries)
		s.base = v == base
		put(&s, v)
		points = append(points, s)
	}
	return points
}

// orMore returns values, and more of them in a full run.
func orMore(full bool, values []int, more ...int) []int {
	if full {
		return append(values, more...)
	}
	return values
}

// curvePlans returns all curves there are.
func curvePlans() []curvePlan {
	return []curvePlan{
		{
			name: "devices", axis: "known devices", usual: true,
			about: "Devices whose state is in memory, beside COPY of the same rows; of 1,000,000 devices with --full.",
			points: func(entries int, full bool) []setup {
				values := orMore(full, []int{100, 1000, 10_000, 100_000}, 1_000_000)
				return each(entries, values, 1000, func(s *setup, v int) {
					// As many rows and entries at each point, so that nothing but devices differs.
					s.devices, s.first, s.copied = v, slices.Max(values), true
					s.entries = max(entries, s.first/5)
					s.env = []string{fmt.Sprintf("STATE_MAX_DEVICES=%d", max(200_000, v+v/10))}
				})
			},
		},
		{
			name: "shards", axis: "shards", usual: true,
			about: "Shards of the fleet, one instance.",
			points: func(entries int, _ bool) []setup {
				return each(entries, []int{16, 32, 64, 128, 256}, 64, func(s *setup, v int) {
					s.env = []string{fmt.Sprintf("SHARDS=%d", v)}
				})
			},
		},
		{
			name: "instances", axis: "instances", usual: true,
			about: "Instances that share the shards and the machine.",
			points: func(entries int, _ bool) []setup {
				return each(2*entries, []int{1, 2, 3, 4}, 1, func(s *setup, v int) { s.instances = v })
			},
		},
		{
			name: "batch", axis: "BATCH_MAX_RECORDS", usual: true,
			about: "Most records of one commit.",
			points: func(entries int, _ bool) []setup {
				return each(entries, []int{250, 500, 1000, 2000, 4000, 8000}, 4000, func(s *setup, v int) {
					s.env = []string{fmt.Sprintf("BATCH_MAX_RECORDS=%d", v)}
				})
			},
		},
		{
			name: "attributes", axis: "attributes a record", usual: true,
			about: "Attributes of each record, all of them numbers.",
			points: func(entries int, _ bool) []setup {
				return each(entries, []int{0, 4, 8, 16, 32, 64}, 8, func(s *setup, v int) { s.attributes = v })
			},
		},
		{
			name: "table", axis: "rows there before", usual: true,
			about: "Rows of 20,000 devices that are in positions already, with 64 MB of shared buffers, beside COPY of the same rows; " +
				"10,000,000 rows with --full.",
			postgres: []string{"-c", "shared_buffers=64MB"},
			points: func(entries int, full bool) []setup {
				return each(entries, orMore(full, []int{0, 100_000, 1_000_000}, 10_000_000), 0, func(s *setup, v int) {
					s.rows, s.devices, s.first, s.copied = v, tableDevices, tableDevices, true
				})
			},
		},
		{
			name: "fences", axis: "fences", usual: true,
			about: "Geofences, up to 36 of them where the fleet drives and the others scattered over 100 km by 100 km around.",
			points: func(entries int, _ bool) []setup {
				return each(entries, []int{0, 10, 100, 1000, 10_000}, 0, func(s *setup, v int) { s.fences = v })
			},
		},
		{
			name: "memory", axis: "known devices", usual: false,
			about: "Peak memory with devices in state and a backlog of 1,000,000 entries, the first pass over the devices included.",
			points: func(_ int, _ bool) []setup {
				return each(0, []int{1000, 50_000, 100_000, 200_000}, 1000, func(s *setup, v int) {
					s.devices, s.first, s.entries = v, v, memoryFull-v
				})
			},
		},
	}
}

// CurveNames returns the curves there are, with what each tells and whether it is
// measured unless others are named.
func CurveNames() (names, abouts []string, usual []bool) {
	for _, p := range curvePlans() {
		names, abouts, usual = append(names, p.name), append(abouts, p.about), append(usual, p.usual)
	}
	return names, abouts, usual
}

// grouped returns a number as people write it.
func grouped(n int) string { return cli.Thousands(int64(n)) }
