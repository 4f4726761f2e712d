package equivalence_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// scenario is what happens in a world, one step after the other.
type scenario struct {
	batch, inFlight, states int
	age                     time.Duration
	rules                   telemetry.Eligibility
	ancient                 time.Time // what MaxPast allows when the play begins, if that is a rule
	steps                   []step
}

// step is one thing that happens. Exactly one field says what.
type step struct {
	send      []fleet.Message
	ahead     []time.Duration // of each message: its device time is so far ahead of now; zero where it has its own
	fences    []geofence.Fence
	replace   bool
	recompute *recomputeStep
	faulty    *faultyRow
	move      *moveStep
	crash     bool
	quiet     bool
}

type recomputeStep struct {
	device   string
	from, to time.Time
}

type moveStep struct {
	shards  uint16 // one bit each
	steal   bool   // without a release, and without the owner being told
	newcome bool   // to an instance started for it
	crashAt int64
	before  bool
	spoil   spoil // what is left to the new owner
}

// spoil is what becomes of the state that an owner leaves.
type spoil int

const (
	asLeft spoil = iota
	stale        // what an earlier owner left, though nothing was left now
	foreign
	cut
	corrupted
	spoils
)

const scenarioBase = 1_700_000_000

// asOldAsAllowed stands for -MaxPast, or a day where that is no rule.
const asOldAsAllowed = -24 * time.Hour

// grid is how far apart, in degrees, the places are that devices and fences
// have in common, so that fixes lie on edges and corners too.
const grid = 0.001

// newScenario draws a scenario.
func newScenario(seed uint64) scenario {
	r := rand.New(rand.NewPCG(seed, 5))
	pick := func(of ...int) int { return of[r.IntN(len(of))] }
	sc := scenario{
		batch: pick(1, 2, 3, 7, 7, 50, 4000), inFlight: pick(20, 300, 32768), states: pick(1, 3, 100_000),
		age:   time.Duration(pick(1, 1, 25)) * time.Millisecond,
		rules: telemetry.Eligibility{MaxFutureSkew: 5 * time.Minute, MinSatellites: pick(0, 1, 1, 4), MaxSpeed: pick(0, 0, 60, 150)},
	}
	devices := 1 + r.IntN(6)
	span := pick(30, 90, 2000) // seconds of device time
	allRules := r.IntN(4) > 0
	if allRules {
		sc.rules.MinSatellites, sc.rules.MaxSpeed = pick(1, 4), pick(60, 150)
	}
	if allRules || r.IntN(3) == 0 { // a part of what is sent is older, and more as time passes
		sc.ancient = time.Unix(scenarioBase, 0).Add(time.Duration((r.Float64()*0.3 - 0.2) * float64(span) * float64(time.Second)))
	}
	var pool []fleet.Message
	for range 5 + r.IntN(35) {
		pool = append(pool, randomMessage(r, devices, span))
	}
	if r.IntN(3) == 0 { // newest first, as trackers send
		for i := range pool {
			pool[i].Time = time.Unix(scenarioBase+int64(span)-int64(i*span/len(pool)), 0)
		}
	}
	for i := range pool {
		if i > 0 && r.IntN(8) == 0 { // the same time, other content
			pool[i].DeviceID, pool[i].Time = pool[i-1].DeviceID, pool[i-1].Time
		}
	}
	all := slices.Clone(pool)
	if r.IntN(10) > 0 {
		sc.steps = append(sc.steps, step{fences: randomFences(r, span, allRules)})
	}
	for len(pool) > 0 {
		switch r.IntN(14) {
		case 0:
			sc.steps = append(sc.steps, step{fences: randomFences(r, span, allRules), replace: r.IntN(2) == 0})
		case 1:
			from := time.Unix(scenarioBase+int64(r.IntN(span)), 0)
			sc.steps = append(sc.steps, step{recompute: &recomputeStep{
				device: fleet.DeviceID(r.IntN(devices)), from: from, to: from.Add(time.Duration(r.IntN(span)) * time.Second),
			}})
		case 2:
			m := all[r.IntN(len(all))]
			// A row that is flagged does not give way, whenever that was.
			pool = slices.DeleteFunc(pool, func(o fleet.Message) bool { return o.DeviceID == m.DeviceID && o.Time.Equal(m.Time) })
			sc.steps = append(sc.steps, step{faulty: &faultyRow{m.DeviceID, m.Time.UnixMicro()}})
		case 3, 4:
			m := &moveStep{shards: uint16(r.Uint32()), steal: r.IntN(2) == 0, newcome: r.IntN(2) == 0, spoil: spoil(r.IntN(2) * r.IntN(int(spoils)))}
			if r.IntN(2) == 0 {
				m.crashAt, m.before = 1+int64(r.IntN(4)), r.IntN(2) == 0
			}
			sc.steps = append(sc.steps, step{move: m})
		case 5:
			sc.steps = append(sc.steps, step{crash: true})
		case 6:
			sc.steps = append(sc.steps, step{quiet: true})
		default:
			n := min(len(pool), 1+r.IntN(12))
			s := step{send: append([]fleet.Message{}, pool[:n]...)}
			for range r.IntN(3) { // again, in any order
				s.send = append(s.send, s.send[r.IntN(len(s.send))])
			}
			s.ahead = make([]time.Duration, len(s.send))
			for i := range s.ahead {
				switch r.IntN(40) {
				case 0:
					s.ahead[i] = time.Hour
				case 2: // about as old as is allowed
					s.ahead[i] = asOldAsAllowed + time.Duration(r.IntN(9)-4)*time.Millisecond
				case 1: // about as far as is allowed
					s.ahead[i] = 5*time.Minute + time.Duration(r.IntN(9)-4)*time.Millisecond
				}
			}
			sc.steps = append(sc.steps, s)
			pool = pool[n:]
		}
	}
	return sc
}

