package oracle_test

import (
	"encoding/json"
	"errors"
	"iter"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// profile holds every incident, and junk.
func profile(seed uint64, devices int, d time.Duration) fleet.Profile {
	p := fleet.Polluted(seed)
	p.Devices, p.Duration = devices, d
	p.Gaps, p.Overtakes, p.LostAcks, p.Twins, p.BadClocks, p.NoFixes = 0.2, 0.15, 0.2, 0.15, 0.1, 0.1
	return p
}

func TestFaultlessRunIsGood(t *testing.T) {
	testenv.Slow(t)
	rapid.Check(t, func(t *rapid.T) {
		p := profile(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 4).Draw(t, "devices"), 120*time.Second)
		p.Junk = rapid.Float64Range(0, 0.05).Draw(t, "junk")
		r := send(t, nearby(t, p))
		report := r.judge(t)
		require.Empty(t, report.Examples)
		require.True(t, report.Good())
		a := report.Account
		require.Equal(t, int64(len(r.sent)), a.Entries)
		require.Equal(t, int64(len(r.rows)), a.Stored)
		require.Equal(t, int64(len(r.deadLetters)), a.DeadLettered)
		require.Equal(t, int64(len(r.crossings)), report.Crossings)
	})
}

// TestEveryFaultIsFound breaks what a faultless run left behind in one place
// each, and tells what the verdict must say.
func TestEveryFaultIsFound(t *testing.T) {
	items := nearby(t, profile(11, 5, 400*time.Second))
	intact := send(t, items)
	good := intact.judge(t)
	require.True(t, good.Good(), "%v", good.Examples)
	require.NotZero(t, good.Crossings)
	require.NotZero(t, good.Account.Duplicates)

	// A row whose entry has a twin, and one of which there is one entry only.
	twin, first, second := -1, fleet.Sent{}, fleet.Sent{}
	single := -1
	for i, row := range intact.rows {
		var group []fleet.Sent
		for _, s := range intact.sent {
			if s.Class == "" && s.Message.DeviceID == row.Device && s.Message.Time.UnixMicro() == row.TimeUS {
				group = append(group, s)
			}
		}
		if len(group) == 2 && group[0].Message.Latitude != group[1].Message.Latitude && twin < 0 {
			twin, first, second = i, group[0], group[1]
		}
		if len(group) == 1 && row.Latitude != 0 && i > 20 && single < 0 {
			single = i
		}
	}
	require.GreaterOrEqual(t, twin, 0)
	require.Less(t, first.Message.Latitude, second.Message.Latitude)

	asSecond := func(r *run) {
		r.rows[twin].Latitude = second.Message.Latitude
		r.rows[twin].Speed = float32(second.Message.Speed)
		r.rows[twin].IngestedUS = second.ID.Time().UnixMicro()
		r.rows[twin].Attributes = fleet.AppendStoredAttributes(nil, &second.Message)
		r.rows[twin].Codec = second.Message.Codec
	}

	type counts = map[oracle.Kind]int64
	for _, tt := range []struct {
		name  string
		spoil func(r *run)
		want  counts
	}{
		{"a row is missing", func(r *run) { r.rows = slices.Delete(r.rows, single, single+1) }, counts{"lost": 1}},
		{"the first row is missing", func(r *run) { r.rows = r.rows[1:] }, counts{"lost": 1}},
		{"the last row is missing", func(r *run) { r.rows = r.rows[:len(r.rows)-1] }, counts{"lost": 1}},
		{"a row is there twice", func(r *run) { r.rows = slices.Insert(r.rows, single, r.rows[single]) }, counts{"double": 1}},
		{"latitude is one ulp off", func(r *run) {
			r.rows[single].Latitude = math.Nextafter(r.rows[single].Latitude, 91)
		}, counts{"field": 1}},
		{"longitude is one ulp off", func(r *run) {
			r.rows[single].Longitude = math.Nextafter(r.rows[single].Longitude, -181)
		}, counts{"field": 1}},
		{"speed is one ulp off", func(r *run) {
			r.rows[single].Speed = math.Nextafter32(r.rows[single].Speed, 1000)
		}, counts{"field": 1}},
		{"altitude is off", func(r *run) { r.rows[single].Altitude++ }, counts{"field": 1}},
		{"angle is off", func(r *run) { r.rows[single].Angle-- }, counts{"field": 1}},
		{"satellites are off", func(r *run) { r.rows[single].Satellites++ }, counts{"field": 1}},
		{"priority is off", func(r *run) { r.rows[single].Priority = 2 - r.rows[single].Priority/2 }, counts{"field": 1}},
		{"codec is off", func(r *run) { r.rows[single].Codec = "7" }, counts{"field": 1}},
		{"an attribute is off", func(r *run) {
			r.rows[single].Attributes = []byte(strings.Replace(string(r.rows[single].Attributes), `"16": `, `"16": 1`, 1))
		}, counts{"field": 1}},
		{"attributes are gone", func(r *run) { r.rows[single].Attributes = []byte(`{}`) }, counts{"field": 1}},
		{"attributes are no JSON", func(r *run) { r.rows[single].Attributes = nil }, counts{"field": 1}},
		{"ingested_at is the clock of the inserter", func(r *run) { r.rows[single].IngestedUS += 1500 }, counts{"field": 1}},
		{"ingested_at is one microsecond off", func(r *run) { r.rows[single].IngestedUS-- }, counts{"field": 1}},
		{"two fields are off", func(r *run) { r.rows[single].Speed++; r.rows[single].Angle++ }, counts{"field": 2}},
		{"the later twin won", asSecond, counts{"winner": 1}},
		{"a row of nobody", func(r *run) {
			row := r.rows[single]
			row.TimeUS++
			r.rows = append(r.rows, row)
			r.sort()
		}, counts{"unexpected": 1}},
		{"a device of nobody", func(r *run) {
			row := r.rows[single]
			row.Device = "zz"
			r.rows = append(r.rows, row)
		}, counts{"unexpected": 1}},
		{"a row of another device", func(r *run) {
			row := r.rows[single]
			r.rows[single].Device = "999"
			r.sort()
			_ = row
		}, counts{"unexpected": 1, "lost": 1}},
		{"a dead letter is missing", func(r *run) { r.deadLetters = r.deadLetters[1:] }, counts{"lost": 1}},
		{"a dead letter is there twice", func(r *run) { r.deadLetters = append(r.deadLetters, r.deadLetters[0]) }, counts{"double": 1}},
		{"a dead letter has another reason", func(r *run) { r.deadLetters[0].Class = "sink" }, counts{"dead_letter": 1}},
		{"a dead letter of nobody", func(r *run) {
			r.deadLetters = append(r.deadLetters, oracle.DeadLetter{Source: oracle.ID{Ms: math.MaxUint64}, Class: "decode"})
		}, counts{"dead_letter": 1}},
		{"a stored record is a dead letter too", func(r *run) {
			r.deadLetters = append(r.deadLetters, oracle.DeadLetter{Source: r.rows[single].Entry, Class: "decode"})
		}, counts{"dead_letter": 1}},
		{"a valid record is a dead letter", func(r *run) {
			r.deadLetters = append(r.deadLetters, oracle.DeadLetter{Source: r.rows[single].Entry, Class: "invalid"})
			r.rows = slices.Delete(r.rows, single, single+1)
		}, counts{"dead_letter": 1}},
		{"the first twin is a dead letter, the second the row", func(r *run) {
			r.deadLetters = append(r.deadLetters, oracle.DeadLetter{Source: oracle.ID(first.ID), Class: "sink"})
			asSecond(r)
		}, counts{"dead_letter": 1}},
		{"a crossing is missing", func(r *run) { r.crossings = slices.Delete(r.crossings, 3, 4) }, counts{"crossing": 1}},
		{"a crossing is there twice", func(r *run) { r.crossings = slices.Insert(r.crossings, 3, r.crossings[3]) }, counts{"double": 1}},
		{"a crossing has a second ordinal", func(r *run) {
			c := r.crossings[3]
			c.Ordinal += 2
			r.crossings = slices.Insert(r.crossings, 3, c)
		}, counts{"crossing": 1}},
		{"a crossing is two microseconds late", func(r *run) { r.crossings[3].TimeUS += 2 }, counts{"crossing": 1}},
		{"a crossing has another earlier fix", func(r *run) { r.crossings[3].EarlierUS-- }, counts{"crossing": 1}},
		{"a crossing has another later fix", func(r *run) { r.crossings[3].LaterUS++ }, counts{"crossing": 2}},
		{"a crossing is at another place", func(r *run) {
			r.crossings[3].Latitude = r.crossings[3].Latitude + 2e-9
		}, counts{"crossing": 1}},
		{"a crossing is the wrong way round", func(r *run) {
			if r.crossings[3].Kind = "enter"; intact.crossings[3].Kind == "enter" {
				r.crossings[3].Kind = "exit"
			}
		}, counts{"crossing": 2}},
		{"a crossing was found in another way", func(r *run) { r.crossings[3].Method = "net change" }, counts{"crossing": 1}},
		{"a crossing is of another distance", func(r *run) { r.crossings[3].DistanceM *= 1.00001 }, counts{"crossing": 1}},
		{"a crossing is of another speed", func(r *run) { r.crossings[3].SpeedKMH *= 1.00001 }, counts{"crossing": 1}},
		{"a crossing is surer than it is", func(r *run) { r.crossings[3].MaxErrorMS -= 2 }, counts{"crossing": 1}},
		{"an enter is marked initial", func(r *run) { r.crossings[3].Initial = !r.crossings[3].Initial }, counts{"crossing": 1}},
		{"a crossing of a device of nobody", func(r *run) {
			c := r.crossings[3]
			c.Device = "zz"
			r.crossings = append(r.crossings, c)
		}, counts{"crossing": 1}},
		{"all crossings are missing", func(r *run) { r.crossings = nil }, counts{"crossing": good.Crossings}},
		{"all rows are missing", func(r *run) { r.rows = nil }, counts{"lost": good.Account.Stored + good.Account.Duplicates}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := *intact
			r.rows, r.deadLetters, r.crossings = slices.Clone(r.rows), slices.Clone(r.deadLetters), slices.Clone(r.crossings)
			tt.spoil(&r)
			r.noChanges, r.losses = true, nil // the rows alone
			report := r.judge(t)
			require.Equal(t, tt.want, report.Counts, "%v", report.Examples)
			require.False(t, report.Good())
			require.Equal(t, tt.want["lost"], report.Account.Lost)
			wrong := int64(0)
			for kind, n := range tt.want {
				if kind != "lost" {
					wrong += n
				}
			}
			require.Equal(t, wrong, report.Account.Mismatches)
			require.NotEmpty(t, report.Examples[0].String())
		})
	}
}

