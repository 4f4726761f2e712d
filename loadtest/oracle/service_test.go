package oracle_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// run is what was sent and what a service that makes no mistake left behind.
// The service is written the other way round than the oracle: it decodes each
// entry as it comes and keeps tables in maps.
type run struct {
	sent        []fleet.Sent
	rows        []oracle.Row
	crossings   []oracle.Crossing
	deadLetters []oracle.DeadLetter
	changes     []oracle.Change
	noChanges   bool
	losses      []oracle.Loss
	requests    []oracle.Request
	pending     map[oracle.ID]bool
	dispatched  *oracle.ID
	othersToo   bool
	droppedUS   int64
	droppedAt   oracle.ID
}

var rules = oracle.Rules{
	Fences: []oracle.Fence{
		{ID: "around", Version: 1, Kind: "circle", Geometry: `{"type":"Point","coordinates":[1.5,42.5]}`, RadiusM: 800, FromUS: math.MinInt64, ToUS: math.MaxInt64},
		{ID: "box", Version: 2, Kind: "area", Geometry: `{"type":"Polygon","coordinates":[[[1.49,42.49],[1.53,42.49],[1.53,42.51],[1.49,42.51],[1.49,42.49]]]}`, FromUS: math.MinInt64, ToUS: math.MaxInt64},
		{ID: "line", Version: 3, Kind: "gate", Geometry: `{"type":"LineString","coordinates":[[1.5,42.48],[1.5,42.52]]}`, FromUS: math.MinInt64, ToUS: math.MaxInt64},
	},
	Limits: oracle.Limits{MaxFutureSkew: 5 * time.Minute, MinSatellites: 1, MaxCrossingGap: 10 * time.Minute},
}

// send returns the stream that the items make, three entries a millisecond, and what
// becomes of it.
func send(t require.TestingT, items []fleet.Item) *run {
	r := &run{losses: []oracle.Loss{}}
	decoder := telemetry.NewDecoder(telemetry.DefaultLimits())
	type key struct {
		device string
		us     int64
	}
	table := map[key]oracle.Row{}
	for i, it := range items {
		id := telemetry.EntryID{Ms: 1_780_000_000_000 + uint64(i/3), Seq: uint64(i % 3)}
		sent := fleet.Sent{ID: id, Message: it.Message, Class: fleet.ClassOf(&it.Message)}
		if it.Junk != nil {
			sent.Class, sent.Junk, sent.Message.DeviceID = it.Junk.Class, it.Junk.Kind, it.Junk.Device
		}
		if sent.Class != "" {
			sent.Sum = fleet.SumOf(it.Fields())
		}
		r.sent = append(r.sent, sent)
		var record telemetry.Record
		entry := telemetry.Entry{ID: id, Fields: it.Fields()}
		if err := decoder.Decode(&entry, &record); err != nil {
			var refused *telemetry.DecodeError
			require.ErrorAs(t, err, &refused)
			r.deadLetters = append(r.deadLetters, letterOf(&entry, refused))
			continue
		}
		k := key{record.DeviceID, record.TimeUS}
		takesPart := func(row *telemetry.Record) bool {
			return (telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew, MaxPast: rules.MaxPast, MinSatellites: rules.MinSatellites}).Of(row) == telemetry.Eligible
		}
		old, there := table[k]
		was := telemetry.Record{TimeUS: old.TimeUS, StreamUS: old.IngestedUS, Latitude: old.Latitude, Longitude: old.Longitude, Satellites: old.Satellites}
		if !there || takesPart(&record) && !takesPart(&was) {
			table[k] = oracle.Row{
				Entry: oracle.ID(id), Device: record.DeviceID, TimeUS: record.TimeUS, IngestedUS: record.StreamUS,
				Latitude: record.Latitude, Longitude: record.Longitude,
				Altitude: record.Altitude, Angle: record.Angle, Speed: record.Speed,
				Satellites: record.Satellites, Priority: record.Priority, Codec: record.Codec,
				Attributes: asStored(t, record.Attributes),
			}
		}
	}
	for _, row := range table {
		r.rows = append(r.rows, row)
	}
	r.sort()
	set, version := asService(t, rules.Fences)
	for rest := r.rows; len(rest) > 0; {
		device := rest[0].Device
		var fixes []geofence.Fix
		for len(rest) > 0 && rest[0].Device == device {
			row := telemetry.Record{TimeUS: rest[0].TimeUS, StreamUS: rest[0].IngestedUS, Latitude: rest[0].Latitude, Longitude: rest[0].Longitude, Satellites: rest[0].Satellites}
			if (telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew, MaxPast: rules.MaxPast, MinSatellites: rules.MinSatellites}).Of(&row) == telemetry.Eligible {
				fixes = append(fixes, geofence.Fix{TimeUS: rest[0].TimeUS, Latitude: rest[0].Latitude, Longitude: rest[0].Longitude, Speed: geofence.WholeKMH(rest[0].Speed)})
			}
			rest = rest[1:]
		}
		for _, c := range set.Track(nil, fixes, rules.MaxCrossingGap, true) {
			r.crossings = append(r.crossings, asOracle(device, version, c))
			r.changes = append(r.changes, oracle.Change{
				Device: device, FenceID: c.FenceID, Kind: string(c.Kind), LaterUS: c.LaterUS, Ordinal: c.Ordinal, New: 1,
			})
		}
	}
	return r
}

var letterRules = oracle.LetterRules{Shards: oracle.Always(64), MaxAttempts: 3}