func randomMessage(r *rand.Rand, devices, span int) fleet.Message {
	m := fleet.Message{
		DeviceID: fleet.DeviceID(r.IntN(devices)), Codec: "8",
		Time:     time.Unix(scenarioBase+int64(r.IntN(span)), int64(r.IntN(3))*250e6),
		Latitude: 48 + float64(r.IntN(9))*grid, Longitude: 11 + float64(r.IntN(9))*grid,
		Speed: float64(r.IntN(100)), Satellites: r.IntN(12),
		Attributes: []fleet.Attribute{fleet.NumberAttribute("1", float64(r.IntN(1000)))},
	}
	switch r.IntN(25) {
	case 0:
		m.Latitude, m.Longitude = 0, 0
	case 1:
		m.Latitude += r.Float64() * grid
		m.Longitude += r.Float64() * grid
	}
	return m
}

// randomFences draws fences with one or two versions each.
func randomFences(r *rand.Rand, span int, allRules bool) []geofence.Fence {
	var list []geofence.Fence
	for range 1 + r.IntN(4) {
		id := fmt.Sprintf("fence%d", r.IntN(5))
		versions := []geofence.Span{geofence.Always}
		if cut := (scenarioBase + int64(r.IntN(span))) * 1e6; r.IntN(2) == 0 {
			versions = []geofence.Span{{FromUS: geofence.Always.FromUS, ToUS: cut}, {FromUS: cut, ToUS: geofence.Always.ToUS}}
			if r.IntN(3) == 0 {
				versions[1] = geofence.Span{FromUS: cut + 10e6, ToUS: cut + 100e6}
			}
			versions = versions[r.IntN(2):]
		}
		if contains(list, id) {
			continue
		}
		for _, v := range versions {
			f := randomFence(r)
			f.ID, f.Valid = id, v
			holdBorder(r, &f, allRules)
			list = append(list, f)
		}
	}
	return list
}