func TestWhatIsStillToDoIsPending(t *testing.T) {
	r := send(t, nearby(t, profile(3, 3, 100*time.Second)))
	whole := r.judge(t).Account

	// Nothing after the 100th entry was dispatched; the 50th is with a worker.
	dispatched := oracle.ID(r.sent[99].ID)
	r.dispatched = &dispatched
	r.pending = map[oracle.ID]bool{oracle.ID(r.sent[49].ID): true}
	r.rows = slices.DeleteFunc(r.rows, func(row oracle.Row) bool {
		return dispatched.Less(row.Entry) || row.Entry == oracle.ID(r.sent[49].ID)
	})
	r.deadLetters = slices.DeleteFunc(r.deadLetters, func(d oracle.DeadLetter) bool { return dispatched.Less(d.Source) })
	r.crossings = nil
	seen := r.observed()
	seen.Crossings, seen.Changes = nil, nil
	o, err := oracle.New(logOf(t, r.sent))
	require.NoError(t, err)
	report, err := o.Judge(seen)
	require.NoError(t, err)
	require.Empty(t, report.Examples)
	require.True(t, report.Account.Balanced())
	require.False(t, report.Good(), "work is left")
	require.InDelta(t, whole.Entries-99, report.Account.Pending, 1) // the 50th may be a duplicate
}

