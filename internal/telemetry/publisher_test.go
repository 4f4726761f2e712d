package telemetry_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestWhatNodePublishesDecodesToWhatItMeant(t *testing.T) {
	published := testenv.PublishWithNode(t, "--print-only", "3000", "20260102")
	require.Len(t, published, 3000)
	d := telemetry.NewDecoder(telemetry.DefaultLimits())
	kinds := map[string]int{`{"__bigint":`: 0, `{"__buffer_b64":`: 0, `{"type":"Buffer",`: 0, `"__generation_type":`: 0, `"note":`: 0}
	for _, p := range published {
		var r telemetry.Record
		require.NoError(t, d.Decode(&telemetry.Entry{Fields: p.Fields}, &r), p.Fields)
		require.Equal(t, p.Record(), r)
		for kind := range kinds {
			kinds[kind] += strings.Count(p.Fields[7], kind)
		}
	}
	for kind, n := range kinds {
		require.Positive(t, n, "records with %s", kind)
	}
}