// holdBorder may say when a change of the fence counts: with figures that no difference
// of two times or places here comes near.
func holdBorder(r *rand.Rand, f *geofence.Fence, always bool) {
	pick := func(of ...float64) float64 {
		if always {
			of = slices.DeleteFunc(of, func(v float64) bool { return v == 0 })
		}
		return of[r.IntN(len(of))]
	}
	if f.Kind == geofence.Gate {
		f.MinIntervalS = pick(0, 3.123457, 17.123457, 130.123457)
		return
	}
	f.ExitMarginM, f.MinDwellS = pick(0, 0, 33.3, 140.7), pick(0, 0, 2.123457, 21.123457)
}

func contains(list []geofence.Fence, id string) bool {
	for i := range list {
		if list[i].ID == id {
			return true
		}
	}
	return false
}

func randomFence(r *rand.Rand) geofence.Fence {
	at := func(x, y int) string {
		return fmt.Sprintf("[%v,%v]", 11+float64(x)*grid, 48+float64(y)*grid)
	}
	x, y, w, h := r.IntN(7), r.IntN(7), 2+r.IntN(3), 2+r.IntN(3)
	ring := func(points ...string) string { return "[" + strings.Join(append(points, points[0]), ",") + "]" }
	f := geofence.Fence{Enabled: r.IntN(8) > 0, Name: "a fence"}
	switch r.IntN(6) {
	case 0:
		f.Kind, f.RadiusM = geofence.Circle, float64(50+r.IntN(400))
		f.Geometry = `{"type":"Point","coordinates":` + at(x, y) + `}`
	case 1:
		f.Kind = geofence.Gate
		f.Geometry = `{"type":"LineString","coordinates":[` + at(x, y) + `,` + at(x+w, y+r.IntN(3)) + `]}`
	case 2: // with a hole
		f.Kind = geofence.Area
		f.Geometry = `{"type":"Polygon","coordinates":[` + ring(at(x, y), at(x+4, y), at(x+4, y+4), at(x, y+4)) + `,` +
			ring(at(x+1, y+1), at(x+1, y+3), at(x+3, y+3), at(x+3, y+1)) + `]}`
	case 3: // concave
		f.Kind = geofence.Area
		f.Geometry = `{"type":"Polygon","coordinates":[` +
			ring(at(x, y), at(x+4, y), at(x+4, y+4), at(x+3, y+4), at(x+3, y+1), at(x+1, y+1), at(x+1, y+4), at(x, y+4)) + `]}`
	default:
		f.Kind = geofence.Area
		f.Geometry = `{"type":"Polygon","coordinates":[` + ring(at(x, y), at(x+w, y), at(x+w, y+h), at(x, y+h)) + `]}`
	}
	return f
}

// options are the bounds the instances of a scenario run with.
func (sc *scenario) options() option {
	return func(c *pipeline.Config, _ *pipeline.Deps) {
		c.Workers = 2
		c.BatchMaxRecords, c.BatchMaxAge = sc.batch, sc.age
		c.MaxInFlightRecords, c.ReadBatchRecords = sc.inFlight, min(sc.inFlight, 4096)
		c.StateMaxDevices = sc.states
	}
}

