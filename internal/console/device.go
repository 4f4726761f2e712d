package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// deviceData is what the page of a device shows.
type deviceData struct {
	view
	ID       string
	Prefix   string
	Found    reading[[]string]
	Device   reading[operator.Device]
	Track    reading[operator.TrackWindow]
	From, To string
	Window   string // of the address of the track
	Actor    actor
	Tiles    string
	Earlier  string // addresses of the windows beside this one
	Later    string
	First    string // of the form that flags a stretch
	Last     string
}

const (
	foundDevices = 50
	inputTime    = "2006-01-02T15:04:05"
	// fastest is the speed in metres per second above which two fixes in a row
	// are marked as a jump.
	fastest = 120
)

// windowOf reads the window of device time of an address; zero is open.
func windowOf(q url.Values) (from, to time.Time, err error) {
	for _, x := range []struct {
		name string
		into *time.Time
	}{{"from", &from}, {"to", &to}} {
		text := q.Get(x.name)
		if text == "" {
			continue
		}
		if *x.into, err = time.Parse(time.RFC3339, text); err != nil {
			if *x.into, err = time.Parse(inputTime, text); err != nil {
				if *x.into, err = time.Parse("2006-01-02T15:04", text); err != nil {
					return from, to, fmt.Errorf("time %q: want 2026-08-01T10:00:00, in UTC", text)
				}
			}
		}
	}
	return from, to, nil
}

func (c *Console) device(ctx context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	d := deviceData{view: c.view(ctx, slowest), ID: q.Get("device"), Prefix: q.Get("prefix"), From: q.Get("from"), To: q.Get("to"), Actor: c.actor(r), Tiles: c.cfg.Tiles}
	if d.ID == "" {
		d.Found = c.found.get(d.Prefix, 5*time.Second, askFor, func(ctx context.Context) (ids []string, err error) {
			err = c.with(func(f *operator.Fleet) error { ids, err = f.Devices(ctx, d.Prefix, "", foundDevices); return err })
			return ids, err
		}).get(ctx)
		return d, nil
	}
	d.Device = c.devices.get(d.ID, 2*time.Second, askFor, func(ctx context.Context) (x operator.Device, err error) {
		err = c.with(func(f *operator.Fleet) error { x, err = f.Device(ctx, d.ID); return err })
		return x, err
	}).get(ctx)
	d.First, d.Last = cmp.Or(q.Get("first"), d.From), cmp.Or(q.Get("last"), d.To)
	v := url.Values{"device": {d.ID}}
	if d.From != "" {
		v.Set("from", d.From)
	}
	if d.To != "" {
		v.Set("to", d.To)
	}
	d.Window = v.Encode()
	d.Track = c.track(ctx, d.ID, q)
	if w := d.Track.Value; d.Track.Known() {
		span := w.To.Sub(w.From)
		link := func(from, to time.Time) string {
			return "devices/?" + url.Values{"device": {d.ID}, "from": {from.UTC().Format(inputTime)}, "to": {to.UTC().Format(inputTime)}}.Encode()
		}
		d.Earlier, d.Later = link(w.From.Add(-span), w.From), link(w.To, w.To.Add(span))
	}
	return d, nil
}

// crossingData is what the page of one crossing shows.
type crossingData struct {
	view
	Explanation reading[operator.Explanation]
}

func (c *Console) crossing(ctx context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	device, fence, text := q.Get("device"), q.Get("fence"), q.Get("at")
	if device == "" || fence == "" {
		return nil, errors.New("name the device and the fence")
	}
	var at time.Time
	if text != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, text); err != nil {
			return nil, fmt.Errorf("time %q: want 2026-08-01T10:00:00Z", text)
		}
	}
	d := crossingData{view: c.view(ctx, slowest)}
	d.Explanation = c.explained.get(strings.Join([]string{device, fence, text}, "\x00"), 2*time.Second, askFor, func(ctx context.Context) (x operator.Explanation, err error) {
		err = c.with(func(f *operator.Fleet) error { x, err = f.Explain(ctx, device, fence, at); return err })
		return x, err
	}).get(ctx)
	return d, nil
}

