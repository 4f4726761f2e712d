package loadtest

import (
	"encoding/csv"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCurvesAreRelativeToTheirBaseAndToCopy(t *testing.T) {
	t.Parallel()
	points := []CurvePoint{
		{At: "1,000", Measured: Measured{Total: 20, Copy: 10}},
		{At: "1,000,000", Measured: Measured{Total: 30, Copy: 12}},
		{At: "none", Measured: Measured{Total: 10}},
	}
	normalize(points, 0)
	require.InDelta(t, 1, points[0].Relative, 1e-9)
	require.InDelta(t, 1.5, points[1].ToBase, 1e-9)
	require.InDelta(t, 1.2, points[1].CopyToBase, 1e-9)
	require.InDelta(t, 1.25, points[1].Relative, 1e-9)
	require.InDelta(t, .5, points[2].ToBase, 1e-9)
	require.Zero(t, points[2].Relative, "without COPY there is nothing to relate to")
}

func TestMedianOfRoundsIsTakenFieldByField(t *testing.T) {
	t.Parallel()
	m := median([]Measured{{Rate: 3, PeakMB: 10}, {Rate: 1, PeakMB: 30}, {Rate: 2, PeakMB: 20}})
	require.Equal(t, Measured{Rate: 2, PeakMB: 20}, m)
	require.InDelta(t, 1.5, median([]Measured{{Rate: 1}, {Rate: 2}}).Rate, 1e-9)
	require.Len(t, m.fields(), len(measuredColumns))
}

func TestEveryCurveHasOneBaseAndPointsThatFit(t *testing.T) {
	t.Parallel()
	for _, full := range []bool{false, true} {
		for _, p := range curvePlans() {
			setups, bases := p.points(100_000, full), 0
			for _, s := range setups {
				if s.base {
					bases++
				}
				require.Positive(t, s.entries, "%s %s", p.name, s.at)
				require.Positive(t, s.instances, "%s %s", p.name, s.at)
				require.GreaterOrEqual(t, s.first, s.devices, "%s %s: every device is known", p.name, s.at)
				require.Equal(t, s.devices, reporting(s.devices), "%s %s: every device reports", p.name, s.at)
				require.LessOrEqual(t, s.rows%s.devices, 0, "%s %s: each device has as many rows", p.name, s.at)
			}
			require.Equal(t, 1, bases, p.name)
		}
	}
	largest := func(name string, full bool) string {
		plans, err := CurvesConfig{Names: []string{name}}.plans()
		require.NoError(t, err)
		setups := plans[0].points(100_000, full)
		return setups[len(setups)-1].at
	}
	require.Equal(t, "100,000", largest("devices", false))
	require.Equal(t, "1,000,000", largest("devices", true))
	require.Equal(t, "10,000,000", largest("table", true))
	some, err := CurvesConfig{Full: true, Points: []int{1000, 1_000_000}}.setups(curvePlans()[0])
	require.NoError(t, err)
	require.Len(t, some, 2)
	require.True(t, some[0].base)
	require.Equal(t, 1_000_000, some[1].devices)
	_, err = CurvesConfig{Points: []int{7}}.setups(curvePlans()[0])
	require.ErrorContains(t, err, "no point at 7")
	_, err = CurvesConfig{Names: []string{"nonsense"}}.plans()
	require.ErrorContains(t, err, `curve "nonsense": want one of devices,`)
}

func TestTheFirstRecordsOfAPointMakeEveryDeviceKnown(t *testing.T) {
	t.Parallel()
	s := usual("", 500)
	s.devices, s.first = 300, 450
	p := s.fleet(1)
	source, err := p.Source()
	require.NoError(t, err)
	known, n := map[string]bool{}, 0
	for it, ok := source.Next(); ok; it, ok = source.Next() {
		require.Equal(t, n < s.first, it.Message.Time.Before(p.Start.Add(450*time.Millisecond)), "record %d", n)
		if n < s.devices {
			require.False(t, known[it.Message.DeviceID])
			known[it.Message.DeviceID] = true
		}
		n++
	}
	require.Equal(t, s.first+s.entries, n)
	require.Len(t, known, s.devices)
}

// reporting returns how many devices send one of the first records.
func reporting(devices int) int {
	seen := make([]bool, devices)
	n := 0
	for i := range devices {
		if d := scattered(i, devices); !seen[d] {
			seen[d] = true
			n++
		}
	}
	return n
}

func TestFencesOfACurveAreAsManyAsAsked(t *testing.T) {
	t.Parallel()
	for _, n := range []int{10, 36, 100, 1000} {
		fences, err := fencesAround(usual("", 1000).fleet(1), n)
		require.NoError(t, err)
		require.Len(t, fences, n)
		ids := map[string]bool{}
		for _, f := range fences {
			ids[f.ID] = true
		}
		require.Len(t, ids, n, "each has an ID of its own")
	}
}

func TestCurveIsWrittenAsTableAndDrawing(t *testing.T) {
	t.Parallel()
	g := ScalingCurve{Name: "devices", About: "a <b> & c", Axis: "known devices", Points: []CurvePoint{
		{At: "1,000", Devices: 1000, Entries: 5, Measured: Measured{Rate: 80_000, Service: 4, Redis: 6, Postgres: 11, Total: 21, Copy: 10.5}},
		{At: "100,000", Devices: 100_000, Entries: 5, Measured: Measured{Rate: 60_000, Service: 5, Redis: 6, Postgres: 13.25, Total: 24.25, Copy: 12}},
	}}
	rows, err := csv.NewReader(strings.NewReader(g.CSV())).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 3)
	column := func(name string) int { return slices.Index(rows[0], name) }
	require.Equal(t, "100000", rows[2][column("at")])
	require.Equal(t, "60000", rows[2][column("records_per_s")])
	require.Equal(t, "13.25", rows[2][column("postgres_us")])
	require.Equal(t, "10.5", rows[1][column("copy_us")])

	svg := g.SVG()
	bars, marks := 0, 0
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err, "a drawing is well-formed")
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "title" {
			bars++
		} else if ok && e.Name.Local == "line" && slices.ContainsFunc(e.Attr, func(a xml.Attr) bool { return a.Value == "#222" }) {
			marks++
		}
	}
	require.Equal(t, 6, bars, "three for each point")
	require.Equal(t, 3, marks, "COPY at each point, and in the legend")
	require.Contains(t, svg, ">24.2<")
	require.Contains(t, svg, "a &lt;b&gt; &amp; c")
}

func TestWorkOfAPointIsBetweenTwoSnapshots(t *testing.T) {
	t.Parallel()
	from := spent{at: time.Unix(0, 0), outstanding: 9000, own: time.Second, told: told{records: 100, commits: 1}}
	to := spent{
		at: time.Unix(2, 0), outstanding: 1000, own: time.Second + 80*time.Millisecond,
		redis: 40 * time.Millisecond, postgres: 160 * time.Millisecond, told: told{records: 8100, commits: 5},
	}
	w, err := resultBetween(from, to, 10_000)
	require.NoError(t, err)
	require.InDelta(t, 4000, w.rate, 1e-9)
	require.InDelta(t, 10, w.own, 1e-9)
	require.InDelta(t, 5, w.redis, 1e-9)
	require.InDelta(t, 20, w.postgres, 1e-9)
	require.InDelta(t, 2000, w.perCommit, 1e-9)

	for _, tt := range []struct{ from, to spent }{{spent{}, to}, {from, spent{}}, {from, from}} {
		_, err = resultBetween(tt.from, tt.to, 10_000)
		require.ErrorContains(t, err, "too short")
	}
}