// letterOf returns the dead letter that an entry becomes.
func letterOf(e *telemetry.Entry, refused *telemetry.DecodeError) oracle.DeadLetter {
	f := &oracle.LetterFields{
		Sum: fleet.SumOf(e.Fields), Attempts: 1, Error: refused.Error(), Field: refused.Field, Fingerprint: refused.Fingerprint(), Instance: "i1",
		FirstUS: int64(e.ID.Ms) * 1000, LastUS: int64(e.ID.Ms)*1000 + 500,
	}
	if refused.Class == telemetry.ClassDecode {
		f.Attempts = letterRules.MaxAttempts
	}
	if device := e.DeviceID(); device != "" {
		f.Shard = telemetry.ShardOf(device, letterRules.Shards(f.LastUS))
	}
	return oracle.DeadLetter{Source: oracle.ID(e.ID), Class: string(refused.Class), Fields: f}
}

// asService gives the service the fences of rules.
func asService(t require.TestingT, fences []oracle.Fence) (*geofence.Set, func(c geofence.Crossing) int) {
	type key struct {
		id   string
		from int64
	}
	versions := map[key]int{}
	var given []geofence.Fence
	for _, f := range fences {
		versions[key{f.ID, f.FromUS}] = f.Version
		given = append(given, geofence.Fence{
			ID: f.ID, Kind: geofence.Kind(f.Kind), Geometry: f.Geometry, RadiusM: f.RadiusM, WidthM: f.WidthM,
			Valid: geofence.Span{FromUS: f.FromUS, ToUS: f.ToUS}, Enabled: !f.Disabled,
		})
	}
	set, refused := geofence.NewSet(given)
	require.Empty(t, refused)
	return set, func(c geofence.Crossing) int {
		return versions[key{c.FenceID, set.Fence(c.Fence).Valid.FromUS}]
	}
}

// asOracle returns a crossing of the service as the oracle knows it.
func asOracle(device string, version func(geofence.Crossing) int, c geofence.Crossing) oracle.Crossing {
	return oracle.Crossing{
		Device: device, FenceID: c.FenceID, FenceVersion: version(c), Kind: string(c.Kind),
		TimeUS: c.TimeUS, EarlierUS: c.EarlierUS, LaterUS: c.LaterUS, Latitude: c.Latitude, Longitude: c.Longitude,
		Ordinal: c.Ordinal, Initial: c.Initial, Revision: 1,
		Method: string(c.Method), DistanceM: float64(c.DistanceM), SpeedKMH: float64(c.SpeedKMH), MaxErrorMS: c.MaxErrorMS,
	}
}

func (r *run) sort() {
	slices.SortFunc(r.rows, func(a, b oracle.Row) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.TimeUS, b.TimeUS))
	})
}

// asStored prints attributes as jsonb does: keys by length, then bytes, a space
// after colon and comma.
func asStored(t require.TestingT, text []byte) []byte {
	var members map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(text, &members))
	var keys []string
	for key := range members {
		keys = append(keys, key)
	}
	sort.Slice(keys, func(i, j int) bool {
		return cmp.Or(cmp.Compare(len(keys[i]), len(keys[j])), strings.Compare(keys[i], keys[j])) < 0
	})
	var out []string
	for _, key := range keys {
		out = append(out, fmt.Sprintf("%q: %s", key, members[key]))
	}
	return []byte("{" + strings.Join(out, ", ") + "}")
}

func all[T any](values []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range values {
			if !yield(v, nil) {
				return
			}
		}
	}
}

func logOf(t require.TestingT, sent []fleet.Sent) *fleet.Log {
	var buf bytes.Buffer
	w, err := fleet.NewLogWriter(&buf)
	require.NoError(t, err)
	for i := range sent {
		require.NoError(t, w.Append(&sent[i]))
	}
	require.NoError(t, w.Flush())
	return fleet.NewLog(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
}

func (r *run) observed() oracle.Observed {
	seen := oracle.Observed{
		Positions: all(r.rows), Crossings: all(r.crossings), Rules: rules,
		Changes: all(r.changes), Letters: &letterRules, Losses: r.losses, Requests: r.requests,
		DeadLetters: all(r.deadLetters), Pending: func(id oracle.ID) bool { return r.pending[id] }, Dispatched: r.dispatched, OthersToo: r.othersToo,
		DroppedUS: r.droppedUS, DroppedAt: r.droppedAt,
	}
	if r.noChanges {
		seen.Changes = nil
	}
	return seen
}

func (r *run) judge(t require.TestingT) *oracle.Report {
	o, err := oracle.New(logOf(t, r.sent))
	require.NoError(t, err)
	report, err := o.Judge(r.observed())
	require.NoError(t, err)
	require.True(t, report.Account.Balanced())
	return report
}

// nearby returns a fleet whose course lies over the fences.
func nearby(t require.TestingT, p fleet.Profile) []fleet.Item {
	source, err := p.Source()
	require.NoError(t, err)
	items := fleet.Collect(source)
	var lat, lon float64
	for _, it := range items {
		if it.Junk == nil && it.Message.Latitude != 0 {
			lat, lon = it.Message.Latitude, it.Message.Longitude
			break
		}
	}
	for i := range items {
		m := &items[i].Message
		if items[i].Junk == nil && m.Latitude != 0 {
			m.Latitude += 42.5 - lat
			m.Longitude += 1.5 - lon
		}
	}
	return items
}