// CrossingLink returns the page of a crossing, below the root.
func (d deviceData) CrossingLink(x store.CrossingRow) string {
	return "devices/crossing/?" + url.Values{"device": {d.ID}, "fence": {x.Fence}, "at": {x.At.UTC().Format(time.RFC3339Nano)}}.Encode()
}

// EntriesAt names the entries of a fix.
func (d crossingData) EntriesAt(at time.Time) (list []string) {
	for _, e := range d.Explanation.Value.Entries {
		if e.Time.Equal(at) {
			list = append(list, strings.TrimSuffix(e.ID+" "+e.State, " row"))
		}
	}
	return list
}

// Remark returns what there is to say of a fix.
func (d crossingData) Remark(f store.ExplainedFix) string {
	text := strings.ReplaceAll(f.Why, "_", " ")
	if f.Role != "" {
		text = f.Role + " fix"
	}
	for _, x := range d.Explanation.Value.Conflicts {
		if x.Time.Equal(f.Time) {
			text = strings.TrimPrefix(text+", conflict in "+strings.Join(x.Differs, " "), ", ")
		}
	}
	return text
}

func (c *Console) track(ctx context.Context, device string, q url.Values) reading[operator.TrackWindow] {
	from, to, err := windowOf(q)
	if err != nil {
		return reading[operator.TrackWindow]{Err: err}
	}
	return c.tracks.get(device+"\x00"+q.Get("from")+"\x00"+q.Get("to"), 2*time.Second, askFor, func(ctx context.Context) (w operator.TrackWindow, err error) {
		err = c.with(func(f *operator.Fleet) error { w, err = f.Track(ctx, device, from, to); return err })
		return w, err
	}).get(ctx)
}

// Marks of a position on the map.
const (
	markLate    = 1
	markGap     = 2
	markNoFix   = 4
	markJump    = 8
	markFuture  = 16
	markFaulty  = 32
	markAncient = 64
)

// mapPoint is a position as the script draws it: device time, latitude, longitude,
// speed, marks, and the time of its entry.
type mapPoint [6]float64

// mapData is what the script draws.
type mapData struct {
	Points    []mapPoint         `json:"points"`
	Sampled   bool               `json:"sampled"`
	Crossings []mapCrossing      `json:"crossings"`
	Fences    []store.FenceShape `json:"fences"`
}

type mapCrossing struct {
	Fence   string  `json:"fence"`
	Version int     `json:"version"`
	Kind    string  `json:"kind"`
	At      float64 `json:"at"`
	Earlier float64 `json:"earlier"` // 0 for an initial one
	Later   float64 `json:"later"`
	Lat     float64 `json:"lat"`
	Lon     float64 `json:"lon"`
}

func millis(t time.Time) float64 { return float64(t.UnixMicro()) / 1000 }

// points returns the positions with their marks.
func points(w *operator.TrackWindow) []mapPoint {
	out := make([]mapPoint, len(w.Points))
	earliest := time.Time{} // of the entries of later positions
	for i := len(w.Points) - 1; i >= 0; i-- {
		p := &w.Points[i]
		marks := 0
		if !earliest.IsZero() && p.Ingested.After(earliest) {
			marks |= markLate
		}
		if earliest.IsZero() || p.Ingested.Before(earliest) {
			earliest = p.Ingested
		}
		switch p.Excluded {
		case telemetry.NoFix:
			marks |= markNoFix
		case telemetry.Future:
			marks |= markFuture
		case telemetry.Ancient:
			marks |= markAncient
		}
		if p.Faulty {
			marks |= markFaulty
		}
		out[i] = mapPoint{millis(p.Time), p.Latitude, p.Longitude, float64(p.Speed), float64(marks), millis(p.Ingested)}
	}
	last := -1
	for i := range out {
		if int(out[i][4])&(markNoFix|markFuture|markFaulty|markAncient) != 0 {
			continue
		}
		if last >= 0 {
			seconds := (out[i][0] - out[last][0]) / 1000
			marks := int(out[i][4])
			if w.MaxGap > 0 && seconds > w.MaxGap.Seconds() {
				marks |= markGap
			}
			if seconds > 0 && metres(out[last], out[i])/seconds > fastest {
				marks |= markJump
			}
			out[i][4] = float64(marks)
		}
		last = i
	}
	return out
}