// play does what the scenario says, waits until all is done, and judges.
func (sc *scenario) play(w *world) error {
	defer w.end()
	w.gap, w.rules = time.Minute, sc.rules
	oldest := asOldAsAllowed
	if !sc.ancient.IsZero() {
		w.rules.MaxPast = time.Since(sc.ancient).Truncate(time.Millisecond)
		oldest = -w.rules.MaxPast
	}
	ctx := context.Background()
	w.join(0, false)
	w.keepOwned()
	for i := range sc.steps {
		s := &sc.steps[i]
		if err := w.feed.Read(ctx); err != nil {
			return err
		}
		switch {
		case s.send != nil:
			messages := append([]fleet.Message{}, s.send...)
			for j, d := range s.ahead {
				if d < 0 {
					d += oldest - asOldAsAllowed
				}
				if d != 0 {
					messages[j].Time = time.Now().Add(d).Truncate(time.Millisecond)
				}
			}
			w.publish(messages)
		case s.fences != nil:
			_, err := w.editor.Import(ctx, s.fences, "import", s.replace)
			require.NoError(w.TB, err)
		case s.recompute != nil:
			w.ask(s.recompute.device, s.recompute.from, s.recompute.to)
		case s.faulty != nil:
			// What is marked has to be there.
			if err := w.quiet(20 * time.Second); err != nil {
				return err
			}
			at := time.UnixMicro(s.faulty.us).UTC()
			tag, err := w.Pool.Exec(ctx, "update public.positions set faulty = true where device_id = $1 and ts = $2", s.faulty.device, at)
			require.NoError(w.TB, err)
			if tag.RowsAffected() > 0 {
				w.faulty[*s.faulty] = true
				w.ask(s.faulty.device, at, at)
			}
		case s.move != nil:
			w.move(s.move)
		case s.crash:
			for _, m := range w.members {
				if !m.gone() {
					m.kill()
					break
				}
			}
			w.keepOwned()
		case s.quiet:
			if err := w.quiet(20 * time.Second); err != nil {
				return err
			}
		}
	}
	if err := w.quiet(20 * time.Second); err != nil {
		return err
	}
	return w.judge()
}

// ask requests that a window of a device is derived again.
func (w *world) ask(device string, from, to time.Time) {
	_, err := w.Pool.Exec(context.Background(), `
insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, to_ts, requested_by)
values ($1, $2, 'recompute', $3, $4, $5, $6, 'test')`,
		w.Stream, w.bench.Group, telemetry.ShardOf(device, shards), device, from, to)
	require.NoError(w.TB, err)
}

func (w *world) move(m *moveStep) {
	w.keepOwned()
	w.spoil = m.spoil
	defer func() { w.spoil = asLeft }()
	var to *member
	if m.newcome {
		to = w.join(m.crashAt, m.before)
	} else {
		for _, other := range w.members {
			if !other.gone() {
				to = other
			}
		}
		if to == nil {
			return
		}
	}
	for s := range shards {
		if m.shards>>s&1 == 0 {
			continue
		}
		if !m.steal {
			w.release(s)
		}
		w.take(s, to)
	}
}

func (sc *scenario) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "batches of %d, %d in flight, %d devices in memory, age %v, rules %+v, ancient before %v\n", sc.batch, sc.inFlight, sc.states, sc.age, sc.rules, sc.ancient)
	for _, s := range sc.steps {
		switch {
		case s.send != nil:
			for i, m := range s.send {
				fmt.Fprintf(&b, "  send %s %s %v,%v satellites %d ahead %v attributes %v\n", m.DeviceID, m.Time.UTC().Format("15:04:05.000"), m.Latitude, m.Longitude, m.Satellites, s.ahead[i], m.Attributes)
			}
		case s.fences != nil:
			for _, f := range s.fences {
				fmt.Fprintf(&b, "  fence %s %s %v enabled %t radius %v exit margin %v dwell %v interval %v %s (replace %t)\n",
					f.ID, f.Kind, f.Valid, f.Enabled, f.RadiusM, f.ExitMarginM, f.MinDwellS, f.MinIntervalS, f.Geometry, s.replace)
			}
		case s.recompute != nil:
			fmt.Fprintf(&b, "  recompute %+v\n", *s.recompute)
		case s.faulty != nil:
			fmt.Fprintf(&b, "  faulty %+v\n", *s.faulty)
		case s.move != nil:
			fmt.Fprintf(&b, "  move %+v\n", *s.move)
		case s.crash:
			b.WriteString("  crash\n")
		default:
			b.WriteString("  quiet\n")
		}
	}
	return b.String()
}
