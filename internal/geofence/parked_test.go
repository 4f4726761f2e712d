package geofence_test

import (
	"bytes"
	"encoding/csv"
	"flag"
	"fmt"
	"image/color"
	"image/png"
	"math"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/trmtracking/processor/internal/geofence"
)

var updatePictures = flag.Bool("update-pictures", false, "draw the pictures in docs/reference again")

//go:generate go test -count=1 -run Parked . -update-pictures

// parkedMargin is three times the noise of the stand.
const parkedMargin = 30

// lot is a square of 300 m on a side of which a tracker stands. Its border lies
// across the direction in which the receiver moved most.
type lot struct{ lat, lon, angle float64 }

// plane returns metres along the border and across it; outside is above 0.
func (y lot) plane(f geofence.Fix) (along, across float64) {
	east := (f.Longitude - y.lon) * 111195 * math.Cos(y.lat*math.Pi/180)
	north := (f.Latitude - y.lat) * 111195
	sin, cos := math.Sincos(y.angle)
	return north*cos - east*sin, east*cos + north*sin
}

func (y lot) fence(t *testing.T, margin float64) *geofence.Set {
	t.Helper()
	sin, cos := math.Sincos(y.angle)
	at := func(along, across float64) string {
		east, north := across*cos-along*sin, across*sin+along*cos
		return fmt.Sprintf("[%.9f,%.9f]", y.lon+east/111195/math.Cos(y.lat*math.Pi/180), y.lat+north/111195)
	}
	return setOf(t, geofence.Fence{
		ID: "lot", Kind: geofence.Area, Valid: geofence.Always, Enabled: true, ExitMarginM: margin,
		Geometry: `{"type":"Polygon","coordinates":[[` + at(-150, 0) + "," + at(150, 0) + "," + at(150, -300) + "," + at(-150, -300) + "," + at(-150, 0) + `]]}`,
	})
}

// stand returns the fixes of a tracker that stood still for two hours.
func stand(t *testing.T) (fixes []geofence.Fix) {
	t.Helper()
	records, err := csv.NewReader(dataFile(t, "teltonika/fmb_session_records.csv.gz")).ReadAll()
	require.NoError(t, err)
	column := map[string]int{}
	for i, name := range records[0] {
		column[name] = i
	}
	from, to := us(t, "2020-12-24T01:14:30Z"), us(t, "2020-12-24T03:14:30Z")
	for _, r := range records[1:] {
		f := geofence.Fix{TimeUS: us(t, r[column["ts"]]), Latitude: number(t, r[column["latitude"]]), Longitude: number(t, r[column["longitude"]])}
		if number(t, r[column["satellites"]]) > 0 && f.TimeUS >= from && f.TimeUS < to {
			fixes = append(fixes, f)
		}
	}
	return inOrder(fixes)
}

// A car parked on a border, as recorded: what counts with no property and with a margin.
func TestParkedOnABorderCountsOnce(t *testing.T) {
	y := lot{lat: 13.046608, lon: 80.106542, angle: 2 * math.Pi / 3}
	fixes := stand(t)
	var squares float64
	for _, f := range fixes {
		_, across := y.plane(f)
		squares += across * across
	}
	var panels []*plot.Plot
	counts := map[float64][2]int{}
	for _, margin := range []float64{0, parkedMargin} {
		walk := y.fence(t, margin).Walk(10 * time.Minute)
		var crossings []geofence.Crossing
		for _, f := range fixes {
			crossings = walk.Next(crossings, f)
		}
		p, enters, exits := parkedPlot(y, fixes, crossings, margin)
		panels, counts[margin] = append(panels, p), [2]int{enters, exits}
	}
	t.Logf("%d fixes in %s, %.1f m across the border: [enters exits] by margin in metres: %v",
		len(fixes), time.Duration(fixes[len(fixes)-1].TimeUS-fixes[0].TimeUS)*time.Microsecond, math.Sqrt(squares/float64(len(fixes))), counts)
	require.Greater(t, counts[0][0]+counts[0][1], 20)
	require.Equal(t, [2]int{1, 0}, counts[parkedMargin])
	samePicture(t, "../../docs/reference/parked.png", panels)
}