// metres returns the distance of two positions.
func metres(a, b mapPoint) float64 {
	const radius, rad = 6_371_000, math.Pi / 180
	lat, lon := (b[1]-a[1])*rad/2, (b[2]-a[2])*rad/2
	h := math.Sin(lat)*math.Sin(lat) + math.Cos(a[1]*rad)*math.Cos(b[1]*rad)*math.Sin(lon)*math.Sin(lon)
	return 2 * radius * math.Asin(min(1, math.Sqrt(h)))
}

// serveTrack answers the script of the map.
func (c *Console) serveTrack(w http.ResponseWriter, r *http.Request) {
	t := c.track(r.Context(), r.URL.Query().Get("device"), r.URL.Query())
	shapes := c.shapes.get(r.Context())
	if !t.Known() || !shapes.Known() {
		http.Error(w, visible(cmp.Or(t.Err, shapes.Err)), http.StatusServiceUnavailable)
		return
	}
	data := mapData{Points: points(&t.Value), Sampled: t.Value.Sampled, Fences: shapes.Value, Crossings: []mapCrossing{}}
	for _, x := range t.Value.Crossings {
		m := mapCrossing{Fence: visible(x.Fence), Version: x.Version, Kind: x.Kind, At: millis(x.At), Later: millis(x.Later), Lat: x.Latitude, Lon: x.Longitude}
		if x.Earlier != nil {
			m.Earlier = millis(*x.Earlier)
		}
		data.Crossings = append(data.Crossings, m)
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(data); err != nil {
		c.log.Debug("a viewer is gone", "err", err)
	}
}

// Rows returns the newest positions of the window, for the table under the map.
func (d deviceData) Rows() []trackRow {
	w := d.Track.Value
	list := points(&w)
	var rows []trackRow
	for i := len(list) - 1; i >= 0 && len(rows) < 100; i-- {
		rows = append(rows, trackRow{TrackPoint: w.Points[i], Marks: markNames(int(list[i][4]))})
	}
	return rows
}

// trackRow is a position in the table.
type trackRow struct {
	store.TrackPoint
	Marks []string
}

// Entry returns the stream time of the entry, which is the first half of its ID.
func (t trackRow) Entry() string { return strconv.FormatInt(t.Ingested.UnixMilli(), 10) + "-…" }

// Input returns the device time as a form has it.
func (t trackRow) Input() string { return t.Time.UTC().Format(inputTime + ".000") }

func markNames(marks int) []string {
	var names []string
	for _, m := range []struct {
		bit  int
		name string
	}{{markLate, "late"}, {markGap, "after a gap"}, {markNoFix, "no fix"}, {markJump, "jump"}, {markFuture, "future"}, {markAncient, "ancient"}, {markFaulty, "faulty"}} {
		if marks&m.bit != 0 {
			names = append(names, m.name)
		}
	}
	return names
}

// awaitRequest tells what becomes of a request.
func awaitRequest(ctx context.Context, f *operator.Fleet, j *job, status store.RequestStatus) error {
	j.say(fmt.Sprintf("request %d is recorded; the owner of shard %d does it", status.ID, status.Shard))
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	status, err := f.Await(waiting, status.ID)
	j.say("state: " + status.State)
	if status.Result != nil {
		j.say(string(status.Result))
	}
	if err != nil {
		return err
	}
	return operator.CheckDone(status)
}

// markAction flags positions of a device as faulty, takes that back, or only counts them.
func markAction(m store.Mark) action {
	return action{reads: m.DryRun, keeps: map[string]string{"from": "first", "to": "last"}, start: func(r *http.Request) (string, func(ctx context.Context, f *operator.Fleet, j *job) error, error) {
		m := m
		m.Device, m.Reason = r.PostFormValue("device"), r.PostFormValue("reason")
		var err error
		if m.From, m.To, err = windowOf(r.PostForm); err != nil {
			return "", nil, err
		}
		if m.Device == "" || m.From.IsZero() || m.To.IsZero() {
			return "", nil, errors.New("name the device, and the device time of its first and last faulty position")
		}
		m.To = m.To.Add(unitOf(r.PostFormValue("to")) - time.Microsecond)
		title := "Flag positions of " + m.Device + " as faulty"
		switch {
		case m.DryRun:
			title = "Dry run: flag positions of " + m.Device + " as faulty"
		case m.TakeBack:
			title = "Flag positions of " + m.Device + " as faulty no more"
		}
		return title, func(ctx context.Context, f *operator.Fleet, j *job) error {
			out, err := f.Mark(ctx, m)
			if err != nil {
				return err
			}
			j.say(operator.MarkedText(out))
			if m.DryRun && out.Positions > 0 {
				those := cli.Count(out.Positions, "position")
				j.offer(r.PostForm, nextButton{"faulty", "Flag these " + those, "Flag " + those + " of device [device] as faulty?", "danger"})
			}
			if out.Request == nil {
				return nil
			}
			return awaitRequest(ctx, f, j, *out.Request)
		}, nil
	}}
}

// unitOf returns the unit of a time in a form, which is included as a whole: positions have
// more digits than people enter. Browsers take zeros at the end of a fraction away.
func unitOf(text string) time.Duration {
	_, fraction, _ := strings.Cut(strings.TrimSuffix(text, "Z"), ".")
	switch {
	case fraction == "":
		return time.Second
	case len(fraction) <= 3:
		return time.Millisecond
	}
	return time.Microsecond
}

// requestActions are what operators ask the owner of a device.
func (c *Console) requestActions() map[string]action {
	ask := func(kind string) action {
		return action{start: func(r *http.Request) (string, func(ctx context.Context, f *operator.Fleet, j *job) error, error) {
			req := operator.Request{Kind: kind, Device: r.PostFormValue("device"), Reason: r.PostFormValue("reason")}
			if req.Device == "" {
				return "", nil, errors.New("name the device")
			}
			from, to, err := windowOf(r.PostForm)
			if err != nil {
				return "", nil, err
			}
			if kind == protocol.RequestRecompute {
				if !from.IsZero() {
					req.From = &from
				}
				if !to.IsZero() {
					req.To = &to
				}
			}
			return kind + " " + req.Device, func(ctx context.Context, f *operator.Fleet, j *job) error {
				status, err := f.Ask(ctx, req)
				if err != nil {
					return err
				}
				return awaitRequest(ctx, f, j, status)
			}, nil
		}}
	}
	return map[string]action{
		"faulty": markAction(store.Mark{}), "faulty-dry-run": markAction(store.Mark{DryRun: true}), "faulty-take-back": markAction(store.Mark{TakeBack: true}),
		"rehydrate": ask(protocol.RequestRehydrate),
		"recompute": ask(protocol.RequestRecompute),
		"verify": {reads: true, start: func(r *http.Request) (string, func(ctx context.Context, f *operator.Fleet, j *job) error, error) {
			device := r.PostFormValue("device")
			return "Verify " + device, func(ctx context.Context, f *operator.Fleet, j *job) error {
				v, err := f.Verify(ctx, device)
				if err != nil {
					return err
				}
				text, err := json.MarshalIndent(v, "", "  ")
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(text)) {
					j.say(strings.TrimSuffix(line, "\n"))
				}
				if !v.Good() {
					return errors.New("the recorded crossings are not those of the positions: ask for a recompute")
				}
				return nil
			}, nil
		}},
	}
}
