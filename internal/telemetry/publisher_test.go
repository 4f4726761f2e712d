package telemetry_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

// published is one line of testdata/publisher.mjs.
type published struct {
	Fields     []string        `json:"fields"`
	Codec      string          `json:"codec"`
	DeviceID   string          `json:"device_id"`
	Timestamp  time.Time       `json:"timestamp"`
	Latitude   float64         `json:"latitude"`
	Longitude  float64         `json:"longitude"`
	Altitude   float32         `json:"altitude"`
	Angle      float32         `json:"angle"`
	Speed      float32         `json:"speed"`
	Satellites int16           `json:"satellites"`
	Priority   int16           `json:"priority"`
	Attributes json.RawMessage `json:"attributes"`
}

// The publisher shares no code and no language with the Decoder, as the
// neighbour does not.
func TestWhatNodePublishesDecodesToWhatItMeant(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("SKIPPED: Node.js is not installed, so nobody but ourselves has checked the wire contract here")
	}
	const count = "3000"
	cmd := exec.CommandContext(t.Context(), node, "testdata/publisher.mjs", "--print-only", count, "20260102")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())

	d := telemetry.NewDecoder(telemetry.DefaultLimits())
	kinds := map[string]int{`{"__bigint":`: 0, `{"__buffer_b64":`: 0, `{"type":"Buffer",`: 0, `"__generation_type":`: 0, `"note":`: 0}
	records := 0
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var p published
		require.NoError(t, json.Unmarshal(lines.Bytes(), &p))
		var r telemetry.Record
		require.NoError(t, d.Decode(&telemetry.Entry{Fields: p.Fields}, &r), lines.Text())
		require.Equal(t, telemetry.Record{
			DeviceID: p.DeviceID, Codec: p.Codec, TimeUS: p.Timestamp.UnixMicro(),
			Latitude: p.Latitude, Longitude: p.Longitude, Altitude: p.Altitude, Angle: p.Angle, Speed: p.Speed,
			Satellites: p.Satellites, Priority: p.Priority, Attributes: p.Attributes,
		}, r)
		for kind := range kinds {
			kinds[kind] += strings.Count(p.Fields[7], kind)
		}
		records++
	}
	require.NoError(t, lines.Err())
	require.Equal(t, 3000, records)
	for kind, n := range kinds {
		require.Positive(t, n, "records with %s", kind)
	}
}