// parkedPlot draws how far a device was from a border, and what counts.
func parkedPlot(y lot, fixes []geofence.Fix, crossings []geofence.Crossing, margin float64) (p *plot.Plot, enters, exits int) {
	at := func(f geofence.Fix) plotter.XY {
		_, across := y.plane(f)
		return plotter.XY{X: float64(f.TimeUS-fixes[0].TimeUS) / 60e6, Y: across}
	}
	var way, in, out plotter.XYs
	for _, f := range fixes {
		way = append(way, at(f))
	}
	for _, c := range crossings {
		xy := at(geofence.Fix{TimeUS: c.TimeUS, Latitude: c.Latitude, Longitude: c.Longitude})
		if c.Kind == geofence.Enter {
			in = append(in, xy)
		} else {
			out = append(out, xy)
		}
	}
	p = plot.New()
	p.Title.Text = fmt.Sprintf("no properties: %d enters, %d exits", len(in), len(out))
	if margin > 0 {
		p.Title.Text = fmt.Sprintf("exit_margin_m %v: %d enter, %d exits", margin, len(in), len(out))
	}
	p.X.Label.Text, p.Y.Label.Text = "minutes", "metres outside of the border"
	p.Y.Min, p.Y.Max = -35, 55
	p.Legend.Top, p.Legend.XOffs = true, -vg.Points(8)
	horizontal := func(y float64, c color.Color, dashes []vg.Length, name string) {
		line, _ := plotter.NewLine(plotter.XYs{{X: 0, Y: y}, {X: way[len(way)-1].X, Y: y}})
		line.Color, line.Dashes = c, dashes
		p.Add(line)
		p.Legend.Add(name, line)
	}
	line, dots, _ := plotter.NewLinePoints(way)
	line.Color, dots.Color, dots.Shape, dots.Radius = color.Gray{Y: 200}, color.Gray{Y: 120}, draw.CircleGlyph{}, vg.Points(1.5)
	p.Add(line, dots)
	horizontal(0, color.Black, nil, "border")
	if margin > 0 {
		horizontal(margin, color.Black, []vg.Length{vg.Points(4), vg.Points(3)}, "margin")
	}
	for _, of := range []struct {
		name   string
		points plotter.XYs
		color  color.Color
		shape  draw.GlyphDrawer
	}{
		{"enter", in, color.RGBA{G: 130, B: 60, A: 255}, draw.PyramidGlyph{}},
		{"exit", out, color.RGBA{R: 200, G: 40, A: 255}, draw.BoxGlyph{}},
	} {
		if len(of.points) > 0 {
			marks, _ := plotter.NewScatter(of.points)
			marks.Color, marks.Shape, marks.Radius = of.color, of.shape, vg.Points(4)
			p.Add(marks)
			p.Legend.Add(of.name, marks)
		}
	}
	return p, len(in), len(out)
}

// samePicture compares plots, one below the other, with a file of docs.
func samePicture(t *testing.T, path string, plots []*plot.Plot) {
	t.Helper()
	canvas := vgimg.NewWith(vgimg.UseWH(20*vg.Centimeter, 16*vg.Centimeter), vgimg.UseDPI(110))
	var rows [][]*plot.Plot
	for _, p := range plots {
		rows = append(rows, []*plot.Plot{p})
	}
	tiles := draw.Tiles{Rows: len(rows), Cols: 1, PadY: vg.Points(10)}
	for i, row := range plot.Align(rows, tiles, draw.New(canvas)) {
		rows[i][0].Draw(row[0])
	}
	var drawn bytes.Buffer
	_, err := vgimg.PngCanvas{Canvas: canvas}.WriteTo(&drawn)
	require.NoError(t, err)
	if *updatePictures {
		require.NoError(t, os.WriteFile(path, drawn.Bytes(), 0o600))
	}
	text, err := os.ReadFile(path)
	require.NoError(t, err, "make tables draws it")
	is, err := png.Decode(bytes.NewReader(text))
	require.NoError(t, err)
	should, err := png.Decode(&drawn)
	require.NoError(t, err)
	require.Equal(t, should.Bounds(), is.Bounds())
	var differ int // other processors round otherwise
	for x := range is.Bounds().Dx() {
		for y := range is.Bounds().Dy() {
			if is.At(x, y) != should.At(x, y) {
				differ++
			}
		}
	}
	require.Less(t, differ, is.Bounds().Dx()*is.Bounds().Dy()/200, "%s is of an earlier day: make tables draws it again", path)
}
