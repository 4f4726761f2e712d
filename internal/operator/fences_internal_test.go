package operator

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
)

// One row that JSON cannot say would keep all fences from being listed.
func TestAFenceThatSQLMadeIsListedWithWhatIsWrongWithIt(t *testing.T) {
	for want, f := range map[string]geofence.Fence{
		"radius NaN m":           {Kind: geofence.Circle, RadiusM: math.NaN(), Valid: geofence.Always},
		"width_m +Inf":           {Kind: geofence.Area, WidthM: math.Inf(1), Valid: geofence.Always},
		"min_dwell_s NaN":        {Kind: geofence.Area, MinDwellS: math.NaN(), Valid: geofence.Always},
		"infinity to no end":     {Kind: geofence.Circle, RadiusM: 5, Valid: geofence.Span{FromUS: math.MaxInt64, ToUS: math.MaxInt64}},
		"beginning to -infinity": {Kind: geofence.Circle, RadiusM: 5, Valid: geofence.Span{FromUS: math.MinInt64, ToUS: math.MinInt64}},
	} {
		f.ID, f.Geometry, f.Enabled = "odd", `{"type":"Point","coordinates":[11,48]}`, true
		shown := listed(&store.FenceVersion{Fence: f})
		require.NotNil(t, shown.Problem)
		require.Contains(t, *shown.Problem, want)
		_, err := json.Marshal(shown)
		require.NoError(t, err, want)
	}
}