func TestReplayKeepsTheStreamTimeOfItsSource(t *testing.T) {
	items := collect(t, profile(5, 1, 50*time.Second))
	junk := slices.IndexFunc(items, func(it fleet.Item) bool { return it.Junk != nil })
	require.GreaterOrEqual(t, junk, 0)
	r := send(t, items)
	source := r.sent[junk].ID

	// An operator fixes the entry and sends it again; the dead letter is gone.
	edited := r.sent[0]
	edited.Message.Time = edited.Message.Time.Add(-time.Hour)
	edited.ID = telemetry.EntryID{Ms: 1_790_000_000_000}
	edited.ReplayOf = source
	r.sent = append(r.sent, edited)
	r.deadLetters = slices.DeleteFunc(r.deadLetters, func(d oracle.DeadLetter) bool { return d.Source == oracle.ID(source) })
	row := r.rows[0]
	for _, other := range r.rows {
		if other.Entry == oracle.ID(r.sent[0].ID) {
			row = other
		}
	}
	row.TimeUS = edited.Message.Time.UnixMicro()
	row.IngestedUS = source.Time().UnixMicro()
	r.rows = append(r.rows, row)
	r.sort()
	seen := r.observed()
	seen.Crossings, seen.Changes = nil, nil
	o, err := oracle.New(logOf(t, r.sent))
	require.NoError(t, err)
	report, err := o.Judge(seen)
	require.NoError(t, err)
	require.Empty(t, report.Examples)
	require.True(t, report.Good())
}

