package report_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/report"
	"github.com/trmtracking/processor/loadtest/scenarios"
	"github.com/trmtracking/processor/loadtest/testbed"
)

func result() *scenarios.Result {
	r := &scenarios.Result{
		Scenario: "failover", Instances: 2, Share: []float64{.5, .5}, Oracle: "equal",
		Marks:          []scenarios.Mark{{At: time.Second, Until: 2 * time.Second, What: "SIGKILL <i1-1>", Slot: 0}, {At: 3 * time.Second, What: "start", Slot: 0}},
		OwnershipSpans: []scenarios.OwnershipSpan{{Shard: 0, Slot: 0, To: time.Second}, {Shard: 0, Slot: -1, From: time.Second, To: 4 * time.Second}},
	}
	for i := range 20 {
		s := testbed.Sample{At: time.Duration(i) * 250 * time.Millisecond, Slots: make([]testbed.SlotSample, i%2+1)}
		if i%3 > 0 { // what is unknown leaves a gap
			n, x := int64(i), float64(i)
			s.Backlog, s.Age, s.P50, s.P99 = &n, &x, &x, &x
		}
		r.Samples = append(r.Samples, s)
	}
	return r
}

func TestReportIsOnePageThatNeedsNothingElse(t *testing.T) {
	t.Parallel()
	s, err := scenarios.ByName("failover")
	require.NoError(t, err)
	var page bytes.Buffer
	require.NoError(t, report.Write(&page, s, result()))
	text := page.String()
	for _, foreign := range []string{"http:", "https:", "src=", "<script", "@import", "NaN", "Inf", "<i1-1>"} {
		require.NotContains(t, text, foreign)
	}
	require.Contains(t, text, "SIGKILL &lt;i1-1&gt;")
	require.Equal(t, 5, strings.Count(text, "<svg "))
	for rest := text; ; {
		_, after, found := strings.Cut(rest, "<svg ")
		if !found {
			break
		}
		svg, after, _ := strings.Cut(after, "</svg>")
		require.NoError(t, xml.Unmarshal([]byte("<svg "+svg+"</svg>"), new(struct{ XMLName xml.Name })))
		rest = after
	}
}

func TestReportOfARunWithoutSamples(t *testing.T) {
	t.Parallel()
	var page bytes.Buffer
	require.NoError(t, report.Write(&page, scenarios.Scenario{Name: "none"}, &scenarios.Result{Missed: []string{"lost: 1"}}))
	require.Contains(t, page.String(), "1 missed")
}

// The last line of a run is read by programs.
func TestVerdictHasStableFields(t *testing.T) {
	t.Parallel()
	line, err := json.Marshal(result())
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(line),
		`{"scenario":"failover","instances":2,"sent":0,"stored":0,"lost":0,"double":0,"reordered":null,"share":[0.5,0.5],"oracle":"equal","per_second":0,"p99_ms":null,`), string(line))
}

func TestScenariosExplainThemselves(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios.All() {
		require.NotEmpty(t, s.About, s.Name)
		require.NotEmpty(t, s.Bounds, s.Name)
		found, err := scenarios.ByName(s.Name)
		require.NoError(t, err)
		require.Equal(t, s.Bounds, found.Bounds)
	}
	_, err := scenarios.ByName("flood")
	require.ErrorContains(t, err, "soak, chaos")
}
