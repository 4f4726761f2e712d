package history_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/history"
)

var began = time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)

// record encodes samples, one every history.Every, through change.
func record(t *testing.T, n int, change func(i int, s *history.Sample, o *history.Owners)) []string {
	t.Helper()
	var e history.Encoder
	var texts []string
	for i := range n {
		zero := int64(0)
		s := history.Sample{At: began.Add(time.Duration(i) * history.Every).UnixMilli(), Added: int64(i) * 500, Lag: &zero, Deferred: &zero, Oldest: &zero, Versions: map[string]int{"1.0": 2}}
		o := history.Owners{Members: []string{"a.1", "b.1"}, Of: []int{0, 0, 1, 1}}
		change(i, &s, &o)
		text, err := e.Encode(s, o)
		require.NoError(t, err)
		texts = append(texts, text)
	}
	return texts
}

func TestOwnersAreWrittenWhenTheyChangeAndReadForEverySample(t *testing.T) {
	t.Parallel()
	texts := record(t, 200, func(i int, _ *history.Sample, o *history.Owners) {
		if i >= 100 {
			o.Of = []int{1, history.Waits, 1, 1}
		}
	})
	bytes := 0
	for _, text := range texts {
		bytes += len(text)
	}
	require.Less(t, bytes, 200*90, "owners are omitted where they did not change")
	w := history.Decode(texts, began)
	require.Len(t, w.Samples, 200)
	require.Equal(t, "a.1", w.Owners[99].Name(1))
	require.Empty(t, w.Owners[150].Name(1))
	require.Equal(t, "b.1", w.Owners[199].Name(0))

	// A reader that begins in the middle knows the owners from the next keyframe on.
	late := history.Decode(texts[110:], began)
	require.Empty(t, late.Owners[0].Of)
	require.Equal(t, "b.1", late.Owners[89].Name(0))
}

func TestTimelineOfAHandOverAndOfAGap(t *testing.T) {
	t.Parallel()
	texts := record(t, 30, func(i int, s *history.Sample, o *history.Owners) {
		switch {
		case i >= 12:
			o.Of[0] = 1
		case i >= 10:
			o.Of[0] = history.Waits
		}
		if i >= 20 { // nobody led for five minutes
			s.At += (5 * time.Minute).Milliseconds()
		}
	})
	w := history.Decode(texts, began)
	line := w.Timeline(4, began.Add(10*time.Minute))[0]
	at := func(i int) int64 { return began.Add(time.Duration(i) * history.Every).UnixMilli() }
	require.Equal(t, []string{"a.1", "", "b.1", "b.1"}, []string{line[0].Owner, line[1].Owner, line[2].Owner, line[3].Owner})
	require.Equal(t, history.Ownership{From: at(10), To: at(12), Owner: ""}, line[1])
	require.Less(t, line[2].To, line[3].From, "what nobody recorded is not drawn as owned")
	require.Equal(t, []history.Mark{{At: at(12), Kind: history.HandOver, Text: "1 shard moved"}}, w.Marks())
}

func TestRatesAreUnknownWhereTheyCannotBeTold(t *testing.T) {
	t.Parallel()
	texts := record(t, 40, func(i int, s *history.Sample, _ *history.Owners) {
		n := int64(i) * 100 // the backlog grows: 20 a second are not done
		s.Lag = &n
		if i == 20 {
			s.Lag = nil
		}
		if i >= 30 { // the stream was made again
			s.Added = int64(i-30) * 500
			s.Versions = map[string]int{"1.1": 2}
		}
	})
	w := history.Decode(texts, began)
	in, out := w.Rates()
	require.False(t, in[0].Known)
	require.True(t, in[10].Known)
	require.InDelta(t, 100, in[10].Value, .1)
	require.InDelta(t, 80, out[10].Value, .1)
	require.True(t, in[20].Known)
	require.False(t, out[20].Known, "the lag was unknown")
	require.False(t, in[30].Known, "a counter that went back is no rate")
	size, _ := w.Backlogs()
	require.False(t, size[20].Known)
	require.Contains(t, w.Marks(), history.Mark{At: w.Samples[30].At, Kind: history.Deploy, Text: "version 1.1 joined"})
}

func TestDamagedSamplesHarmNothing(t *testing.T) {
	t.Parallel()
	texts := append([]string{"", "{", `{"t":1}`, `{"t":1700000000000,"s":[0,2000000000,1,-5,7]}`, fmt.Sprintf(`{"t":%d,"m":["x"],"s":[5,2]}`, began.UnixMilli())}, record(t, 3, func(int, *history.Sample, *history.Owners) {})...)
	w := history.Decode(texts, time.Time{})
	w.Rates()
	w.Backlogs()
	w.Marks()
	require.Len(t, w.Timeline(4, began.Add(time.Minute)), 4)
	require.Empty(t, history.Owners{Members: []string{"x"}, Of: []int{5}}.Name(0))
}