func TestFaultyRowsTakeNoPartInCrossings(t *testing.T) {
	at := func(s int, lon float64) fleet.Item {
		return fleet.Item{Message: fleet.Message{
			DeviceID: "a", Codec: "8", Time: time.Date(2026, 1, 1, 0, 0, s, 0, time.UTC), Latitude: 42.5, Longitude: lon, Satellites: 9,
		}}
	}
	r := send(t, []fleet.Item{at(0, 1), at(20, 2), at(10, 1.5)}) // the one in the middle comes late
	o, err := oracle.New(logOf(t, r.sent))
	require.NoError(t, err)
	kinds := func(rules oracle.Rules) (kinds []string) {
		for c, err := range o.Crossings(rules) {
			require.NoError(t, err)
			kinds = append(kinds, c.FenceID+" "+c.Kind+" "+time.UnixMicro(c.LaterUS).UTC().Format("05"))
		}
		return kinds
	}
	require.Equal(t, []string{"box enter 10", "around enter 10", "line forward 10", "around exit 20", "box exit 20"}, kinds(rules))
	marked := rules
	marked.Faulty = func(_ string, us int64) bool { return time.UnixMicro(us).Second() == 10 }
	for _, k := range kinds(marked) {
		require.Contains(t, k, " 20")
	}
}

func TestRowsOutOfOrderAndErrorsAreReported(t *testing.T) {
	r := send(t, collect(t, profile(5, 2, 30*time.Second)))
	o, err := oracle.New(logOf(t, r.sent))
	require.NoError(t, err)

	seen := r.observed()
	mixed := slices.Clone(r.rows)
	mixed[3], mixed[9] = mixed[9], mixed[3]
	seen.Positions = all(mixed)
	_, err = o.Judge(seen)
	require.ErrorContains(t, err, `want them ordered by device_id collate "C", ts`)

	gone := errors.New("connection reset")
	seen.Positions = func(yield func(oracle.Row, error) bool) { yield(oracle.Row{}, gone) }
	_, err = o.Judge(seen)
	require.ErrorIs(t, err, gone)

	seen = r.observed()
	seen.DeadLetters = func(yield func(oracle.DeadLetter, error) bool) { yield(oracle.DeadLetter{}, gone) }
	_, err = o.Judge(seen)
	require.ErrorIs(t, err, gone)

	seen = r.observed()
	seen.Crossings = iter.Seq2[oracle.Crossing, error](func(yield func(oracle.Crossing, error) bool) { yield(oracle.Crossing{}, gone) })
	_, err = o.Judge(seen)
	require.ErrorIs(t, err, gone)

	_, err = o.Judge(oracle.Observed{})
	require.ErrorContains(t, err, "no rows given")

	_, err = oracle.New(logOf(t, append(r.sent, r.sent[4])))
	require.ErrorContains(t, err, "is in it twice")
}

func TestOtherDevicesArePassedOverWhenAsked(t *testing.T) {
	r := send(t, nearby(t, profile(5, 2, 60*time.Second)))
	row := r.rows[0]
	row.Device = "000"
	r.rows = append([]oracle.Row{row}, r.rows...)
	row.Device = "zzz"
	r.rows = append(r.rows, row)
	r.deadLetters = append(r.deadLetters, oracle.DeadLetter{Source: oracle.ID{Ms: 1}, Class: "decode"})
	require.False(t, r.judge(t).Good())
	r.othersToo = true
	require.True(t, r.judge(t).Good())
}

func collect(t require.TestingT, p fleet.Profile) []fleet.Item {
	source, err := p.Source()
	require.NoError(t, err)
	return fleet.Collect(source)
}

func TestAccountIsOneLineWithAllKeys(t *testing.T) {
	a := oracle.Account{Entries: 10, Stored: 5, Duplicates: 1, DeadLettered: 1, Pending: 2, Lost: 1}
	require.True(t, a.Balanced())
	require.False(t, a.Good())
	line, err := json.Marshal(a.Over(2 * time.Second))
	require.NoError(t, err)
	require.Equal(t, `{"entries":10,"stored":5,"duplicates":1,"dead_lettered":1,"pending":2,"lost":1,"mismatches":0,"seconds":2,"per_second":3.5}`, string(line))
	a.Stored++
	require.False(t, a.Balanced())
	require.True(t, oracle.Account{Entries: 3, Stored: 2, Duplicates: 1}.Good())
	require.False(t, oracle.Account{Entries: 3, Stored: 2, Duplicates: 1, Mismatches: 1}.Good())
	require.False(t, oracle.Account{Entries: 3, Stored: 3, Duplicates: 1}.Good())
}
